"""Messages as APIs write them: texts, or lists of parts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rwkv_cli.engine.constraints.requests import FIELDS
from rwkv_cli.errors import UsageError
from rwkv_cli.server.chat.messages import Message, Role
from rwkv_cli.server.chat.tools import Form
from rwkv_cli.server.http import Fields
from rwkv_cli.text.tool_calls.tools import Tool, ToolCall, tools_of

MOST_MESSAGES = 10_000
_ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "tool": "user",
    "function": "user",
    "assistant": "assistant",
}
_TEXTS = ("text", "input_text", "output_text", "refusal")


def text_of(content: Any, where: str) -> str:
    """The text of a message's content: a text, or a list of parts. Raises UsageError for images and sounds."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise UsageError(f"{where} must be a text or a list of parts")
    texts = list[str]()
    for part in content:
        if isinstance(part, str):
            texts.append(part)
            continue
        kind = part.get("type", "text") if isinstance(part, dict) else None
        if kind in ("thinking", "redacted_thinking", "reasoning"):
            continue
        text = part.get("text", part.get("refusal")) if isinstance(part, dict) else None
        if kind not in _TEXTS or not isinstance(text, str):
            raise UsageError(f"{where} has a part of the type {str(kind)[:40]!r}: this model reads text only")
        texts.append(text)
    return "\n".join(texts)


def role_of(fields: Fields, where: str) -> Role:
    """Who says a message. Raises UsageError for an unknown role."""
    role = fields.text("role") or ""
    if role not in _ROLES:
        raise UsageError(f"{{{where}}} has the role {role[:40]!r}: there are {', '.join(_ROLES)}")
    return _ROLES[role]


def messages_of(all_fields: Sequence[Fields], name: str = "messages") -> list[Message]:
    """The messages of a chat in OpenAI's or ollama's form. Raises UsageError."""
    if len(all_fields) > MOST_MESSAGES:
        raise UsageError(f"{{{name}}} has {len(all_fields):,} messages; {MOST_MESSAGES:,} are allowed")
    return [_message(fields, name, n) for n, fields in enumerate(all_fields)]


def _message(fields: Fields, name: str, n: int) -> Message:
    text = text_of(fields.get("content"), f"{{{name}}}[{n}].content")
    role = role_of(fields, name)
    calls = tuple(_call(each) for each in fields.objects("tool_calls")) if role == "assistant" else ()
    return Message(role, text, calls, is_result=fields.get("role") in ("tool", "function"))


def _call(fields: Fields) -> ToolCall:
    """A call that a model made before, as a client sends it back."""
    function = fields.object("function")
    return ToolCall(function.text("name") or "", arguments_of(function.get("arguments")))


def arguments_of(value: Any) -> Mapping[str, Any]:
    """The arguments of a call: an object, or a text of JSON. Raises UsageError."""
    try:
        found = json.loads(value) if isinstance(value, str) and value.strip() else value or {}
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UsageError("the arguments of a tool call must be a JSON object")
    return found


def tools_in(fields: Fields) -> tuple[Tool, ...]:
    """The tools in a body; those that are no functions, which run at OpenAI's, are refused. Raises UsageError."""
    return tools_of(fields.get("tools")) if fields.get("tools") else ()


def choice_of(fields: Fields) -> str:
    """Which tool to call: auto, none, required or a name. Raises UsageError."""
    value = fields.get("tool_choice")
    if isinstance(value, dict):
        inner = value.get("function", value)
        value = inner.get("name") if isinstance(inner, dict) else None
    if value is not None and not isinstance(value, str):
        raise UsageError("{tool_choice} must be auto, none, required or a function")
    return value or "auto"


def form_of(fields: Fields) -> Form:
    """What an answer may and has to look like, in OpenAI's words and ours. Raises UsageError."""
    return Form(tools_in(fields), choice_of(fields), {name: fields.get(name) for name in FIELDS})
