"""What all routes have in common: bodies as fields, errors in each API's form, streams of events."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from rwkv_cli.errors import (
    DeviceError,
    MissingModelError,
    RwkvError,
    StateError,
    StorageError,
    UsageError,
    shortened,
)

T = TypeVar("T")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
BODY_SECONDS = 60
"""That a client may take to send a request."""


class ApiError(Exception):
    """An answer that is an error: a status, and a sentence."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        *,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = {"Retry-After": str(retry_after)} if retry_after is not None else {}

    @property
    def kind(self) -> str:
        """The type of the error, as OpenAI calls it."""
        return _KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")


_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def as_field(field: str, value: str | None) -> str:
    """A field of a body, for a message of an error."""
    return f"'{field}'" if value is None else f"'{field}': {value}"


def api_error(error: BaseException) -> ApiError:
    """What a client is told of a failure."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, MissingModelError):
        return ApiError(404, error.worded(as_field), "model_not_found")
    if isinstance(error, RwkvError):
        message, status = error.worded(as_field), 500
        if isinstance(error, UsageError):
            status = 400
        elif isinstance(error, StateError):
            status = 404 if message.startswith(("unknown state", "there is no state")) else 409
        elif isinstance(error, DeviceError):
            status = 503
        elif isinstance(error, StorageError):
            status = 507
        return ApiError(status, message, param=error.field)
    if isinstance(error, TimeoutError):
        return ApiError(504, "the answer took longer than the server allows")
    return ApiError(500, "the server failed; its log says how")


def error_body(path: str, error: ApiError) -> dict[str, Any]:
    """The body of an error, in the form of the API that a path belongs to."""
    message = shortened(error.message).encode("utf-8", "replace").decode()
    if path.startswith("/api/"):
        return {"error": message}
    if path.startswith("/v1/messages"):
        return {"type": "error", "error": {"type": error.kind, "message": message}}
    return {"error": {"message": message, "type": error.kind, "param": error.param, "code": error.code}}


def error_response(path: str, error: ApiError) -> Response:
    """An error as a response."""
    return JSONResponse(error_body(path, error), error.status, headers=error.headers)


# ------------------------------------------------------------------------------------------------------------ fields


class Fields:
    """A JSON object of a client. Each method gives a field in the type that is wanted, or raises UsageError."""

    def __init__(self, values: Mapping[str, Any], where: str = "") -> None:
        self.values, self._where = values, where

    def __contains__(self, name: str) -> bool:
        return self.values.get(name) is not None

    def get(self, name: str) -> Any:
        """The value as it is."""
        return self.values.get(name)

    def _wrong(self, name: str, what: str) -> UsageError:
        return UsageError(f"{{{name}}}{self._where} must be {what}")

    def text(self, name: str) -> str | None:
        """A text."""
        value = self.get(name)
        if value is not None and not isinstance(value, str):
            raise self._wrong(name, "a text")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        """True or false."""
        value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self._wrong(name, "true or false")
        return value

    def number(self, name: str) -> float | None:
        """A finite number."""
        value = self.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(name, "a number")
        if (isinstance(value, int) and value.bit_length() > 1000) or not math.isfinite(value):
            raise self._wrong(name, "a finite number")
        return float(value)

    def integer(self, name: str, low: int | None = None, high: int | None = None) -> int | None:
        """A whole number; limits are included."""
        value = self.number(name)
        if value is None:
            return None
        if value != int(value):
            raise self._wrong(name, "a whole number")
        whole = int(self.values[name])
        if (low is not None and whole < low) or (high is not None and whole > high):
            span = f"between {low} and {high:,}" if high is not None else f"at least {low}"
            raise UsageError(f"{{{name}}}{self._where} is {str(whole)[:20]}: it must be {span}")
        return whole

    def texts(self, name: str, most: int) -> tuple[str, ...]:
        """A text, or a list of at most so many."""
        value = self.get(name)
        if value is None:
            return ()
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list) or not all(isinstance(each, str) for each in values):
            raise self._wrong(name, "a text or a list of texts")
        if len(values) > most:
            raise UsageError(f"{{{name}}} has {len(values):,} texts; {most} are allowed")
        return tuple(values)

    def object(self, name: str) -> Fields:
        """An object; an empty one where there is none."""
        value = self.get(name)
        if value is not None and not isinstance(value, dict):
            raise self._wrong(name, "an object")
        return Fields(value or {}, f" in {{{name}}}")

    def objects(self, name: str) -> list[Fields]:
        """A list of objects."""
        value = self.get(name)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
            raise self._wrong(name, "a list of objects")
        return [Fields(each, f" in {{{name}}}[{n}]") for n, each in enumerate(value)]


async def read_fields(request: Request) -> Fields:
    """The body of a request. Raises UsageError where it is not a JSON object, ApiError where it comes too slowly."""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            body = await request.body()
    except TimeoutError:
        raise ApiError(408, f"the request did not arrive within {BODY_SECONDS} seconds") from None
    try:
        value = json.loads(body or b"{}")
        if _SURROGATE.search(body):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise UsageError("a text contains half a surrogate pair: it is not valid Unicode") from None
    except (ValueError, RecursionError):
        raise UsageError("the body of the request is not valid JSON") from None
    if not isinstance(value, dict):
        raise UsageError("the body of the request must be a JSON object")
    return Fields(value)


# ----------------------------------------------------------------------------------------------------------- streams


def dumps(value: object) -> str:
    """JSON without spaces, in which characters are themselves."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def event(value: object, name: str | None = None) -> str:
    """A server-sent event."""
    return f"event: {name}\ndata: {dumps(value)}\n\n" if name else f"data: {dumps(value)}\n\n"


class Stream(StreamingResponse):
    """A response that comes in pieces. `close` is called at its end, however that comes."""

    def __init__(
        self,
        pieces: AsyncIterator[str],
        close: Callable[[], Awaitable[None]],
        media_type: str = "text/event-stream",
    ) -> None:
        super().__init__(
            pieces, media_type=media_type, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        )
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See `StreamingResponse`."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await asyncio.shield(self._close())


async def while_connected(request: Request, work: Awaitable[T]) -> T:
    """The result of some work, which is cancelled if the client goes away. Raises ClientDisconnect then."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        watch.cancel()
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def joined(texts: Sequence[str]) -> str:
    """Texts of several parts of a message as one."""
    return "\n".join(text for text in texts if text)
