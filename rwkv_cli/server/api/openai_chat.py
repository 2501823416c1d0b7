"""OpenAI's /v1/chat/completions."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from rwkv_cli.sampling_settings import MAX_ANSWER_TOKENS
from rwkv_cli.server.api.content import form_of, messages_of
from rwkv_cli.server.chat.answer import Counts, Piece
from rwkv_cli.server.chat.request import (
    MOST_LIKELY,
    ChatRequest,
    count_of,
    kept_of,
    limit_of,
    sampling_of,
    stops_of,
    think_of,
)
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
from rwkv_cli.server.worker import Token
from rwkv_cli.text.tokenizer import Tokenizer
from rwkv_cli.text.tool_calls.tools import ToolCall

DONE = "data: [DONE]\n\n"


async def chat_completions(request: Request) -> Response:
    """Answer a conversation."""
    fields = await read_fields(request)
    asked = chat_request(fields, request)
    answers = await while_connected(
        request,
        service_of(request).answers(request, asked, count_of(fields), fields.text("template")),
    )
    form = _Form(answers, asked)
    if fields.flag("stream"):
        usage = fields.object("stream_options").flag("include_usage")
        return Stream(guarded(form.events(usage), request), answers.close)
    try:
        found = await while_connected(request, answers.collect())
    finally:
        await answers.close()
    return JSONResponse(form.whole(found))


def chat_request(fields: Fields, request: Request) -> ChatRequest:
    """What a body of OpenAI's chat asks for. Raises UsageError."""
    top = fields.integer("top_logprobs", 0, MOST_LIKELY) or 0
    return ChatRequest(
        model=fields.text("model"),
        messages=messages_of(fields.objects("messages")),
        think=think_of(fields),
        effort=fields.text("reasoning_effort") or fields.object("reasoning").text("effort"),
        max_tokens=limit_of(fields, "max_completion_tokens", "max_tokens", default=MAX_ANSWER_TOKENS),
        stop=stops_of(fields),
        sampling=sampling_of(fields),
        logprobs=fields.flag("logprobs"),
        top=top if fields.flag("logprobs") else 0,
        kept=kept_of(fields, request.headers),
        form=form_of(fields),
    )


async def guarded(events: AsyncIterator[str], request: Request) -> AsyncIterator[str]:
    """Events whose failure is one more event: the status of the response was sent long ago."""
    try:
        async for each in events:
            yield each
    except Exception as error:
        yield event(error_body(request.url.path, api_error(error)))
        yield DONE


def head_of(kind: str, prefix: str, model: str) -> dict[str, Any]:
    """What an answer and all its chunks begin with; its id begins with a prefix."""
    return {
        "id": f"{prefix}-{secrets.token_hex(12)}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
    }


class Chunks:
    """The chunks of a stream, as server-sent events: each with one choice, the last one with the usage."""

    def __init__(self, head: dict[str, Any], with_usage: bool) -> None:
        self._before = f"data: {dumps(head)[:-1]},"
        self._after = ',"usage":null}\n\n' if with_usage else "}\n\n"
        self._with_usage = with_usage

    def of(self, choice: object) -> str:
        """The chunk of a choice."""
        return f'{self._before}"choices":[{dumps(choice)}]{self._after}'

    def end(self, counts: Counts) -> str:
        """The usage, if it is wanted, and the end of the stream."""
        if not self._with_usage:
            return DONE
        return f'{self._before}"choices":[],"usage":{dumps(usage_of(counts))}}}\n\n{DONE}'


class _Form:
    """The form of OpenAI's answers."""

    def __init__(self, answers: Answers, asked: ChatRequest) -> None:
        self._answers, self._asked = answers, asked
        self._tokenizer = answers.loaded.model.tokenizer
        self._head = head_of("chat.completion.chunk", "chatcmpl", answers.known.name)

    async def events(self, with_usage: bool) -> AsyncIterator[str]:
        """The chunks of a stream, as server-sent events."""
        chunks = Chunks(self._head, with_usage)

        def chunk(index: int, delta: object, finish: str | None = None, logprobs: object = None) -> str:
            choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
            return chunks.of(choice)

        for index in range(len(self._answers.all)):
            yield chunk(index, {"role": "assistant", "content": ""})
        async for index, piece in self._answers.pieces():
            if piece is None:
                yield chunk(index, {}, self._finish(index))
                continue
            if piece.answer or piece.thought or piece.tokens:
                yield chunk(index, _delta(piece), None, self._logprobs(piece.tokens))
            for delta in _call_deltas(piece.calls):
                yield chunk(index, delta)
        yield chunks.end(self._answers.counts)

    def whole(self, found: Sequence[Collected]) -> dict[str, Any]:
        """The body of a response that is not a stream."""
        choices = [
            {
                "index": index,
                "message": _message(each),
                "logprobs": self._logprobs(each.tokens),
                "finish_reason": self._finish(index),
            }
            for index, each in enumerate(found)
        ]
        head = {**self._head, "object": "chat.completion"}
        return {**head, "choices": choices, "usage": usage_of(self._answers.counts)}

    def _finish(self, index: int) -> str:
        answer = self._answers.all[index]
        return "tool_calls" if answer.calls else finish_of(answer.finish)

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if not self._asked.logprobs or self._tokenizer is None:
            return None
        return {"content": [_entry(self._tokenizer, token) for token in tokens], "refusal": None}


def _delta(piece: Piece) -> dict[str, str]:
    delta = {"reasoning_content": piece.thought} if piece.thought else {}
    return {**delta, "content": piece.answer} if piece.answer or not delta else delta


def _message(found: Collected) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": found.answer, "refusal": None}
    if found.calls:
        message |= {"content": found.answer or None, "tool_calls": [_call(each) for each in found.calls]}
    return {**message, "reasoning_content": found.thought} if found.thought else message


def _call(call: ToolCall) -> dict[str, Any]:
    return {"id": new_call_id(), **call.to_json()}


def new_call_id() -> str:
    """An id of a call, by which its result refers to it."""
    return f"call_{secrets.token_hex(12)}"


def _call_deltas(calls: Sequence[ToolCall]) -> Iterator[dict[str, Any]]:
    """Calls as a stream has them: first the name, then the arguments."""
    for index, call in enumerate(calls):
        whole = _call(call)
        function = {"name": call.name, "arguments": ""}
        yield {"tool_calls": [{"index": index, **whole, "function": function}]}
        arguments = {"arguments": whole["function"]["arguments"]}
        yield {"tool_calls": [{"index": index, "function": arguments}]}


def finish_of(finish: str | None) -> str:
    """Why an answer ended, in OpenAI's words."""
    return "length" if finish == "length" else "stop"


def usage_of(counts: Counts) -> dict[str, Any]:
    """Counts of tokens in OpenAI's form."""
    return {
        "prompt_tokens": counts.prompt,
        "completion_tokens": counts.generated,
        "total_tokens": counts.prompt + counts.generated,
        "prompt_tokens_details": {"cached_tokens": counts.cached},
        "completion_tokens_details": {"reasoning_tokens": counts.thought},
    }


def _entry(tokenizer: Tokenizer, token: Token) -> dict[str, Any]:
    top = [_likely(tokenizer, each, logprob) for each, logprob in token.top]
    return {**_likely(tokenizer, token.id, token.logprob), "top_logprobs": top}


def _likely(tokenizer: Tokenizer, token: int, logprob: float) -> dict[str, Any]:
    data = tokenizer.token_bytes(token)
    return {"token": data.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(data)}
