"""What servers answer, read with limits: numbers in headers, small JSON files, and web pages where a file should be."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any

import httpx2
from huggingface_hub import constants
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]  # lazy

from rwkv_cli.catalog.hub import client, failures
from rwkv_cli.catalog.hub.failures import Note, TryAgainError
from rwkv_cli.catalog.hub.selection import parse_json
from rwkv_cli.errors import DownloadError

LONGEST = 120.0
"""Seconds that a small JSON file may take: the timeouts of a connection allow for a byte now and then."""

_MAX_JSON = 32 << 20  # bytes
_COUNT = re.compile(r"[0-9]{1,18}")
_PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype\s+html|html|head|body)\b", re.IGNORECASE)


def read_json(
    what: str,
    url: str,
    note: Note,
    *,
    params: Mapping[str, str] | None = None,
    tries: int = failures.TRIES,
    timeout: float | None = None,
) -> Any:
    """JSON values from the hub, of at most 32 MiB. Raises DownloadError."""

    client.check_token()

    def ask() -> Any:
        with client.session().stream(
            "GET",
            url,
            params=params,
            headers=build_hf_headers() | {"Accept-Encoding": "identity"},
            timeout=timeout or constants.HF_HUB_DOWNLOAD_TIMEOUT,
            follow_redirects=True,
        ) as response:
            _raise_for_status(what, response)
            data = _body(what, response)
        refuse_page(what, response, data)
        return parse_json(data, what)

    return failures.attempt(what, ask, note, tries)


def refuse_page(what: str, response: httpx2.Response, start: bytes = b"") -> None:
    """Raise DownloadError if a response is a web page, which is not what is wanted anywhere here."""
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind in ("text/html", "application/xhtml+xml") or _PAGE.match(start):
        raise DownloadError(
            f"cannot download {what}: {response.url.host} sends a web page in its place, perhaps to log in; "
            "open the address in a browser to see it"
        )


def refuse_compressed(what: str, response: httpx2.Response) -> None:
    """Raise DownloadError for a compressed response: all requests ask for plain bytes."""
    if response.headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity"):
        raise DownloadError(
            f"cannot download {what}: the server sends it compressed, which was not requested"
        )


def count(text: str | None) -> int | None:
    """A number of bytes in a header; None for anything else."""
    return int(text) if text and _COUNT.fullmatch(text) else None


def _raise_for_status(what: str, response: httpx2.Response) -> None:
    """Raise what the status means; the body of an error, of any length, is not read."""
    if response.status_code == 200:
        return
    headers = {
        name: value for name, value in response.headers.items() if not name.lower().startswith("content-")
    }
    hf_raise_for_status(httpx2.Response(response.status_code, headers=headers, request=response.request))
    raise failures.refusal(what, response.status_code, response.headers)


def _body(what: str, response: httpx2.Response) -> bytes:
    refuse_compressed(what, response)
    data, end = bytearray(), time.monotonic() + LONGEST
    for piece in response.iter_raw():
        data += piece
        if len(data) > _MAX_JSON:
            raise DownloadError(f"cannot download {what}: it is too large to be a list of files")
        if time.monotonic() > end:
            raise TryAgainError("the server does not answer in time")
    return bytes(data)
