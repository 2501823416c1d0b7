"""Files in the Xet storage of the hub, which `hf_xet` reads in parallel and from any offset.

huggingface_hub uses hf_xet too, but for whole files only: what has arrived before an interruption is lost there. Hence
this asks hf_xet itself, for a stream from where an earlier attempt stopped. It is optional: wherever it is missing or
fails, the same file comes over HTTP.
"""

from __future__ import annotations

import importlib.util
import queue
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from huggingface_hub import constants

PATIENCE = 60.0  # seconds without data before another way is tried
_QUEUED = 4  # pieces that may wait for the disk
_SETTINGS = {"telemetry.enabled": False, "client.retry_max_attempts": 2}  # HTTP is the next attempt

_Item = bytes | Exception | None
"""A piece of the file, what went wrong, or None for its end."""


@dataclass(frozen=True)
class XetLocation:
    """Where the storage has a file, as the hub tells."""

    file_hash: str  # of its chunks, which names its content in the storage
    refresh_route: str  # the address that hands out access tokens


class XetError(Exception):
    """The storage does not deliver the file, or not all of it."""


def is_available() -> bool:
    """Whether hf_xet is installed and not switched off by HF_HUB_DISABLE_XET."""
    return not constants.HF_HUB_DISABLE_XET and importlib.util.find_spec("hf_xet") is not None


def stream(location: XetLocation, size: int, start: int, headers: Mapping[str, str]) -> Iterator[bytes]:
    """The bytes of a file of `size` bytes from `start` on. `headers` are for the hub, which hands out access tokens.

    Raises XetError. A thread reads: hf_xet does not notice Ctrl-C while it waits, and may wait for minutes.
    """
    items: queue.Queue[_Item] = queue.Queue(_QUEUED)
    stopped = threading.Event()
    session, file = _opened(location, size)

    def read() -> None:
        try:
            group = session.new_download_stream_group(
                token_refresh_url=location.refresh_route, token_refresh_headers=dict(headers)
            )
            for piece in group.download_stream(file, start=start):
                _put(items, bytes(piece), stopped)
            _put(items, None, stopped)
        except Exception as error:  # hf_xet has no class of its own for its errors
            _put(items, error, stopped)

    threading.Thread(target=read, daemon=True, name="xet").start()
    try:
        yield from _received(items)
    finally:
        stopped.set()
        _abort(session)


def _opened(location: XetLocation, size: int) -> tuple[Any, Any]:
    """A session of hf_xet and its name for the file. Raises XetError, also for a version with another interface."""
    try:
        import hf_xet  # type: ignore[import-untyped]

        session = hf_xet.XetSession(hf_xet.XetConfig().with_config(_SETTINGS))
        return session, hf_xet.XetFileInfo(location.file_hash, size)
    except Exception as error:
        raise XetError(f"hf_xet cannot be used: {error}") from None


def _put(items: queue.Queue[_Item], item: _Item, stopped: threading.Event) -> None:
    while not stopped.is_set():
        with suppress(queue.Full):
            items.put(item, timeout=0.1)
            return


def _received(items: queue.Queue[_Item]) -> Iterator[bytes]:
    while True:
        try:
            item = items.get(timeout=PATIENCE)
        except queue.Empty:
            raise XetError("it does not answer in time") from None
        if isinstance(item, Exception):
            raise XetError(str(item)) from None
        if item is None:
            return
        yield item


def _abort(session: Any) -> None:
    """End what the session still does in the background; its thread ends then, too."""
    with suppress(Exception):
        session.sigint_abort()
