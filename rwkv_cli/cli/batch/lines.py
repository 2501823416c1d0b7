"""A file of prompts, or standard input, opened to read its lines."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, Self

from rwkv_cli import paths
from rwkv_cli.datasets.lines import Line, read_lines
from rwkv_cli.errors import UsageError


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
        try:
            yield from read_lines(self._file, self.name)
        except OSError as error:
            raise self._cannot(error) from None
