"""`rwkv run`: a chat with a model, or one answer of it."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from rwkv_cli.cli import completion, options
from rwkv_cli.cli.sampling_options import with_sampling
from rwkv_cli.sampling_settings import MAX_ANSWER_TOKENS, SamplingOverrides


@with_sampling
def run(
    model_name: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="The model; see rwkv list.", autocompletion=completion.models),
    ],
    words: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT", help="What to answer; none: a chat.")
    ] = None,
    *,
    template: options.Template = None,
    system: options.System = None,
    think: options.Think = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    sampling: SamplingOverrides,
    max_tokens: options.ChatMaxTokens = None,
    quiet: options.Quiet = False,
) -> None:
    """Talk with a model, or have it answer a prompt.

    Without a prompt this is rwkv chat, with one or with a pipe rwkv generate; both have more options. What is piped
    comes before the prompt.

    Examples:
        # Talk with a model
        rwkv run g1-0.1b
        # Ask it one question
        rwkv run g1-0.1b "Why is the sky blue?"
        # Ask it about a file
        rwkv run g1-0.1b "What is this about?" < notes.txt
    """
    from rwkv_cli.cli.commands.chat import chat
    from rwkv_cli.cli.commands.generate import generate
    from rwkv_cli.cli.terminal import ui

    given = {
        "template": template,
        "system": system,
        "think": think,
        "device": device,
        "threads": threads,
        "sampling": sampling,
        "quiet": quiet,
    }
    if words or not ui.is_terminal(sys.stdin):
        limit = options.limit_of(max_tokens, MAX_ANSWER_TOKENS)
        generate(words, model=model_name, max_tokens=limit, **given)
    else:
        chat(model_name, max_tokens=max_tokens, **given)
