"""A line of log for each request, without what was said."""

from __future__ import annotations

import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rwkv_cli.server.service import Service

_QUIET = {"/health", "/metrics"}


class AccessLog:
    """An ASGI application around another one."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and log it at its end."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, since = 499, time.perf_counter()  # 499, as nginx has it: the client went away

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except Exception:  # a defect, which is answered and logged outside
            status = 500
            raise
        finally:
            self._note(scope, status, time.perf_counter() - since)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = scope.get("route")
        path = getattr(route, "path", None)
        self._service.metrics.requests[path or "other", status] += 1
        if scope["path"] in _QUIET and status < 400:
            return
        shown = scope["path"][:100].encode("unicode_escape").decode()
        parts = [f"{scope['method']} {shown} {status}", f"{seconds:.3f} s"]
        if record := scope.get("rwkv"):
            counts = record["counts"]
            first = "" if counts.first_after is None else f", first token after {counts.first_after:.3f} s"
            parts += [
                f"{record['model']}: {counts.prompt} tokens of prompt ({counts.cached} known), "
                f"{counts.generated} generated, {record['finish']}{first}"
            ]
        self._service.log("  ".join(parts))
