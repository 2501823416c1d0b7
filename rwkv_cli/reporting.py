"""Progress of long operations; numbers as people read them, and what they may have meant."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from rwkv_cli.errors import MissingModelError

log = logging.getLogger("rwkv_cli")

Progress = Callable[[int], None]
"""Called with the number of tokens read since the last call."""

COMPILING = "compiling the kernels for this {}, once (about 15 s)..."


class Reporter:
    """Receives progress of long operations. The command line shows it; otherwise it goes to the log."""

    def note(self, text: str) -> None:
        """Report something that deserves a line."""
        log.info(text)

    def quantizing(self, done: int, total: int) -> None:
        """`done` of `total` weights are quantized."""

    def downloading(self, done: int, total: int | None) -> None:
        """`done` of `total` bytes have been downloaded; `total` is None if the server does not say."""

    def missing(self, error: MissingModelError) -> Path:
        """A known model is not on this machine. Return its path after installing it, or raise `error`."""
        raise error

    def compiling(self, processor: str) -> AbstractContextManager[None]:
        """Entered while kernels are compiled, for this "CPU", "GPU" or "kind of GPU": for seconds, and only once."""
        self.note(COMPILING.format(processor))
        return nullcontext()


def format_size(size: int) -> str:
    """A number of bytes in decimal units: "31.2 MB"."""
    if size < 1000:
        return f"{size} bytes"
    value = float(size)
    for unit in ("kB", "MB", "GB"):
        value /= 1000
        if value < 999.95:
            return f"{value:.1f} {unit}"
    return f"{value / 1000:.1f} TB"


def did_you_mean(wanted: str, known: Iterable[str]) -> str:
    """A hint for an unknown name: "; did you mean a, b or c?" with the nearest three at most; "" if none is near."""
    from difflib import get_close_matches

    near = get_close_matches(wanted.lower(), list(known), n=3)
    if not near:
        return ""
    *others, last = near
    return f"; did you mean {', '.join(others)} or {last}?" if others else f"; did you mean {last}?"


def pluralize(count: int, noun: str) -> str:
    """A count with its noun: "1 turn", "2 turns"."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
