"""The tools of a chat: what is offered to the model, and what is done with its calls."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rwkv_cli.cli.chat.mcp_server import McpServer
from rwkv_cli.cli.terminal import ui
from rwkv_cli.errors import RwkvError, UsageError
from rwkv_cli.sessions.conversation import Conversation
from rwkv_cli.text.tool_calls.layout import ToolFormat, format_for
from rwkv_cli.text.tool_calls.parser import parse
from rwkv_cli.text.tool_calls.tools import Tool, ToolCall

MOST_ROUNDS = 8
"""Calls in a row, before the user is asked again."""

_MOST_SHOWN = 2000  # characters of a result


@dataclass
class Toolbox:
    """Tools, in the form of a conversation's template."""

    tools: Sequence[Tool]
    form: ToolFormat
    servers: Sequence[McpServer] = ()  # that have some of them
    confirms: bool = True  # every call

    def system(self, system: str | None) -> str:
        """A system prompt that offers the tools."""
        return self.form.system(self.tools, system)

    def calls_in(self, answer: str) -> tuple[ToolCall, ...]:
        """The calls in an answer, without its thought."""
        return parse(answer, [tool.name for tool in self.tools]).calls

    def results(self, calls: Sequence[ToolCall], is_wanted: Callable[[str], bool]) -> str | None:
        """What to tell the model of its calls, all of which are shown; None if one was not made."""
        servers = [self._server_of(call.name) for call in calls]
        for call in calls:
            ui.note(f"call {call.name} {json.dumps(call.arguments, ensure_ascii=False)}")
        if not all(servers):
            ui.note("(give the model the result of this call: /tool RESULT)")
            return None
        outputs = []
        for call, server in zip(calls, servers, strict=True):
            if self.confirms and not is_wanted(call.name):
                ui.note("(not called)")
                return None
            assert server
            outputs.append(_output(server, call))
            ui.note(ui.printable(outputs[-1][:_MOST_SHOWN]))
        return self.form.answer("\n".join(outputs))

    def _server_of(self, name: str) -> McpServer | None:
        return next((each for each in self.servers if name in _names(each.tools)), None)


def _names(tools: Sequence[Tool]) -> list[str]:
    return [tool.name for tool in tools]


def _output(server: McpServer, call: ToolCall) -> str:
    try:
        return server.call(call.name, call.arguments)
    except RwkvError as error:
        return f"Error: {error}"


def offer(
    conversation: Conversation, tools: Sequence[Tool], servers: Sequence[McpServer], confirms: bool
) -> Toolbox | None:
    """Offer tools in a conversation, in its system prompt; None without any.

    Raises UsageError for two tools of one name, and where it is too late: the conversation has begun without them.
    """
    every = [*tools, *(tool for server in servers for tool in server.tools)]
    if not every:
        return None
    names = _names(every)
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"there are two tools named {twice[0]}")
    box = Toolbox(every, format_for(conversation.template), servers, confirms)
    if not conversation.turns:
        conversation.reset(box.system(conversation.system))
    elif box.form.offer(every) not in (conversation.system or ""):
        raise UsageError("the conversation began without these tools: begin another one")
    penalties = {"presence_penalty", "frequency_penalty"} & conversation.chosen.keys()
    if not penalties:  # they keep a model from writing what it read in a schema
        conversation.choose(presence_penalty=0.0, frequency_penalty=0.0)
    return box
