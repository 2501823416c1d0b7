"""Texts as tokens and back, for evaluation harnesses: /tokenize, /detokenize, /tokenizer_info."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from rwkv_cli.engine.token_ids import check_tokens
from rwkv_cli.errors import UsageError
from rwkv_cli.server.api.content import messages_of
from rwkv_cli.server.api.openai_completions import token_name
from rwkv_cli.server.chat.messages import Writer, dialogue
from rwkv_cli.server.http import Fields, read_fields
from rwkv_cli.server.loaded import Loaded
from rwkv_cli.server.service import service_of
from rwkv_cli.text.tokenizer import Tokenizer

T = TypeVar("T")


async def tokenize(request: Request) -> Response:
    """The tokens of a text, or of messages as the model reads them."""
    fields = await read_fields(request)

    def work(loaded: Loaded) -> list[int]:
        if "messages" in fields:
            writer = Writer(loaded.model, loaded.template, None)
            talk = dialogue(
                messages_of(fields.objects("messages")), has_system=loaded.template.system is not None
            )
            return writer.past(talk) + writer.prompt(talk)
        text = fields.text("prompt") if "prompt" in fields else fields.text("content")
        if text is None:
            raise UsageError("{prompt} is missing: it is the text to be encoded")
        return _tokenizer(loaded).encode(text)

    tokens, _ = await _with_model(request, fields, work)
    return JSONResponse({"tokens": tokens, "count": len(tokens)})


async def detokenize(request: Request) -> Response:
    """The text of tokens."""
    fields = await read_fields(request)
    tokens = fields.get("tokens")
    if not isinstance(tokens, list) or not all(type(each) is int and abs(each) < 2**62 for each in tokens):
        raise UsageError("{tokens} must be a list of token ids")

    def work(loaded: Loaded) -> str:
        if tokens:
            check_tokens(np.asarray(tokens), loaded.model.config.vocab_size)
        return _tokenizer(loaded).decode(tokens)

    text, _ = await _with_model(request, fields, work)
    return JSONResponse({"prompt": text, "content": text})


async def tokenizer_info(request: Request) -> Response:
    """What a harness needs to know of the tokenizer of a model."""
    fields = Fields(dict(request.query_params))
    tokenizer, loaded = await _with_model(request, fields, _tokenizer)
    end = tokenizer.end_of_document
    name = tokenizer.text_of_end or token_name(tokenizer, end)
    return JSONResponse(
        {
            "tokenizer_class": tokenizer.name,
            "model": loaded.name,
            "vocab_size": tokenizer.vocab_size,
            "eos_token": name,
            "eos_token_id": end,
            "bos_token": name,
            "bos_token_id": end,
            "pad_token": name,
            "chat_template": getattr(loaded.template, "jinja", None),
        }
    )


async def _with_model(request: Request, fields: Fields, work: Callable[[Loaded], T]) -> tuple[T, Loaded]:
    """What some work with a model gives, beside the event loop."""
    _, loaded = await service_of(request).models.acquire(fields.text("model"))
    try:
        return await asyncio.to_thread(work, loaded), loaded
    finally:
        loaded.release()


def _tokenizer(loaded: Loaded) -> Tokenizer:
    if loaded.model.tokenizer is None:
        raise UsageError(f"{loaded.name} has no tokenizer")
    return loaded.model.tokenizer
