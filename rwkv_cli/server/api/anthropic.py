"""Anthropic's /v1/messages."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from rwkv_cli.errors import UsageError
from rwkv_cli.server.api.content import arguments_of, role_of, text_of
from rwkv_cli.server.chat.answer import Counts, prepare
from rwkv_cli.server.chat.messages import Message
from rwkv_cli.server.chat.request import ChatRequest, kept_of, sampling_of, stops_of
from rwkv_cli.server.chat.tools import Form
from rwkv_cli.server.http import (
    Fields,
    Stream,
    api_error,
    dumps,
    error_body,
    event,
    read_fields,
    while_connected,
)
from rwkv_cli.server.service import Answers, Collected, service_of
from rwkv_cli.text.tool_calls.tools import ToolCall, tools_of


async def messages(request: Request) -> Response:
    """Answer a conversation."""
    fields = await read_fields(request)
    if (limit := fields.integer("max_tokens", 1)) is None:
        raise UsageError("{max_tokens} is missing: it is the most tokens of the answer")
    asked = _asked(fields, request, limit)
    answers = await while_connected(
        request, service_of(request).answers(request, asked, 1, fields.text("template"))
    )
    form = _Form(answers)
    if fields.flag("stream"):
        return Stream(_guarded(form.events(), request), answers.close)
    try:
        (found,) = await while_connected(request, answers.collect())
    finally:
        await answers.close()
    return JSONResponse(form.whole(found))


async def count_tokens(request: Request) -> Response:
    """How many tokens a conversation has."""
    service, asked = service_of(request), _asked(await read_fields(request), request, 1)
    known, loaded = await service.models.acquire(asked.model)
    try:
        prepared = await asyncio.to_thread(prepare, loaded, known, asked, None)
    finally:
        loaded.release()
    return JSONResponse({"input_tokens": len(prepared.tokens) - len(prepared.place.mark)})


def _asked(fields: Fields, request: Request, limit: int) -> ChatRequest:
    system = text_of(fields.get("system"), "{system}")
    before = [Message("system", system)] if system else []
    thinking = fields.object("thinking").text("type")
    return ChatRequest(
        model=fields.text("model"),
        messages=[*before, *_messages(fields.objects("messages"))],
        effort={"enabled": "medium", "adaptive": "medium", "disabled": "none"}.get(thinking or ""),
        max_tokens=limit,
        stop=stops_of(fields, "stop_sequences"),
        sampling=sampling_of(fields),
        kept=kept_of(fields, request.headers),
        form=_form(fields),
    )


def _messages(all_fields: Sequence[Fields]) -> list[Message]:
    """Messages whose parts may be calls of tools, and their results. Raises UsageError."""
    talk = list[Message]()
    for n, fields in enumerate(all_fields):
        content, role = fields.get("content"), role_of(fields, "messages")
        parts = content if isinstance(content, list) else []
        named = {
            kind: [each for each in parts if _kind(each) == kind] for kind in ("tool_use", "tool_result")
        }
        where = f"{{messages}}[{n}].content"
        for part in named["tool_result"]:
            talk.append(Message("user", text_of(part.get("content"), where), is_result=True))
        rest = [each for each in parts if _kind(each) not in named] if parts else content
        calls = tuple(
            ToolCall(str(each.get("name")), arguments_of(each.get("input"))) for each in named["tool_use"]
        )
        if rest or calls or not parts:
            talk.append(Message(role, text_of(rest, where), calls))
    return talk


def _kind(part: object) -> object:
    return part.get("type") if isinstance(part, dict) else None


def _form(fields: Fields) -> Form:
    """Tools in Anthropic's form; those that run at Anthropic's are left out."""
    described = [
        {
            "name": each.get("name"),
            "description": each.get("description"),
            "parameters": each.get("input_schema"),
        }
        for each in fields.objects("tools")
        if "input_schema" in each
    ]
    choice = fields.object("tool_choice")
    kind = choice.text("type") or "auto"
    wanted = {"any": "required", "tool": choice.text("name") or ""}.get(kind, kind)
    return Form(tools_of(described), wanted) if described else Form()


async def _guarded(events: AsyncIterator[str], request: Request) -> AsyncIterator[str]:
    try:
        async for each in events:
            yield each
    except Exception as error:
        yield event(error_body(request.url.path, api_error(error)), "error")


class _Form:
    """The form of the answers."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self._id = f"msg_{secrets.token_hex(12)}"

    def _message(
        self, content: list[dict[str, Any]], stop: str | None, usage: dict[str, int]
    ) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._answers.known.name,
            "content": content,
            "stop_reason": stop,
            "stop_sequence": None,
            "usage": usage,
        }

    def whole(self, found: Collected) -> dict[str, Any]:
        """The body of a response that is not a stream."""
        content = list[dict[str, Any]]()
        if found.thought:
            content.append({"type": "thinking", "thinking": found.thought, "signature": ""})
        if found.answer or not found.calls:
            content.append({"type": "text", "text": found.answer})
        content += [_tool_use(call) for call in found.calls]
        return self._message(content, self._stop_reason, _usage(self._answers.counts))

    async def events(self) -> AsyncIterator[str]:
        """The events of a stream."""
        start = self._message([], None, _usage(self._answers.counts) | {"output_tokens": 0})
        yield event({"type": "message_start", "message": start}, "message_start")
        yield event({"type": "ping"}, "ping")
        index, kind = -1, ""
        async for _, piece in self._answers.pieces():
            parts = (("thinking", piece.thought), ("text", piece.answer)) if piece else ()
            for wanted, text in parts:
                if not text:
                    continue
                if wanted != kind:
                    for each in _turned(index, kind, wanted):
                        yield each
                    index, kind = index + 1, wanted
                delta = {"type": f"{kind}_delta", kind: text}
                yield _block("content_block_delta", index, delta=delta)
        if index < 0 and not self._answers.all[0].calls:
            for each in _turned(index, kind, "text"):
                yield each
            index = 0
        if index >= 0:
            yield _block("content_block_stop", index)
        for call in self._answers.all[0].calls:
            index += 1
            for each in _called(call, index):
                yield each
        ended = {"stop_reason": self._stop_reason, "stop_sequence": None}
        usage = _usage(self._answers.counts)
        yield event({"type": "message_delta", "delta": ended, "usage": usage}, "message_delta")
        yield event({"type": "message_stop"}, "message_stop")

    @property
    def _stop_reason(self) -> str:
        if self._answers.all[0].calls:
            return "tool_use"
        return "max_tokens" if self._answers.all[0].finish == "length" else "end_turn"


def _turned(index: int, kind: str, wanted: str) -> list[str]:
    """The events by which a block ends and one of another kind begins."""
    ended = [_block("content_block_stop", index)] if kind else []
    block = (
        {"type": "text", "text": ""}
        if wanted == "text"
        else {"type": "thinking", "thinking": "", "signature": ""}
    )
    return [*ended, _block("content_block_start", index + 1, content_block=block)]


def _tool_use(call: ToolCall) -> dict[str, Any]:
    return {
        "type": "tool_use",
        "id": f"toolu_{secrets.token_hex(12)}",
        "name": call.name,
        "input": call.arguments,
    }


def _called(call: ToolCall, index: int) -> list[str]:
    """The events of a call."""
    whole = _tool_use(call)
    delta = {"type": "input_json_delta", "partial_json": dumps(whole["input"])}
    return [
        _block("content_block_start", index, content_block={**whole, "input": {}}),
        _block("content_block_delta", index, delta=delta),
        _block("content_block_stop", index),
    ]


def _block(name: str, index: int, **fields: object) -> str:
    return event({"type": name, "index": index, **fields}, name)


def _usage(counts: Counts) -> dict[str, int]:
    return {
        "input_tokens": counts.prompt - counts.cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": counts.cached,
        "output_tokens": counts.generated,
    }
