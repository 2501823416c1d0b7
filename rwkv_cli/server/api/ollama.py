"""ollama's API: /api/chat, /api/generate and what clients ask about models."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from rwkv_cli import __version__
from rwkv_cli.errors import UsageError
from rwkv_cli.files.model_file import ModelFile, is_model_file
from rwkv_cli.reporting import format_count
from rwkv_cli.sampling_settings import MAX_ANSWER_TOKENS, SamplingOverrides
from rwkv_cli.server.api.content import messages_of, tools_in
from rwkv_cli.server.chat.answer import Counts, Piece
from rwkv_cli.server.chat.completion import CompletionRequest
from rwkv_cli.server.chat.messages import Message
from rwkv_cli.server.chat.request import ChatRequest, kept_of, sampling_of, stops_of, think_of
from rwkv_cli.server.chat.tools import Form
from rwkv_cli.server.http import Fields, Stream, api_error, dumps, error_body, read_fields, while_connected
from rwkv_cli.server.loaded import Known, Loaded
from rwkv_cli.server.service import Answers, Collected, service_of

_BILLION = 1_000_000_000


async def chat(request: Request) -> Response:
    """Answer a conversation."""
    fields = await read_fields(request)
    messages = messages_of(fields.objects("messages"))
    if not messages:
        return await _load(request, fields, {"message": {"role": "assistant", "content": ""}})
    options = fields.object("options")
    asked = _chat_request(fields, options, messages, request)
    answers = await while_connected(request, service_of(request).answers(request, asked))
    return await _respond(request, fields, answers, _chat_piece)


async def generate(request: Request) -> Response:
    """Answer a prompt: as the first turn of a conversation, or, if it is raw, by continuing it."""
    fields = await read_fields(request)
    prompt = fields.text("prompt") or ""
    if not prompt:
        return await _load(request, fields, {"response": ""})
    options, service = fields.object("options"), service_of(request)
    if fields.flag("raw"):
        asked = CompletionRequest(
            model=fields.text("model"),
            prompts=[prompt],
            max_tokens=_limit(options),
            stop=stops_of(options),
            sampling=_sampling(options),
            kept=kept_of(fields, {}),
        )
        answers = await while_connected(request, service.completions(request, asked))
        return await _respond(request, fields, answers, _text_piece)
    before = [Message("system", system)] if (system := fields.text("system")) else []
    talk = [*before, *_remembered(fields), Message("user", prompt)]
    answers = await while_connected(
        request, service.answers(request, _chat_request(fields, options, talk, request))
    )
    return await _respond(request, fields, answers, _text_piece, [*talk])


def _chat_request(fields: Fields, options: Fields, messages: list[Message], request: Request) -> ChatRequest:
    return ChatRequest(
        model=fields.text("model"),
        messages=messages,
        think=think if isinstance(think := think_of(fields), str) or not think else None,
        effort="medium" if think else None,
        max_tokens=_limit(options),
        stop=stops_of(options),
        sampling=_sampling(options),
        kept=kept_of(fields, request.headers),
        form=_form(fields),
    )


def _form(fields: Fields) -> Form:
    """ollama's `format` is "json" or a schema."""
    wanted = fields.get("format")
    if wanted in (None, ""):
        return Form(tools_in(fields))
    if wanted == "json":
        return Form(tools_in(fields), fields={"json_object": True})
    if not isinstance(wanted, dict):
        raise UsageError("{format} must be json or a JSON Schema")
    return Form(tools_in(fields), fields={"json_schema": wanted})


def _limit(options: Fields) -> int:
    """ollama has -1 for no limit, and -2 for as much as its context has room for."""
    limit = options.integer("num_predict")
    return MAX_ANSWER_TOKENS if limit is None else max(limit, -1)


def _sampling(options: Fields) -> SamplingOverrides:
    """ollama has OpenAI's names, and a seed of -1 for none."""
    values = {name: value for name, value in options.values.items() if not (name == "seed" and value == -1)}
    return sampling_of(Fields(values, " in {options}"))


# ----------------------------------------------------------------------------------------------------------- context
# What ollama calls a context is a list of numbers that a client sends back to go on. Here these are the characters of
# what was said, which is recognised by its tokens.

_MARKS = {"system": 0x110000, "user": 0x110001, "assistant": 0x110002}
_ROLES = {mark: role for role, mark in _MARKS.items()}


def _context(talk: list[Message], answer: str) -> list[int]:
    numbers = list[int]()
    for message in (*talk, Message("assistant", answer)):
        numbers += [_MARKS[message.role], *map(ord, message.text)]
    return numbers


def _remembered(fields: Fields) -> list[Message]:
    numbers = fields.get("context")
    if not numbers:
        return []
    if not isinstance(numbers, list) or not all(
        type(each) is int and 0 <= each <= 0x110002 for each in numbers
    ):
        raise UsageError("{context} must be one that this server gave")
    talk = list[Message]()
    for number in numbers:
        if role := _ROLES.get(number):
            talk.append(Message(role, ""))  # type: ignore[arg-type]
        elif talk:
            talk[-1] = Message(talk[-1].role, talk[-1].text + chr(number))
        else:
            raise UsageError("{context} must be one that this server gave")
    return talk


# --------------------------------------------------------------------------------------------------------- responses


def _chat_piece(found: Piece | Collected) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": found.answer}
    if found.thought:
        message["thinking"] = found.thought
    if found.calls:
        calls = [{"function": {"name": each.name, "arguments": each.arguments}} for each in found.calls]
        message["tool_calls"] = calls
    return {"message": message}


def _text_piece(found: Piece | Collected) -> dict[str, Any]:
    return (
        {"response": found.answer, "thinking": found.thought} if found.thought else {"response": found.answer}
    )


async def _respond(
    request: Request, fields: Fields, answers: Answers, piece_of: Any, talk: list[Message] | None = None
) -> Response:
    """Lines of JSON as they come or, if no stream is wanted, one."""
    name = answers.known.name
    if not fields.flag("stream", True):
        try:
            (found,) = await while_connected(request, answers.collect())
        finally:
            await answers.close()
        body = {**_head(name), **piece_of(found), **_end(answers)}
        return JSONResponse({**body, "context": _context(talk, found.answer)} if talk else body)

    async def lines() -> AsyncIterator[str]:
        whole = ""
        try:
            async for _, piece in answers.pieces():
                if piece:
                    whole += piece.answer
                    yield (dumps({**_head(name), **piece_of(piece), "done": False}) + "\n")
            last = {**_head(name), **piece_of(Piece()), **_end(answers)}
            yield dumps({**last, "context": _context(talk, whole)} if talk else last) + "\n"
        except Exception as error:
            yield dumps(error_body(request.url.path, api_error(error))) + "\n"

    return Stream(lines(), answers.close, "application/x-ndjson")


def _head(model: str) -> dict[str, Any]:
    return {"model": model, "created_at": datetime.now(UTC).isoformat().replace("+00:00", "Z")}


def _end(answers: Answers) -> dict[str, Any]:
    counts: Counts = answers.counts
    return {
        "done": True,
        "done_reason": "length" if answers.all[0].finish == "length" else "stop",
        "total_duration": int(counts.seconds * _BILLION),
        "load_duration": 0,
        "prompt_eval_count": counts.prompt,
        "prompt_eval_duration": int(counts.prefill_seconds * _BILLION),
        "eval_count": counts.generated,
        "eval_duration": int(counts.decode_seconds * _BILLION),
    }


async def _load(request: Request, fields: Fields, empty: dict[str, Any]) -> Response:
    """Nothing to answer: the model is loaded or, if it is to be kept for no time, unloaded."""
    models = service_of(request).models
    known, loaded = await models.acquire(fields.text("model"))
    loaded.release()
    reason = "load"
    if fields.get("keep_alive") in (0, "0", "0s") and not loaded.users:
        await models.unload(loaded)
        reason = "unload"
    return JSONResponse({**_head(known.name), **empty, "done": True, "done_reason": reason})


# ------------------------------------------------------------------------------------------------------------ models


async def tags(request: Request) -> Response:
    """All models."""
    models = service_of(request).models
    found = await asyncio.to_thread(lambda: [_listed(each) for each in models.listed()])
    return JSONResponse({"models": found})


async def ps(request: Request) -> Response:
    """The models that are loaded."""
    models = service_of(request).models
    loaded = {id(each): each for each in models.loaded}.values()
    known = {each.path: each for each in models.listed() if not each.state}
    found = [
        _listed(known[each.model.path]) | {"size_vram": 0, "expires_at": _later(each)} for each in loaded
    ]
    return JSONResponse({"models": found})


async def show(request: Request) -> Response:
    """What a model is."""
    fields = await read_fields(request)
    models = service_of(request).models
    known = await asyncio.to_thread(models.find, fields.text("model") or fields.text("name"))
    listed = await asyncio.to_thread(_listed, known)
    _, loaded = await models.acquire(known.name)
    loaded.release()
    config, template = loaded.model.config, loaded.template
    return JSONResponse(
        {
            "modelfile": f"FROM {known.name}",
            "parameters": "\n".join(f"{name} {value:g}" for name, value in template.sampling.items()),
            "template": template.name,
            "details": listed["details"],
            "model_info": {
                "general.architecture": "rwkv7",
                "general.parameter_count": config.n_params,
                "rwkv7.block_count": config.n_layer,
                "rwkv7.embedding_length": config.n_embd,
                "rwkv7.context_length": service_of(request).settings.max_prompt,
                "rwkv7.vocab_size": config.vocab_size,
            },
            "capabilities": [
                "completion",
                *(["tools"] if template.system is not None else []),
                *(["thinking"] if template.thinking else []),
            ],
            "modified_at": listed["modified_at"],
        }
    )


async def version(_: Request) -> Response:
    """The version of this program."""
    return JSONResponse({"version": __version__})


def _listed(known: Known) -> dict[str, Any]:
    status = known.path.stat()
    digest = hashlib.sha256(f"{known.name} {status.st_size} {status.st_mtime_ns}".encode()).hexdigest()
    parameters, weights = "", ""
    if is_model_file(known.path):
        info = ModelFile(known.path).info
        parameters, weights = format_count(info.config.n_params).replace(" ", ""), info.weight_type
    return {
        "name": known.name,
        "model": known.name,
        "modified_at": datetime.fromtimestamp(status.st_mtime, UTC).isoformat(),
        "size": known.size,
        "digest": digest,
        "details": {
            "parent_model": "",
            "format": "safetensors",
            "family": "rwkv7",
            "families": ["rwkv7"],
            "parameter_size": parameters,
            "quantization_level": weights,
        },
    }


def _later(loaded: Loaded) -> str:
    """When a model may be unloaded: here, not before another one needs its memory."""
    return datetime.fromtimestamp(max(loaded.used_at, time.time()) + 365 * 86400, UTC).isoformat()
