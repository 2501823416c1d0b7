"""OpenAI's /v1/responses: a conversation goes on by `previous_response_id`, and nothing is read again."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from rwkv_cli.errors import UsageError
from rwkv_cli.sampling_settings import MAX_ANSWER_TOKENS
from rwkv_cli.server.api.content import arguments_of, choice_of, messages_of, text_of
from rwkv_cli.server.chat.answer import Counts
from rwkv_cli.server.chat.messages import Message
from rwkv_cli.server.chat.request import ChatRequest, kept_of, limit_of, sampling_of, think_of
from rwkv_cli.server.chat.tools import Form
from rwkv_cli.server.http import Fields, Stream, api_error, dumps, event, read_fields, while_connected
from rwkv_cli.server.response_store import ResponseStore, Stored, new_id
from rwkv_cli.server.service import Answers, Collected, Service, service_of
from rwkv_cli.text.tool_calls.tools import ToolCall, tools_of


async def responses(request: Request) -> Response:
    """Answer a conversation."""
    fields, service = await read_fields(request), service_of(request)
    previous = fields.text("previous_response_id")
    said = [*(await asyncio.to_thread(service.responses.get, previous)).messages] if previous else []
    said += _input(fields)
    system = fields.text("instructions")
    asked = ChatRequest(
        model=fields.text("model"),
        messages=[*([Message("system", system)] if system else []), *said],
        think=think_of(fields),
        effort=fields.object("reasoning").text("effort"),
        max_tokens=limit_of(fields, "max_output_tokens", default=MAX_ANSWER_TOKENS),
        sampling=sampling_of(fields),
        kept=kept_of(fields, request.headers),
        form=_form_of(fields),
    )
    answers = await while_connected(request, service.answers(request, asked))
    form = _Form(service, answers, fields, said)
    if fields.flag("stream"):
        return Stream(form.events(), answers.close)
    try:
        (found,) = await while_connected(request, answers.collect())
    finally:
        await answers.close()
    return JSONResponse(await form.kept(found))


async def retrieve(request: Request) -> Response:
    """A response that was given before."""
    stored = await asyncio.to_thread(_store(request).get, request.path_params["id"])
    return JSONResponse(stored.body)


async def delete(request: Request) -> Response:
    """Forget a response."""
    key = request.path_params["id"]
    await asyncio.to_thread(_store(request).remove, key)
    return JSONResponse({"id": key, "object": "response", "deleted": True})


def _store(request: Request) -> ResponseStore:
    return service_of(request).responses


def _input(fields: Fields) -> list[Message]:
    """The messages in a body: a text, or a list of items. Raises UsageError."""
    value = fields.get("input")
    if isinstance(value, str):
        return [Message("user", value)]
    if value is None:
        raise UsageError("{input} is missing: it is a text or a list of messages")
    items = [each for each in fields.objects("input") if each.text("type") != "reasoning"]
    talk = list[Message]()
    for n, item in enumerate(items):
        kind = item.text("type") or "message"
        if kind == "message":
            talk += messages_of([item], f"input[{n}]")
        elif kind == "function_call":
            call = ToolCall(item.text("name") or "", arguments_of(item.get("arguments")))
            talk.append(Message("assistant", "", (call,)))
        elif kind == "function_call_output":
            text = text_of(item.get("output"), f"{{input}}[{n}].output")
            talk.append(Message("user", text, is_result=True))
        else:
            raise UsageError(f"{{input}}[{n}] is of the type {kind[:40]!r}, which is not supported")
    return talk


def _form_of(fields: Fields) -> Form:
    """What the answer may and has to look like; a format is in `text`."""
    wanted = fields.object("text").object("format")
    kind = wanted.text("type") or "text"
    response_format = {"type": kind, "json_schema": wanted.values} if kind != "text" else None
    tools = [each.values for each in fields.objects("tools") if each.get("type") == "function"]
    return Form(tools_of(tools) if tools else (), choice_of(fields), {"response_format": response_format})


class _Form:
    """The form of the responses."""

    def __init__(self, service: Service, answers: Answers, fields: Fields, said: Sequence[Message]) -> None:
        self._service, self._answers, self._fields, self._said = service, answers, fields, said
        self._id, self._created = new_id(), int(time.time())
        self._message_id, self._reasoning_id = f"msg_{secrets.token_hex(12)}", f"rs_{secrets.token_hex(12)}"
        self._number = -1

    async def kept(self, found: Collected) -> dict[str, Any]:
        """The whole body, which is kept unless the client does not want that."""
        is_whole = self._answers.all[0].finish != "length"
        body = self._body("completed" if is_whole else "incomplete", self._items(found), self._answers.counts)
        if self._fields.flag("store", True):
            said = (*self._said, Message("assistant", found.answer, found.calls))
            await asyncio.to_thread(self._service.responses.keep, self._id, Stored(said, body))
        return body

    def _body(self, status: str, output: Sequence[object], counts: Counts | None = None) -> dict[str, Any]:
        fields = self._fields
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": fields.get("instructions"),
            "max_output_tokens": fields.get("max_output_tokens"),
            "metadata": fields.get("metadata") or {},
            "model": self._answers.known.name,
            "output": output,
            "parallel_tool_calls": False,
            "previous_response_id": fields.get("previous_response_id"),
            "reasoning": {"effort": fields.object("reasoning").get("effort"), "summary": None},
            "store": fields.flag("store", True),
            "temperature": fields.get("temperature"),
            "text": fields.get("text") or {"format": {"type": "text"}},
            "tool_choice": fields.get("tool_choice") or "auto",
            "tools": fields.get("tools") or [],
            "top_p": fields.get("top_p"),
            "truncation": "disabled",
            "usage": _usage(counts) if counts else None,
        }

    def _items(self, found: Collected) -> list[dict[str, Any]]:
        items = [self._reasoning(found.thought, "completed")] if found.thought else []
        if found.answer or not found.calls:
            items.append(self._message([_part(found.answer)], "completed"))
        return [*items, *(self._call(n, call, "completed") for n, call in enumerate(found.calls))]

    def _call(self, n: int, call: ToolCall, status: str) -> dict[str, Any]:
        key = f"{self._message_id.removeprefix('msg_')}{n}"
        return {
            "id": f"fc_{key}",
            "type": "function_call",
            "status": status,
            "call_id": f"call_{key}",
            "name": call.name,
            "arguments": dumps(call.arguments) if status == "completed" else "",
        }

    def _message(self, content: list[dict[str, Any]], status: str) -> dict[str, Any]:
        return {
            "id": self._message_id,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": content,
        }

    def _reasoning(self, text: str, status: str) -> dict[str, Any]:
        content = [{"type": "reasoning_text", "text": text}] if text else []
        return {
            "id": self._reasoning_id,
            "type": "reasoning",
            "status": status,
            "summary": [],
            "content": content,
        }

    # --- a stream ---------------------------------------------------------------------------------------------------

    async def events(self) -> AsyncIterator[str]:
        """The events of a stream."""
        yield self._event("created", response=self._body("in_progress", []))
        yield self._event("in_progress", response=self._body("in_progress", []))
        found, kind, index = Collected(), "", -1
        try:
            async for _, piece in self._answers.pieces():
                for wanted, text in (("thought", piece.thought), ("answer", piece.answer)) if piece else ():
                    if not text:
                        continue
                    if wanted != kind:
                        for each in self._turned(found, kind, wanted, index):
                            yield each
                        kind, index = wanted, index + 1
                    yield self._delta(kind, index, text)
                if piece:
                    found.add(piece)
            if kind != "answer" and not found.calls:  # there is a message in any case
                for each in self._turned(found, kind, "answer", index):
                    yield each
                kind, index = "answer", index + 1
            for each in self._ended(found, kind, index) if kind else ():
                yield each
            for n, call in enumerate(found.calls):
                for each in self._called(n, call, index + 1 + n):
                    yield each
            body = await self.kept(found)
            yield self._event(body["status"], response=body)
        except Exception as error:
            told = api_error(error)
            body = self._body("failed", []) | {
                "error": {"code": told.code or told.kind, "message": told.message}
            }
            yield self._event("failed", response=body)

    def _event(self, name: str, /, **fields: object) -> str:
        self._number += 1
        kind = f"response.{name}"
        return event({"type": kind, "sequence_number": self._number, **fields}, kind)

    def _delta(self, kind: str, index: int, text: str) -> str:
        if kind == "thought":
            return self._event("reasoning_text.delta", **self._at(kind, index), content_index=0, delta=text)
        return self._event(
            "output_text.delta", **self._at(kind, index), content_index=0, delta=text, logprobs=[]
        )

    def _at(self, kind: str, index: int) -> dict[str, Any]:
        return {
            "item_id": self._reasoning_id if kind == "thought" else self._message_id,
            "output_index": index,
        }

    def _turned(self, found: Collected, kind: str, wanted: str, index: int) -> list[str]:
        """The events by which an item ends and one of another kind begins."""
        events = self._ended(found, kind, index) if kind else []
        at = self._at(wanted, index + 1)
        if wanted == "thought":
            item = self._reasoning("", "in_progress")
            return [*events, self._event("output_item.added", output_index=index + 1, item=item)]
        item = self._message([], "in_progress")
        events.append(self._event("output_item.added", output_index=index + 1, item=item))
        return [*events, self._event("content_part.added", **at, content_index=0, part=_part(""))]

    def _called(self, n: int, call: ToolCall, index: int) -> list[str]:
        """The events of a call."""
        item = self._call(n, call, "completed")
        at = {"item_id": item["id"], "output_index": index}
        begun = self._call(n, call, "in_progress")
        return [
            self._event("output_item.added", output_index=index, item=begun),
            self._event("function_call_arguments.delta", **at, delta=item["arguments"]),
            self._event("function_call_arguments.done", **at, arguments=item["arguments"], name=call.name),
            self._event("output_item.done", output_index=index, item=item),
        ]

    def _ended(self, found: Collected, kind: str, index: int) -> list[str]:
        at = self._at(kind, index)
        if kind == "thought":
            item = self._reasoning(found.thought, "completed")
            done = [self._event("reasoning_text.done", **at, content_index=0, text=found.thought)]
        else:
            item, part = self._message([_part(found.answer)], "completed"), _part(found.answer)
            done = [
                self._event("output_text.done", **at, content_index=0, text=found.answer, logprobs=[]),
                self._event("content_part.done", **at, content_index=0, part=part),
            ]
        return [*done, self._event("output_item.done", output_index=index, item=item)]


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _usage(counts: Counts) -> dict[str, Any]:
    return {
        "input_tokens": counts.prompt,
        "input_tokens_details": {"cached_tokens": counts.cached},
        "output_tokens": counts.generated,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": counts.prompt + counts.generated,
    }
