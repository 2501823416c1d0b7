"""OpenAI's /v1/models, and what tells how the server is."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from rwkv_cli import __version__
from rwkv_cli.server.http import ApiError
from rwkv_cli.server.loaded import Known
from rwkv_cli.server.service import service_of


async def list_models(request: Request) -> Response:
    """All models that can be asked for."""
    known = await asyncio.to_thread(service_of(request).models.listed)
    return JSONResponse({"object": "list", "data": [_entry(each) for each in known]})


async def one_model(request: Request) -> Response:
    """One model."""
    known = await asyncio.to_thread(service_of(request).models.find, request.path_params["name"])
    return JSONResponse(_entry(known))


def _entry(known: Known) -> dict[str, Any]:
    return {"id": known.name, "object": "model", "created": known.created, "owned_by": "rwkv"}


async def embeddings(_: Request) -> Response:
    """What this server cannot do, as a sentence rather than nothing."""
    raise ApiError(501, "this server makes no embeddings: RWKV-7 models continue texts", "not_supported")


async def health(request: Request) -> Response:
    """Whether the server is there."""
    models = service_of(request).models
    loaded = [each.name for each in models.loaded]
    return JSONResponse(
        {"status": "ok", "version": __version__, "default": models.default.name, "loaded": loaded}
    )


async def metrics(request: Request) -> Response:
    """Counts and times, for Prometheus."""
    service = service_of(request)
    return PlainTextResponse(
        service.metrics.text(service.gauges()), media_type="text/plain; version=0.0.4; charset=utf-8"
    )
