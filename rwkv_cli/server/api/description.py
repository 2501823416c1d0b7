"""The OpenAPI description of the routes, at /openapi.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from rwkv_cli import __version__
from rwkv_cli.server.chat.request import MOST_CHOICES, MOST_LIKELY, MOST_STOPS

Schema = Mapping[str, Any]

TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}
NUMBER: Schema = {"type": "number"}
OBJECT: Schema = {"type": "object"}
OBJECTS: Schema = {"type": "array", "items": OBJECT}
TOKENS: Schema = {"type": "array", "items": {"type": "integer"}}


def _whole(low: int, high: int | None = None) -> Schema:
    return {"type": "integer", "minimum": low, **({} if high is None else {"maximum": high})}


def _either(*schemas: Schema) -> Schema:
    return {"anyOf": [*schemas]}


SAMPLING: Mapping[str, Schema] = {
    "temperature": {"type": "number", "minimum": 0},
    "top_p": {"type": "number", "minimum": 0, "maximum": 1},
    "top_k": _whole(0),
    "min_p": {"type": "number", "minimum": 0, "maximum": 1},
    "presence_penalty": NUMBER,
    "frequency_penalty": NUMBER,
    "penalty_decay": {"type": "number", "minimum": 0, "maximum": 1},
    "seed": {"type": "integer"},
    "logit_bias": {"type": "object", "additionalProperties": NUMBER},
}
STOP: Schema = _either(TEXT, {"type": "array", "items": TEXT, "maxItems": MOST_STOPS})
STATES: Mapping[str, Schema] = {"state": TEXT, "session": TEXT, "save_as": TEXT, "overwrite": FLAG}
FORMS: Mapping[str, Schema] = {
    "response_format": OBJECT,
    "json_schema": OBJECT,
    "regex": TEXT,
    "grammar": TEXT,
    "choice": {"type": "array", "items": TEXT},
}
MESSAGE: Schema = {
    "type": "object",
    "properties": {
        "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
        "content": _either(TEXT, OBJECTS, {"type": "null"}),
    },
    "required": ["role"],
}
MESSAGES: Schema = {"type": "array", "items": MESSAGE, "minItems": 1}
TOOLS: Mapping[str, Schema] = {"tools": OBJECTS, "tool_choice": _either(TEXT, OBJECT)}
STREAM: Mapping[str, Schema] = {"model": TEXT, "stream": FLAG}

CHAT = {
    **STREAM,
    "messages": MESSAGES,
    **SAMPLING,
    **STATES,
    **FORMS,
    **TOOLS,
    "max_tokens": _whole(-1),
    "max_completion_tokens": _whole(-1),
    "n": _whole(1, MOST_CHOICES),
    "stop": STOP,
    "logprobs": FLAG,
    "top_logprobs": _whole(0, MOST_LIKELY),
    "stream_options": OBJECT,
    "reasoning_effort": TEXT,
    "template": TEXT,
}
COMPLETION = {
    **STREAM,
    "prompt": _either(TEXT, {"type": "array", "items": TEXT}, TOKENS, {"type": "array", "items": TOKENS}),
    **SAMPLING,
    **STATES,
    **FORMS,
    "max_tokens": _whole(-1),
    "n": _whole(1, MOST_CHOICES),
    "stop": STOP,
    "echo": FLAG,
    "logprobs": _whole(0, MOST_LIKELY),
    "stream_options": OBJECT,
}
RESPONSE = {
    **STREAM,
    "input": _either(TEXT, OBJECTS),
    "instructions": TEXT,
    "previous_response_id": TEXT,
    "max_output_tokens": _whole(-1),
    "reasoning": OBJECT,
    "text": OBJECT,
    "store": FLAG,
    **TOOLS,
    **SAMPLING,
    **STATES,
}
ANTHROPIC = {
    **STREAM,
    "messages": MESSAGES,
    "max_tokens": _whole(1),
    "system": _either(TEXT, OBJECTS),
    "stop_sequences": STOP,
    "thinking": OBJECT,
    "tools": OBJECTS,
    "tool_choice": OBJECT,
    **SAMPLING,
    **STATES,
}
OLLAMA = {
    **STREAM,
    "options": OBJECT,
    "format": _either(TEXT, OBJECT),
    "think": _either(FLAG, TEXT),
    "keep_alive": _either(TEXT, NUMBER),
}
OLLAMA_CHAT = {**OLLAMA, "messages": MESSAGES, "tools": OBJECTS}
OLLAMA_TEXT = {**OLLAMA, "prompt": TEXT, "system": TEXT, "raw": FLAG, "context": TOKENS}
NAME: Mapping[str, Schema] = {"name": TEXT}

_FAILURES = ("400", "401", "403", "404", "408", "409", "413", "429", "500", "503", "504", "507")


def _operation(
    what: str, body: Mapping[str, Schema] | None = None, needed: Sequence[str] = (), *, status: str = "200"
) -> dict[str, Any]:
    """A route. Every error has a sentence in it, in the form of its API."""
    failures = {each: {"$ref": "#/components/responses/Failure"} for each in _FAILURES}
    found: dict[str, Any] = {"summary": what, "responses": {status: {"description": "Done."}, **failures}}
    if body is not None:
        schema = {"type": "object", "properties": dict(body), "required": [*needed]}
        found["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return found


def _named(name: str, **operations: dict[str, Any]) -> dict[str, Any]:
    """Routes with a name in their path."""
    parameter = {"name": name, "in": "path", "required": True, "schema": TEXT}
    return {"parameters": [parameter], **operations}


def description() -> dict[str, Any]:
    """The whole description."""
    paths: dict[str, Any] = {
        "/v1/chat/completions": {"post": _operation("Answer a conversation.", CHAT, ["messages"])},
        "/v1/completions": {"post": _operation("Continue texts.", COMPLETION)},
        "/v1/responses": {"post": _operation("Answer a conversation.", RESPONSE, ["input"])},
        "/v1/responses/{id}": _named(
            "id", get=_operation("A response."), delete=_operation("Forget a response.")
        ),
        "/v1/messages": {"post": _operation("Answer a conversation.", ANTHROPIC, ["messages", "max_tokens"])},
        "/v1/messages/count_tokens": {"post": _operation("Count tokens.", ANTHROPIC, ["messages"])},
        "/v1/models": {"get": _operation("All models.")},
        "/v1/models/{id}": _named("id", get=_operation("A model.")),
        "/v1/states": {
            "get": _operation("All states."),
            "post": _operation(
                "Read a document.", {**NAME, "input": TEXT, "model": TEXT, "overwrite": FLAG}, ["name", "input"],
                status="201",
            ),
        },
        "/v1/states/{name}": _named(
            "name",
            get=_operation("A state."),
            patch=_operation("Rename a state.", NAME, ["name"]),
            delete=_operation("Delete a state."),
        ),
        "/v1/states/{name}/fork": _named(
            "name", post=_operation("Copy a state.", {**NAME, "overwrite": FLAG}, ["name"], status="201")
        ),
        "/v1/states/{name}/file": _named("name", get=_operation("The file of a state.")),
        "/api/chat": {"post": _operation("Answer a conversation.", OLLAMA_CHAT, ["messages"])},
        "/api/generate": {"post": _operation("Answer a prompt.", OLLAMA_TEXT, ["prompt"])},
        "/api/show": {"post": _operation("A model.", {"model": TEXT})},
        "/api/tags": {"get": _operation("All models.")},
        "/api/ps": {"get": _operation("The models that are loaded.")},
        "/api/version": {"get": _operation("The version.")},
        "/tokenize": {"post": _operation("A text as tokens.", {"prompt": TEXT, "model": TEXT}, ["prompt"])},
        "/detokenize": {"post": _operation("Tokens as a text.", {"tokens": TOKENS, "model": TEXT}, ["tokens"])},
        "/tokenizer_info": {"get": _operation("What a tokenizer is.")},
        "/health": {"get": _operation("Whether the server is there.")},
        "/metrics": {"get": _operation("Counts and times, for Prometheus.")},
    }  # fmt: skip
    failure = {
        "description": "A sentence that says why not.",
        "content": {"application/json": {"schema": OBJECT}},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "rwkv serve", "version": __version__},
        "paths": paths,
        "components": {
            "responses": {"Failure": failure},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


async def openapi(_: Request) -> Response:
    """The description."""
    return JSONResponse(description())
