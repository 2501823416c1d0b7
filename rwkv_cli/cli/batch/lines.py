"""The lines of a file of prompts, read one at a time: the file may be larger than the memory, or have no end."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO, Self

from rwkv_cli import paths
from rwkv_cli.cli import prompt
from rwkv_cli.errors import UsageError

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # some editors on Windows write it at the beginning of a file
_PART = 1 << 20
_MOST_LIMITS = 100
"""A line that is this many times too long is taken for one without an end, such as that of /dev/zero."""


@dataclass(frozen=True)
class Line:
    """A line that is not blank."""

    index: int  # among those that are not blank, from 0
    number: int  # among all lines, from 1
    text: str  # without its end; empty for a wrong one
    digest: int  # 64 bits of a hash of its bytes
    n_bytes: int  # in the file
    error: str = ""  # why it is not a text


class Lines:
    """An open file of prompts, "-" for standard input: an iterator over its lines, and a context manager."""

    def __init__(self, file: str) -> None:
        """Raises UsageError, in one sentence, for a file that cannot be read."""
        self._closing = ExitStack()
        self.path = None if file in ("", "-") else paths.user_path(file)
        self.name = file if self.path else "standard input"
        self.is_json = file.lower().endswith(".jsonl")
        try:
            self._file = self._opened(self.path)
            status = os.fstat(self._file.fileno()) if self.path else None
        except OSError as error:
            raise self._cannot(error) from None
        self.size = status.st_size if status and stat.S_ISREG(status.st_mode) else None
        """In bytes; None where it is unknown."""

    def _opened(self, path: Path | None) -> BinaryIO:
        if path:
            return self._closing.enter_context(path.open("rb"))
        if sys.stdin is None:
            raise UsageError("cannot read the prompt from standard input: it is closed")
        return sys.stdin.buffer

    def _cannot(self, error: OSError) -> UsageError:
        reason = (error.strerror or str(error)).lower()
        return UsageError(f"cannot read the prompt from {self.name}: {reason}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._closing.close()

    def __iter__(self) -> Iterator[Line]:
        """Raises UsageError for a file that cannot be read any further, or a line without an end."""
        index = number = 0
        while True:
            number += 1
            data, digest, n_bytes = self._next(number)
            if not n_bytes:
                return
            text = error = ""
            if data is None:
                error = (
                    f"the line has more than {prompt.MOST_BYTES // 10**6} MB, which is the most that is read"
                )
            else:
                if number == 1:
                    data = data.removeprefix(_BYTE_ORDER_MARK)
                try:
                    text = prompt.decoded(data, "prompt")
                except UsageError as wrong:
                    error = str(wrong)
            if text.strip() or error:
                yield Line(index, number, text, digest, n_bytes, error)
                index += 1

    def _next(self, number: int) -> tuple[bytes | None, int, int]:
        """The next line without its end, None if it is too long; the digest of all of it, and its size in the file."""
        most = prompt.MOST_BYTES
        try:
            data = self._file.readline(most + 2)  # with \r\n
            line = data.removesuffix(b"\n").removesuffix(b"\r")
            hasher, n_bytes = blake2b(line, digest_size=8), len(data)
            while n_bytes > most and data and not data.endswith(b"\n"):
                data = self._file.readline(_PART)
                hasher.update(data)
                n_bytes += len(data)
                if n_bytes > most * _MOST_LIMITS:
                    raise UsageError(
                        f"{self.name}, line {number}: it has more than {n_bytes // 10**6:,} MB, and no end is in sight"
                    )
        except OSError as error:
            raise self._cannot(error) from None
        return line if len(line) <= most else None, int.from_bytes(hasher.digest()), n_bytes
