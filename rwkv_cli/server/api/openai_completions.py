"""OpenAI's /v1/completions, with what evaluation harnesses need: token lists, `echo`, `logprobs`."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from rwkv_cli.errors import UsageError
from rwkv_cli.server.api.content import form_of
from rwkv_cli.server.api.openai_chat import Chunks, finish_of, guarded, head_of, usage_of
from rwkv_cli.server.chat.completion import Completion, CompletionRequest
from rwkv_cli.server.chat.request import MOST_LIKELY, count_of, kept_of, limit_of, sampling_of, stops_of
from rwkv_cli.server.http import Fields, Stream, read_fields, while_connected
from rwkv_cli.server.service import Answers, service_of
from rwkv_cli.server.worker import Token
from rwkv_cli.text.tokenizer import Tokenizer

DEFAULT_TOKENS = 16
"""OpenAI's."""

MOST_PROMPTS = 512


async def completions(request: Request) -> Response:
    """Continue texts."""
    fields = await read_fields(request)
    if fields.text("suffix"):
        raise UsageError("{suffix} is not supported: the model continues texts, and does not fill them in")
    asked = CompletionRequest(
        model=fields.text("model"),
        prompts=prompts_of(fields),
        max_tokens=limit_of(fields, "max_tokens", default=DEFAULT_TOKENS),
        stop=stops_of(fields),
        sampling=sampling_of(fields),
        top=None if fields.get("logprobs") in (None, False) else fields.integer("logprobs", 0, MOST_LIKELY),
        echo=fields.flag("echo"),
        kept=kept_of(fields, {}),
        form=form_of(fields),
    )
    n = count_of(fields)
    answers = await while_connected(request, service_of(request).completions(request, asked, n))
    form = _Form(answers, asked)
    if fields.flag("stream"):
        usage = fields.object("stream_options").flag("include_usage")
        return Stream(guarded(form.events(usage), request), answers.close)
    try:
        choices = await while_connected(request, form.choices())
    finally:
        await answers.close()
    return JSONResponse({**form.head, "choices": choices, "usage": usage_of(answers.counts)})


def prompts_of(fields: Fields) -> list[str | Sequence[int]]:
    """The prompts: a text, tokens, or a list of either. Raises UsageError."""
    value = fields.get("prompt")
    if value is None or value == "":
        return [""]
    if isinstance(value, str) or (isinstance(value, list) and _are_tokens(value)):
        return [value]
    if not isinstance(value, list) or not value:
        raise UsageError("{prompt} must be a text, a list of tokens, or a list of either")
    if len(value) > MOST_PROMPTS:
        raise UsageError(f"{{prompt}} has {len(value):,} texts; {MOST_PROMPTS} are allowed")
    for each in value:
        if not (isinstance(each, str) or (isinstance(each, list) and _are_tokens(each))):
            raise UsageError("{prompt} must be a text, a list of tokens, or a list of either")
    return value


def _are_tokens(value: list[Any]) -> bool:
    return bool(value) and all(type(each) is int and abs(each) < 2**62 for each in value)


class _Form:
    """The form of the answers."""

    def __init__(self, answers: Answers, asked: CompletionRequest) -> None:
        self._answers, self._asked = answers, asked
        self._tokenizer = answers.loaded.model.tokenizer
        self.head = head_of("text_completion", "cmpl", answers.known.name)

    async def choices(self) -> list[dict[str, Any]]:
        """All choices, once they are complete."""
        found = await self._answers.collect()
        return [
            self._choice(index, self._echo(index) + each.answer, [*self._echoed(index), *each.tokens])
            for index, each in enumerate(found)
        ]

    async def events(self, with_usage: bool) -> AsyncIterator[str]:
        """The chunks of a stream, as server-sent events."""
        chunks = Chunks(self.head, with_usage)
        offsets = [0] * len(self._answers.all)

        def chunk(index: int, text: str, tokens: Sequence[Token], *, is_last: bool = False) -> str:
            choice = self._choice(index, text, tokens, offsets[index], is_last=is_last)
            offsets[index] += len(text)
            return chunks.of(choice)

        for index in range(len(offsets)):
            if text := self._echo(index):
                yield chunk(index, text, self._echoed(index))
        async for index, piece in self._answers.pieces():
            if piece is None:
                yield chunk(index, "", (), is_last=True)
            elif piece.answer or self._asked.top is not None:
                yield chunk(index, piece.answer, piece.tokens)
        yield chunks.end(self._answers.counts)

    def _echo(self, index: int) -> str:
        answer = self._answers.all[index]
        return answer.prompt_text if self._asked.echo and isinstance(answer, Completion) else ""

    def _echoed(self, index: int) -> Sequence[Token]:
        answer = self._answers.all[index]
        return answer.echoed if isinstance(answer, Completion) else ()

    def _choice(
        self, index: int, text: str, tokens: Sequence[Token], offset: int = 0, *, is_last: bool = True
    ) -> dict[str, Any]:
        finish = finish_of(self._answers.all[index].finish) if is_last else None
        logprobs = None
        if self._asked.top is not None and self._tokenizer:
            logprobs = _logprobs(self._tokenizer, tokens, offset)
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}


def _logprobs(tokenizer: Tokenizer, tokens: Sequence[Token], offset: int) -> dict[str, Any]:
    names = [token_name(tokenizer, token.id) for token in tokens]
    offsets = list[int]()
    for token in tokens:
        offsets.append(offset)
        offset += len(tokenizer.token_bytes(token.id).decode("utf-8", "ignore"))
    return {
        "tokens": names,
        "token_logprobs": [None if math.isnan(token.logprob) else token.logprob for token in tokens],
        "top_logprobs": [_top(tokenizer, token) for token in tokens],
        "text_offset": offsets,
    }


def _top(tokenizer: Tokenizer, token: Token) -> dict[str, float] | None:
    """The most likely tokens and the one that came, by their texts; None where nothing came before."""
    if math.isnan(token.logprob):
        return None
    top = {token_name(tokenizer, each): logprob for each, logprob in token.top}
    return {**top, token_name(tokenizer, token.id): token.logprob}


def token_name(tokenizer: Tokenizer, token: int) -> str:
    """The text of a token; of one that is no text by itself, its bytes or its number: every token has another name."""
    data = tokenizer.token_bytes(token)
    if not data:
        return f"<|{token}|>"
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
