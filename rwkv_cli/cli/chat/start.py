"""A chat from a command line: the conversation is opened, and wired to a terminal or a pipe."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from rwkv_cli.cli.chat import commands
from rwkv_cli.cli.chat.input import LineReader, PipeReader, Reader, TerminalReader
from rwkv_cli.cli.chat.loop import Chat
from rwkv_cli.cli.chat.view import PlainView, TerminalView
from rwkv_cli.cli.terminal import ui
from rwkv_cli.cli.terminal.progress import TerminalReporter
from rwkv_cli.sessions import resume
from rwkv_cli.sessions.autosave import Choices, open_conversation
from rwkv_cli.sessions.kept_chats import KeptChat


@dataclass
class Request:
    """What a command line asks for."""

    choices: Choices = field(default_factory=Choices)
    name: str | None = None
    state: str | None = None
    continues: bool = False  # the last chat without a name
    history: bool = True  # keep this one, and the lines that are typed
    model: str | None = None
    device: str = "auto"
    threads: int | None = None
    draft: str | None = None
    keep_text: bool = True
    markdown: bool = True
    show_thinking: bool = True
    vi: bool = False
    quiet: bool = False


def run(request: Request) -> int:
    """Chat until the user leaves, or the pipe ends; gives the exit code."""
    is_piped = not ui.is_terminal(sys.stdin)
    # What a script says must not take the place of what its user has said.
    is_kept = request.history and (request.continues or not is_piped)
    with TerminalReporter(request.quiet) as reporter:
        session = open_conversation(
            lambda saved: resume.load_model(
                request.model,
                saved,
                request.device,
                request.threads,
                reporter,
                request.choices.settings.model,
                request.draft,
            ),
            request.choices,
            request.name,
            request.state,
            request.keep_text,
            kept=KeptChat() if is_kept else None,
            last=request.continues,
        )
    try:
        if is_piped:
            return Chat(session, PipeReader(), PlainView(), commands.dispatch).run()
        is_shown = ui.is_terminal(sys.stdout)
        view = TerminalView(request.show_thinking, request.markdown) if is_shown else PlainView()
        reader: Reader = LineReader()
        if not ui.is_dumb():
            reader = TerminalReader(lambda line: commands.words(chat, line), request.vi, request.history)
        chat = Chat(session, reader, view, commands.dispatch, request.quiet)
        return chat.run()
    finally:
        session.close()
