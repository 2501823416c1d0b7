"""`rwkv chat`: a conversation."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import typer

from rwkv_cli.cli import options, tool_options
from rwkv_cli.cli.sampling_options import with_sampling
from rwkv_cli.errors import UsageError
from rwkv_cli.sampling_settings import SamplingOverrides

if TYPE_CHECKING:
    from rwkv_cli.cli.chat.start import Request


@with_sampling
def chat(
    model_name: options.ModelName = None,
    *,
    name: options.Name = None,
    continues: options.Continue = False,
    no_history: options.NoHistory = False,
    template: options.ChatTemplate = None,
    system: options.ChatSystem = None,
    think: options.ChatThink = None,
    vi: options.Vi = False,
    tools: tool_options.ChatTools = None,
    mcp: tool_options.Mcp = None,
    yes: tool_options.Yes = False,
    model: options.Model = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    draft: options.Draft = None,
    sampling: SamplingOverrides,
    state: options.State = None,
    no_text: options.NoText = False,
    max_tokens: options.ChatMaxTokens = None,
    show_thinking: options.ShowThinking = True,
    markdown: options.Markdown = True,
    quiet: options.Quiet = False,
) -> None:
    """Talk with a model.

    In the chat, /help lists the commands. With --name, the conversation is saved after every answer, and the same
    command resumes it. The last chat without a name is kept: --continue resumes it. Through a pipe, every line is a
    message, and gets an answer.

    Examples:
        # Talk with the built-in model
        rwkv chat
        # Talk with a model that was pulled; leave and come back
        rwkv chat g1-0.1b --name ideas
        # Go back to the last chat
        rwkv chat --continue
        # Ask about a text that was read before
        rwkv chat --state book
        # Let the model call the tools of an MCP server
        rwkv chat g1-1.5b --mcp "uvx mcp-server-time"
        # Send one message from a script
        echo "Hello there" | rwkv chat --quiet
    """
    from rwkv_cli import settings
    from rwkv_cli.cli.chat.start import Request
    from rwkv_cli.sessions.autosave import Choices

    if no_text and name is None:
        raise UsageError("--no-text needs --name")
    if yes and not mcp:
        raise UsageError("--yes needs --mcp")
    if continues:
        options.refuse_with("--continue", {"--name": name, "--state": state})
    model = options.model_of(model_name, model)
    if model_name is not None:
        _check_model(model_name)
    chosen = settings.load()
    choices = Choices(
        options.parse_template(template),
        options.parse_system(system),
        think,
        max_tokens,
        sampling,
        chosen,
    )
    request = Request(
        choices=choices,
        name=name,
        continues=continues,
        history=chosen.history and not no_history,
        state=state,
        model=model,
        device=device,
        threads=threads,
        draft=draft,
        keep_text=not no_text,
        markdown=markdown,
        show_thinking=show_thinking,
        vi=vi,
        tools=tool_options.parse(tools),
        mcp=tuple(mcp or ()),
        yes=yes,
        quiet=quiet,
    )
    _run(request)


def _check_model(name: str) -> None:
    """Raise UsageError for an unknown model; where a conversation has this name, with what opens that."""
    import shlex

    from rwkv_cli.catalog import registry
    from rwkv_cli.errors import MissingModelError
    from rwkv_cli.sessions import state_store

    try:
        registry.locate(name)
    except MissingModelError:
        return  # it will be offered for download
    except UsageError:
        if name not in state_store.names():
            raise
        raise UsageError(
            f"{name} is not a model but a conversation: continue it with `rwkv chat --name {shlex.quote(name)}`"
        ) from None


def open_chat(
    state: str,
    model: str | None,
    device: str,
    threads: int | None,
    sampling: SamplingOverrides,
    quiet: bool,
) -> NoReturn:
    """Open a chat on a saved state, which does not change. Raises typer.Exit at its end."""
    from rwkv_cli import settings
    from rwkv_cli.cli.chat.start import Request
    from rwkv_cli.sessions.autosave import Choices

    chosen = settings.load()
    choices = Choices(sampling=sampling, settings=chosen)
    request = Request(
        choices, state=state, history=chosen.history, model=model, device=device, threads=threads
    )
    request.quiet = quiet
    _run(request)


def _run(request: Request) -> NoReturn:
    from rwkv_cli.cli.chat.start import run

    raise typer.Exit(run(request))
