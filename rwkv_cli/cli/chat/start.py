"""A chat from a command line: the conversation is opened, and wired to a terminal or a pipe."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field

from rwkv_cli.cli.chat import commands
from rwkv_cli.cli.chat.input import LineReader, PipeReader, Reader, TerminalReader
from rwkv_cli.cli.chat.loop import Chat
from rwkv_cli.cli.chat.mcp_server import McpServer
from rwkv_cli.cli.chat.toolbox import Toolbox, offer
from rwkv_cli.cli.chat.view import PlainView, TerminalView
from rwkv_cli.cli.terminal import ui
from rwkv_cli.cli.terminal.progress import TerminalReporter
from rwkv_cli.sessions import resume
from rwkv_cli.sessions.autosave import AutosavedConversation, Choices, open_conversation
from rwkv_cli.sessions.kept_chats import KeptChat
from rwkv_cli.text.tool_calls.tools import Tool


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
    tools: Sequence[Tool] = ()
    mcp: Sequence[str] = ()  # commands of servers
    yes: bool = False  # calls tools without asking


def run(request: Request) -> int:
    """Chat until the user leaves, or the pipe ends; gives the exit code."""
    with ExitStack() as stack:
        servers = [stack.enter_context(closing(McpServer(command))) for command in request.mcp]
        session = _opened(request)
        stack.callback(session.close)
        toolbox = offer(session.conversation, request.tools, servers, not request.yes)
        return _chat(request, session, toolbox).run()


def _opened(request: Request) -> AutosavedConversation:
    # What a script says must not take the place of what its user has said.
    is_kept = request.history and (request.continues or ui.is_terminal(sys.stdin))
    with TerminalReporter(request.quiet) as reporter:
        return open_conversation(
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


def _chat(request: Request, session: AutosavedConversation, toolbox: Toolbox | None) -> Chat:
    """The chat, wired to a terminal or a pipe."""
    if not ui.is_terminal(sys.stdin):
        return Chat(session, PipeReader(), PlainView(), commands.dispatch, toolbox=toolbox)
    is_shown = ui.is_terminal(sys.stdout)
    view = TerminalView(request.show_thinking, request.markdown) if is_shown else PlainView()
    reader: Reader = LineReader()
    if not ui.is_dumb():
        reader = TerminalReader(lambda line: commands.words(chat, line), request.vi, request.history)
    chat = Chat(session, reader, view, commands.dispatch, request.quiet, toolbox)
    return chat
