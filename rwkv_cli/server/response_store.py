"""Responses of OpenAI's newer API by their ids: what was said up to each, for `previous_response_id`."""

from __future__ import annotations

import contextlib
import json
import re
import secrets
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rwkv_cli import paths
from rwkv_cli.errors import StorageError
from rwkv_cli.files.atomic import replacing
from rwkv_cli.server.chat.messages import Message
from rwkv_cli.server.http import ApiError
from rwkv_cli.text.tool_calls.tools import ToolCall

MOST = 10_000
"""Responses that are kept; their texts are small, and the states are in the turn cache."""

_IN_MEMORY = 1000
_ID = re.compile(r"resp_[0-9a-f]{32}")


@dataclass(frozen=True)
class Stored:
    """A response, and all messages up to it."""

    messages: tuple[Message, ...]  # with the answer, without a system prompt
    body: dict[str, Any]


def new_id() -> str:
    """An id that nobody can guess."""
    return f"resp_{secrets.token_hex(16)}"


class ResponseStore:
    """Responses in memory and on disk; what cannot be written is kept in memory alone."""

    def __init__(self) -> None:
        self._memory = OrderedDict[str, Stored]()

    def keep(self, key: str, stored: Stored) -> None:
        """Keep a response."""
        self._remember(key, stored)
        messages = [_fields(each) for each in stored.messages]
        text = json.dumps({"messages": messages, "body": stored.body})
        with contextlib.suppress(OSError, StorageError):
            _folder().mkdir(mode=0o700, parents=True, exist_ok=True)
            with replacing(_path(key), private=True) as file:
                file.write_text(text, encoding="utf-8")
            self._make_room()

    def get(self, key: str) -> Stored:
        """A response. Raises ApiError 404 for one that is not here."""
        if stored := self._memory.get(key):
            self._memory.move_to_end(key)
            return stored
        if _ID.fullmatch(key):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                fields = json.loads(_path(key).read_bytes())
                stored = Stored(tuple(map(_message, fields["messages"])), fields["body"])
                self._remember(key, stored)
                return stored
        raise ApiError(404, f"there is no response {key[:60]!r}", "not_found", param="previous_response_id")

    def remove(self, key: str) -> None:
        """Forget a response. Raises ApiError like `get`."""
        self.get(key)
        del self._memory[key]
        with contextlib.suppress(OSError):
            _path(key).unlink(missing_ok=True)

    def _remember(self, key: str, stored: Stored) -> None:
        self._memory[key] = stored
        while len(self._memory) > _IN_MEMORY:
            self._memory.popitem(last=False)

    @staticmethod
    def _make_room() -> None:
        files = [*_folder().glob("*.json")]
        if len(files) > MOST:
            files.sort(key=lambda file: file.stat().st_mtime)
            for file in files[: len(files) - MOST]:
                file.unlink(missing_ok=True)


def _fields(message: Message) -> list[Any]:
    calls = [[call.name, call.arguments] for call in message.calls]
    return [message.role, message.text, calls, message.is_result]


def _message(fields: list[Any]) -> Message:
    role, text, calls, is_result = fields
    return Message(role, text, tuple(ToolCall(*each) for each in calls), is_result)


def _folder() -> Path:
    return paths.cache_folder() / "responses"


def _path(key: str) -> Path:
    return _folder() / f"{key}.json"
