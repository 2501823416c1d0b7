"""Messages as APIs write them: texts, or lists of parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rwkv_cli.errors import UsageError
from rwkv_cli.server.chat.messages import Message, Role
from rwkv_cli.server.http import Fields

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
    return [
        Message(role_of(fields, name), text_of(fields.get("content"), f"{{{name}}}[{n}].content"))
        for n, fields in enumerate(all_fields)
    ]
