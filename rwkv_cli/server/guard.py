"""Who may use the server: the layer before all routes.

A page in a browser must not reach a server on this machine unless it comes from it: a request with the name of another
host (DNS rebinding) or from another origin is refused. Where there are keys, a request needs one of them.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
from collections.abc import Iterable

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rwkv_cli.server.http import ApiError, error_response
from rwkv_cli.server.settings import ServerSettings

_OPEN = {"/", "/health", "/favicon.ico"}
"""Paths for which no key is needed, with those of the page."""

_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_ASKED = "authorization, content-type, x-api-key, anthropic-version, x-openwebui-chat-id"


class Guard:
    """An ASGI application around another one."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._app, self._settings = app, settings
        self._hosts = {"localhost", settings.host.lower(), *(each.lower() for each in settings.allowed_hosts)}
        self._origins = {each.rstrip("/").lower() for each in settings.allowed_origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer with an error."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        cross = origin if origin and not _is_same(origin, headers.get("host", "")) else None
        send = self._with_headers(send, cross)
        try:
            self._check(scope, headers, cross)
            if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
                await PlainTextResponse("", 204)(scope, receive, send)
                return
            if not (scope["path"] in _OPEN or scope["path"].startswith("/page/")):
                self._check_key(headers)
            limited = _Limited(receive, headers, self._settings.max_body)
        except ApiError as error:
            await error_response(scope["path"], error)(scope, receive, send)
            return
        await self._app(scope, limited, send)

    def _check(self, scope: Scope, headers: Headers, cross: str | None) -> None:
        host = headers.get("host", "")
        if not self._is_known(_name_of(host)):
            raise ApiError(
                403,
                f"this server is not known as {host[:100]!r}: start it with --allow-host, or use its address",
                "host_not_allowed",
            )
        if cross and not self._allows(cross):
            raise ApiError(
                403,
                f"pages of {cross[:100]} may not use this server: start it with --allow-origin to let them",
                "origin_not_allowed",
            )
        if scope["path"].count("\0"):
            raise ApiError(400, "the path has a null character")

    def _is_known(self, name: str) -> bool:
        if name in self._hosts or "*" in self._hosts:
            return True
        try:  # an address cannot be rebound
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def _allows(self, origin: str) -> bool:
        return origin.lower() in self._origins or "*" in self._origins

    def _check_key(self, headers: Headers) -> None:
        keys = self._settings.api_keys
        if not keys:
            return
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        if not _matches(given, keys):
            raise ApiError(
                401, "this server needs an API key, and the one that was sent is not right", "invalid_api_key"
            )

    def _with_headers(self, send: Send, cross: str | None) -> Send:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                if cross and self._allows(cross):
                    headers["Access-Control-Allow-Origin"] = cross
                    headers["Access-Control-Allow-Headers"] = _ASKED
                    headers["Access-Control-Allow-Methods"] = "GET, POST, PUT, PATCH, DELETE"
                    headers["Cross-Origin-Resource-Policy"] = "cross-origin"
                    headers.add_vary_header("Origin")
            await send(message)

        return sending


class _Limited:
    """The body of a request, up to a limit."""

    def __init__(self, receive: Receive, headers: Headers, limit: int) -> None:
        """Raises ApiError where the client says that it is longer."""
        self._receive, self._limit, self._size = receive, limit, 0
        length = headers.get("content-length", "0")
        if not re.fullmatch(r"[0-9]{1,18}", length) or int(length) > limit:
            raise self._error()

    def _error(self) -> ApiError:
        return ApiError(413, f"the body of the request is too large: {self._limit:,} bytes are allowed")

    async def __call__(self) -> Message:
        message = await self._receive()
        self._size += len(message.get("body", b""))
        if self._size > self._limit:
            raise self._error()
        return message


def _matches(given: str, keys: Iterable[str]) -> bool:
    """Whether a key is one of those, in a time that does not tell how much of it is right."""
    found = False
    for key in keys:
        found |= hmac.compare_digest(given.encode(), key.encode())
    return found


def _name_of(host: str) -> str:
    """A Host header without the port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower().rstrip(".")


def _is_same(origin: str, host: str) -> bool:
    """Whether a page comes from this server."""
    return origin.lower() in (f"http://{host}".lower(), f"https://{host}".lower())
