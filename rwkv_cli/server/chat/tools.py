"""Tools in a conversation: what the model reads of them, and the calls in an answer that arrives in pieces."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rwkv_cli.engine.constraints.grammar import Grammar
from rwkv_cli.engine.constraints.requests import grammar_of
from rwkv_cli.server.chat.messages import Message
from rwkv_cli.text.template import Template
from rwkv_cli.text.tool_calls.layout import ToolFormat, chosen, format_for
from rwkv_cli.text.tool_calls.parser import parse
from rwkv_cli.text.tool_calls.tools import Tool, ToolCall

_MARKS = ("<tool_call", "<function_call", "```", "**Tool Call")
_FENCE = re.compile(r"```([^\n`]*)\n")
_CALLS = re.compile(r"[ \t]*(json|JSON|tool_calls?)?[ \t]*")  # what stands after the fence of a call


@dataclass(frozen=True)
class Form:
    """What an answer may and has to look like."""

    tools: Sequence[Tool] = ()
    choice: str = "auto"  # which tool to call: auto, none, required or a name
    fields: Mapping[str, object] | None = None  # of a request, that demand a grammar

    def format(self, template: Template, messages: Iterable[Message]) -> ToolFormat | None:
        """How tools are written in a template; None where there are none. Raises UsageError where it has no place."""
        if self.offered or any(message.calls or message.is_result for message in messages):
            return format_for(template)
        return None

    @property
    def offered(self) -> Sequence[Tool]:
        """The tools that the model is told of."""
        return () if self.choice == "none" else self.tools

    def grammar(self, form: ToolFormat | None) -> Grammar | None:
        """What the answer has to follow. Raises UsageError for what cannot be followed, and for an unknown tool."""
        wanted = chosen(self.tools, self.choice) if self.tools else ()
        if wanted and form:
            return Grammar.tool_call(form, wanted)
        return grammar_of(self.fields or {})


def written(messages: Sequence[Message], form: ToolFormat | None, tools: Sequence[Tool]) -> list[Message]:
    """Messages in which tools, calls and results are text, as the model reads them."""
    if form is None:
        return [*messages]
    found = [Message(each.role, _text(each, form)) for each in messages]
    if tools:
        system = "\n".join(each.text for each in found if each.role == "system")
        rest = [each for each in found if each.role != "system"]
        return [Message("system", form.system(tools, system or None)), *rest]
    return found


def _text(message: Message, form: ToolFormat) -> str:
    if message.is_result:
        return form.answer(message.text)
    return with_calls(message.text, message.calls, form)


def with_calls(text: str, calls: Sequence[ToolCall], form: ToolFormat | None) -> str:
    """An answer with its calls, as a model of this form writes it."""
    if not calls or form is None:
        return text
    parts = [
        form.before
        + json.dumps({"name": call.name, "arguments": call.arguments}, ensure_ascii=False)
        + form.after
        for call in calls
    ]
    return "\n".join([text, *parts] if text else parts)


class CallFilter:
    """Passes on the text of an answer as it comes, but for what may be a call."""

    def __init__(self, tools: Sequence[Tool]) -> None:
        """Without tools, everything is passed on."""
        self._names = [tool.name for tool in tools]
        self._held, self._is_first, self._is_held = "", True, False

    def feed(self, text: str) -> str:
        """What can be shown now."""
        if not self._names:
            return text
        self._held += text
        shown = ""
        while not self._is_held and self._held:
            passed, is_done = self._next()
            if passed.strip():
                self._is_first = False
            shown, self._held = shown + passed, self._held[len(passed) :]
            if is_done:
                break
        return shown

    def _next(self) -> tuple[str, bool]:
        """How much of the text can be passed on, and whether to wait for more after that."""
        text = self._held
        if self._is_first and text.lstrip()[:1] in ("{", "["):
            self._is_held = True
            return "", True
        begin = min((place for mark in _MARKS if (place := text.find(mark)) >= 0), default=-1)
        if begin < 0:
            return text[: len(text) - _begun(text)], True
        if begin > 0:
            return text[:begin], False
        if not text.startswith("```"):
            self._is_held = True
            return "", True
        fence = _FENCE.match(text)
        if fence is None:
            return "", True
        if _CALLS.fullmatch(fence[1]):
            self._is_held = True
            return "", True
        closed = text.find("```", fence.end())  # a block of something else, as a whole
        return (text[: closed + 3], False) if closed >= 0 else ("", True)

    def flush(self) -> tuple[str, tuple[ToolCall, ...]]:
        """The rest of the text, and the calls in it."""
        held, self._held = self._held, ""
        if not self._names:
            return held, ()
        found = parse(held, self._names)
        return (found.text, found.calls) if found.calls else (held, ())


def _begun(text: str) -> int:
    """The number of characters at the end of a text that may begin a mark."""
    return next(
        (n for n in range(min(len(text), 14), 0, -1) if any(mark.startswith(text[-n:]) for mark in _MARKS)), 0
    )
