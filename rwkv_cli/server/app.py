"""The application: every route, and what is around them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from rwkv_cli.reporting import Reporter
from rwkv_cli.server.access_log import AccessLog
from rwkv_cli.server.api import catalog, openai_chat
from rwkv_cli.server.guard import Guard
from rwkv_cli.server.http import ApiError, api_error, error_response
from rwkv_cli.server.loaded import Log
from rwkv_cli.server.service import Service
from rwkv_cli.server.settings import ServerSettings
from rwkv_cli.server.worker import log


def make_app(settings: ServerSettings, reporter: Reporter, report: Log) -> Starlette:
    """The ASGI application. Raises what locating the default model raises; `report` receives the lines of the log."""
    service = Service(settings, reporter, report)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await service.models.close()

    app = Starlette(
        routes=_routes(),
        middleware=[Middleware(AccessLog, service=service), Middleware(Guard, settings=settings)],
        exception_handlers={
            HTTPException: _failed,
            ApiError: _failed,
            Exception: _failed,
            ClientDisconnect: _gone,
        },
        lifespan=lifespan,
    )
    app.state.service = service
    return app


def _routes() -> list[BaseRoute]:
    return [
        Route("/v1/chat/completions", openai_chat.chat_completions, methods=["POST"]),
        Route("/v1/models", catalog.list_models),
        Route("/v1/models/{name:path}", catalog.one_model),
        Route("/health", catalog.health),
        Route("/metrics", catalog.metrics),
    ]


async def _failed(request: Request, error: Exception) -> Response:
    """An error in the form of the API that was called."""
    if isinstance(error, HTTPException):
        what = {404: "there is nothing at", 405: f"{request.method} is not possible at"}
        message = f"{what.get(error.status_code, error.detail)} {request.url.path[:100]}"
        return error_response(request.url.path, ApiError(error.status_code, message))
    told = api_error(error)
    if told.status == 500:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return error_response(request.url.path, told)


async def _gone(_: Request, _error: Exception) -> Response:
    """Nobody reads it."""
    return Response(status_code=499)
