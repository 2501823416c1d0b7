"""The application: every route, and what is around them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from rwkv_cli.errors import RwkvError
from rwkv_cli.reporting import Reporter
from rwkv_cli.server.access_log import AccessLog
from rwkv_cli.server.api import (
    anthropic,
    catalog,
    description,
    ollama,
    openai_chat,
    openai_completions,
    page,
    responses,
    states,
    tokens,
)
from rwkv_cli.server.guard import Guard
from rwkv_cli.server.http import ApiError, api_error, error_response
from rwkv_cli.server.loaded import Log
from rwkv_cli.server.service import Service
from rwkv_cli.server.settings import ServerSettings

Endpoint = Callable[[Request], Awaitable[Response]]


def make_app(settings: ServerSettings, reporter: Reporter, report: Log) -> Starlette:
    """The ASGI application. Raises what locating the default model raises; `report` receives the lines of the log."""
    service = Service(settings, reporter, report)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await service.models.close()

    app = Starlette(
        routes=make_routes(),
        middleware=[Middleware(AccessLog, service=service), Middleware(Guard, settings=settings)],
        exception_handlers={
            HTTPException: _failed,
            ApiError: _failed,
            RwkvError: _failed,
            Exception: _failed,
            ClientDisconnect: _gone,
        },
        lifespan=lifespan,
    )
    app.state.service = service
    return app


def make_routes() -> list[BaseRoute]:
    """Every route."""

    def post(path: str, endpoint: Endpoint) -> Route:
        return Route(path, endpoint, methods=["POST"])

    state = "/v1/states/{name}"
    return [
        post("/v1/chat/completions", openai_chat.chat_completions),
        post("/v1/completions", openai_completions.completions),
        Route("/v1/models", catalog.list_models),
        Route("/v1/models/{name:path}", catalog.one_model),
        post("/v1/responses", responses.responses),
        Route("/v1/responses/{id}", responses.retrieve),
        Route("/v1/responses/{id}", responses.delete, methods=["DELETE"]),
        *(post(path, catalog.embeddings) for path in ("/v1/embeddings", "/api/embed", "/api/embeddings")),
        post("/v1/messages", anthropic.messages),
        post("/v1/messages/count_tokens", anthropic.count_tokens),
        post("/api/chat", ollama.chat),
        post("/api/generate", ollama.generate),
        post("/api/show", ollama.show),
        Route("/api/tags", ollama.tags),
        Route("/api/ps", ollama.ps),
        Route("/api/version", ollama.version),
        Route("/v1/states", states.list_states),
        post("/v1/states", states.create),
        Route(state, states.describe),
        Route(state, states.rename, methods=["PATCH"]),
        Route(state, states.delete, methods=["DELETE"]),
        Route(state, states.take_in, methods=["PUT"]),
        post(f"{state}/fork", states.fork),
        Route(f"{state}/file", states.export),
        post("/tokenize", tokens.tokenize),
        post("/detokenize", tokens.detokenize),
        Route("/tokenizer_info", tokens.tokenizer_info),
        Route("/", page.index),
        Route("/page/{path:path}", page.file),
        Route("/openapi.json", description.openapi),
        Route("/health", catalog.health),
        Route("/metrics", catalog.metrics),
    ]


async def _failed(request: Request, error: Exception) -> Response:
    """An error in the form of the API that was called."""
    if isinstance(error, HTTPException):
        what = {404: "there is nothing at", 405: f"{request.method} is not possible at"}
        message = f"{what.get(error.status_code, error.detail)} {request.url.path[:100]}"
        return error_response(request.url.path, ApiError(error.status_code, message))
    return error_response(request.url.path, api_error(error))


async def _gone(_: Request, _error: Exception) -> Response:
    """Nobody reads it."""
    return Response(status_code=499)
