"""`rwkv chat`: a conversation."""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

import typer

from rwkv_cli.cli import options
from rwkv_cli.errors import UsageError


def chat(
    name: options.Name = None,
    state: options.State = None,
    model: options.Model = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    system: options.System = None,
    template: options.ChatTemplate = None,
    think: options.Think = None,
    max_tokens: options.ChatMaxTokens = None,
    show_thinking: options.ShowThinking = True,
    markdown: options.Markdown = True,
    vi: options.Vi = False,
    no_text: options.NoText = False,
    quiet: options.Quiet = False,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    min_p: options.MinP = None,
    presence_penalty: options.PresencePenalty = None,
    frequency_penalty: options.FrequencyPenalty = None,
    penalty_decay: options.PenaltyDecay = None,
    seed: options.Seed = None,
    logit_bias: options.LogitBias = None,
    ban: options.Ban = None,
) -> None:
    """Talk with a model; /help lists what else can be done.

    With --name, the conversation is saved after every answer, and the same command goes on with it.
    A pipe gives a message a line, and gets an answer for each.
    """
    from rwkv_cli.cli.chat.start import Request, run
    from rwkv_cli.cli.prompt import checked_text
    from rwkv_cli.sessions.autosave import Choices
    from rwkv_cli.text.template_file import open_template

    if no_text and name is None:
        raise UsageError("--no-text is for --name, which is not there")
    sampling = options.sampling(
        logit_bias,
        ban,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        penalty_decay=penalty_decay,
        seed=seed,
    )
    layout = open_template(template) if template else None
    system = None if system is None else checked_text(system, "system text")
    choices = Choices(layout, system, think, max_tokens, sampling)
    _leave_in_order()
    request = Request(
        choices=choices,
        name=name,
        state=state,
        model=model,
        device=device,
        threads=threads,
        keep_text=not no_text,
        markdown=markdown,
        show_thinking=show_thinking,
        vi=vi,
        quiet=quiet,
    )
    raise typer.Exit(run(request))


def open_chat(
    state: str,
    model: str | None = None,
    device: str = "auto",
    threads: int | None = None,
    template: str | None = None,
    sampling: Mapping[str, Any] | None = None,
    quiet: bool = False,
) -> NoReturn:
    """Open a chat on a saved state, which stays as it is. Raises typer.Exit at its end."""
    from rwkv_cli.cli.chat.start import Request, run
    from rwkv_cli.sessions.autosave import Choices
    from rwkv_cli.text.template_file import open_template

    choices = Choices(open_template(template) if template else None, sampling=dict(sampling or {}))
    _leave_in_order()
    raise typer.Exit(
        run(Request(choices, state=state, model=model, device=device, threads=threads, quiet=quiet))
    )


def _leave_in_order() -> None:
    """A terminal that is closed ends the chat like any other end: its locks are given up."""
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, lambda *_: sys.exit(128 + signal.SIGHUP))
