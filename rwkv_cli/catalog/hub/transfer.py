"""One file over a connection that may break at any time: continued where it stopped, never mixed from two files.

What has arrived is in a file of its own, beside a note of the server's validator (its ETag or date). An attempt over
HTTP asks for the rest under the condition that the file is still the same (`If-Range`); a server that says otherwise,
or that does not support ranges, sends all of it, and the beginning is dropped. A file in Xet storage is read from
there; that is addressed by content, so that nothing else can arrive, and HTTP continues what it does not deliver.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import httpx2
from huggingface_hub import constants

from rwkv_cli import paths
from rwkv_cli.catalog.hub import client, failures, xet
from rwkv_cli.catalog.hub.answers import count, refuse_compressed, refuse_page
from rwkv_cli.catalog.hub.failures import Note, TryAgainError
from rwkv_cli.catalog.hub.remote import RemoteFile
from rwkv_cli.errors import DownloadError, StorageError
from rwkv_cli.files.atomic import storage_error
from rwkv_cli.reporting import format_size

Progress = Callable[[int, int | None], None]
"""Called with the bytes that are here, and their total, if it is known."""

LARGEST = 200 * 10**9
"""Bytes of a file whose length its server does not tell, at most; no published model of RWKV-7 comes near."""

LEFT_FREE = 10**9
"""Bytes of the disk that such a file leaves free."""

PATIENCE = 60.0
"""Seconds in which a server has to send `LEAST` bytes: no timeout of a connection ends one that sends one at a time."""

LEAST = 10_000

_CHECKED_EVERY = 64 << 20  # bytes, after which the disk is looked at again
_EMPTY = "the file on the server is empty"
_MAY_BE_EMPTY = (".txt", ".jinja", ".json")

MAX_CHANGES = 3  # of the file on the server while it is read

_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)")


class Transfer:
    """A download into `part`; what is there of an earlier run is used, if it can be trusted."""

    def __init__(self, file: RemoteFile, part: Path, progress: Progress, note: Note) -> None:
        """Without a checksum of the file, only a validator makes it safe to continue."""
        self.file, self.part, self.what, self.size = file, part, file.what, file.size
        self._headers = {**file.headers, "Accept-Encoding": "identity"}
        self._progress, self._note = progress, note
        self._notes = part.with_name(f"{part.name}.json")
        self._changes = 0
        self._supports_ranges = True
        self._has_answered = False
        self.resumed = False  # whether it is put together from more than one response

    def run(self) -> None:
        """Bring the whole file here. Raises DownloadError, StorageError; what has arrived then stays for next time."""
        self._bring()
        if self.present():
            return
        if not self.file.name.endswith(_MAY_BE_EMPTY):
            self.forget()
            raise DownloadError(f"cannot download {self.what}: {_EMPTY}")
        self._opened().close()

    def _bring(self) -> None:
        if self._over_xet():
            return
        reached, failed = self.present(), 0
        while True:
            try:
                if failures.guarded(self.what, self._attempt):
                    return
                is_empty = self.size is None and not self.present()
                raise TryAgainError(_EMPTY if is_empty else "the server sends less than it has announced")
            except TryAgainError as failure:
                present = self.present()
                failed = 0 if present > reached else failed + 1
                reached = max(reached, present)
                if failed >= (failures.TRIES if self._has_answered else failure.tries):
                    if not present:
                        self.forget()
                    kept = "what has arrived is kept" if present else ""
                    raise failure.final(self.what, kept) from None
                failures.pause(failed, failure, self._note)

    def forget(self) -> None:
        """Drop what has arrived."""
        for file in (self.part, self._notes):
            file.unlink(missing_ok=True)

    def finish(self, target: Path) -> None:
        """Give the whole file its name. Raises StorageError."""
        try:
            self.part.replace(target)
            self._notes.unlink(missing_ok=True)
        except OSError as error:
            raise storage_error(target, error) from None

    def _over_xet(self) -> bool:
        """Whether all is here after asking the Xet storage for what is missing, once."""
        data, size = self.file.xet, self.size
        if data is None or size is None or not self.file.sha256 or not xet.is_available():
            return False
        start, _ = self._start()
        if start < size:
            self.resumed = self.resumed or start > 0
            try:
                self._write(xet.stream(data, size, start, self.file.headers), start)
            except xet.XetError as error:
                self._note(
                    f"{self.what} cannot be read from Xet storage ({failures.reason_of(error)}); continuing over HTTP"
                )
        return self.present() == size

    def _attempt(self) -> bool:
        """Ask for what is missing and write it: whether all is here now."""
        start, condition = self._start()
        if self.size is not None and start == self.size and start > 0:
            return True
        headers = dict(self._headers)
        if start:
            headers |= {"Range": f"bytes={start}-"} | ({"If-Range": condition} if condition else {})
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        with client.session().stream(
            "GET", self.file.url, headers=headers, timeout=timeout, follow_redirects=True
        ) as response:
            self._has_answered = True
            start = self._check(response, start)
            if start == self.size:
                return True
            self._write(self._unless_page(response), start)
            return self._is_end(response) if self.size is None else self.present() == self.size

    def _unless_page(self, response: httpx2.Response) -> Iterator[bytes]:
        """The pieces of a response. Raises DownloadError for a web page that is called something else."""
        is_first = True
        for piece in response.iter_raw():
            if is_first:
                refuse_page(self.what, response, piece)
            is_first = False
            yield piece

    def _is_end(self, response: httpx2.Response) -> bool:
        """Whether a response of unknown length was whole: if only its end says so, the rest is asked for to be sure."""
        is_chunked = "chunked" in response.headers.get("Transfer-Encoding", "").lower()
        is_certain = is_chunked or "Content-Length" in response.headers
        may_continue = self.file.has_checksum or self._condition() is not None
        return is_certain or not (self._supports_ranges and may_continue)

    def _start(self) -> tuple[int, str | None]:
        """Where to continue, and the validator under which that is right."""
        present = self.present()
        if not present:
            return 0, None
        condition = self._condition()
        may_continue = condition is not None or self.file.has_checksum
        if not may_continue or (self.size is not None and present > self.size):
            self.forget()
            return 0, None
        return present, condition

    def _condition(self) -> str | None:
        """The validator of what has arrived, if its server gave one."""
        try:
            notes = json.loads(self._notes.read_text(encoding="utf-8"))
            is_same = None in (self.size, notes["size"]) or self.size == notes["size"]
            condition = notes["validator"] if is_same else None
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return condition if isinstance(condition, str) else None

    def _check(self, response: httpx2.Response, start: int) -> int:
        """Where this response continues; drops what is here if it is of another file. Raises what the status means."""
        if response.status_code == 416 and start:
            found = re.fullmatch(r"bytes \*/([0-9]{1,18})", response.headers.get("Content-Range", ""))
            if self.size is None and (not found or int(found[1]) == start):
                self.size = start
                return start
            self._restart("the file on the server is shorter than before")
        if response.status_code not in (200, 206):
            raise failures.refusal(self.what, response.status_code, response.headers)
        refuse_page(self.what, response)
        refuse_compressed(self.what, response)
        if response.status_code == 200:
            self._supports_ranges = self._supports_ranges and not start
            self._check_length(response.headers.get("Content-Length"), is_whole=True)
            self._begin(response)
            return 0
        found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
        if not found or int(found[1]) != start:
            self._restart("the server sends another part than requested")
        if found and found[3] != "*":
            self._check_length(found[3], is_whole=False)
        validator = _validator(response)
        if start and validator and (before := self._condition()) and before != validator:
            self._restart("the file on the server has changed")
        if not start:
            self._begin(response)
        self.resumed = self.resumed or start > 0
        return start

    def _check_length(self, announced: str | None, is_whole: bool) -> None:
        """Compare the length that the server announces with the one that is expected, or learn it."""
        length = count(announced)
        if length is None:
            return
        if self.size is None or (is_whole and not self.file.size_is_certain):
            self.size = length
        elif length != self.size and not self.file.size_is_certain:
            self._restart("the file on the server has changed")
        elif length != self.size:
            raise DownloadError(
                f"cannot download {self.what}: it should have {self.size:,} bytes, and the server has {announced}"
            )

    def _begin(self, response: httpx2.Response) -> None:
        """Start over, with this response."""
        self.forget()
        notes = {"validator": _validator(response), "size": self.size}
        try:
            self._notes.write_text(json.dumps(notes), encoding="utf-8")
        except OSError as error:
            raise storage_error(self.part, error, self.size) from None

    def _restart(self, reason: str) -> None:
        """Drop what is here and try again, a few times. Always raises."""
        self.forget()
        self._changes += 1
        if self._changes > MAX_CHANGES:
            raise DownloadError(f"cannot download {self.what}: {reason}, repeatedly")
        raise TryAgainError(reason)

    def _write(self, pieces: Iterator[bytes], start: int) -> None:
        """Append to what is here; each piece as it comes, so that a broken connection loses nothing."""
        total, checked = start, start
        before, until = start, time.monotonic() + PATIENCE
        with self._opened() as file:
            self._progress(total, self.size)
            try:
                for piece in pieces:
                    if self.size is not None and total + len(piece) > self.size:
                        raise DownloadError(
                            f"cannot download {self.what}: the server sends more than {self.size:,} bytes"
                        )
                    if self.size is None and total + len(piece) >= checked:
                        self._require_limits(total + len(piece))
                        checked = total + _CHECKED_EVERY
                    self._store(file, piece)
                    total += len(piece)
                    self._progress(total, self.size)
                    if time.monotonic() > until:
                        self._require_speed(total - before, total)
                        before, until = total, time.monotonic() + PATIENCE
            finally:
                with contextlib.suppress(OSError):
                    file.flush()
            self._flush(file)

    def _require_limits(self, total: int) -> None:
        """Refuse a file without a known length that would not end. Raises DownloadError, StorageError."""
        if total > LARGEST:
            self.forget()
            raise DownloadError(
                f"cannot download {self.what}: the server does not say how long it is, and sends more than "
                f"{format_size(LARGEST)}"
            )
        try:
            free = shutil.disk_usage(self.part.parent).free
        except OSError:
            return
        if free < LEFT_FREE:
            raise StorageError(
                f"cannot download {self.what}: the server does not say how long it is, and {format_size(free)} are "
                f"free on the disk of {self.part.parent}{paths.hint(self.part)}"
            )

    def _require_speed(self, arrived: int, total: int) -> None:
        """Give up on a server that sends next to nothing. Raises DownloadError; what has arrived stays."""
        if arrived < LEAST and total != self.size:
            raise DownloadError(
                f"cannot download {self.what}: the server has sent {arrived:,} bytes in {PATIENCE:.0f} s; "
                "what has arrived is kept, try again later"
            )

    def _opened(self) -> BinaryIO:
        try:
            return self.part.open("ab")
        except OSError as error:
            raise storage_error(self.part, error, self.size) from None

    def _store(self, file: BinaryIO, piece: bytes) -> None:
        try:
            file.write(piece)
        except OSError as error:
            raise storage_error(self.part, error, self.size) from None

    def _flush(self, file: BinaryIO) -> None:
        try:
            file.flush()
            os.fsync(file.fileno())
        except OSError as error:
            raise storage_error(self.part, error, self.size) from None

    def present(self) -> int:
        """The number of bytes that are here."""
        try:
            return self.part.stat().st_size
        except OSError:
            return 0


def _validator(response: httpx2.Response) -> str | None:
    """What tells this version of the file from others: a strong ETag, or else its date."""
    etag: str = response.headers.get("ETag", "").strip()
    if etag and not etag.startswith("W/"):
        return etag
    return response.headers.get("Last-Modified") or None
