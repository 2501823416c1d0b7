"""Progress of long operations; numbers as people read them, and what they may have meant."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from rwkv_cli.errors import MissingModelError

log = logging.getLogger("rwkv_cli")

Progress = Callable[[int], None]
"""Called with the number of tokens read since the last call."""

_PAUSE = 0.1  # seconds between two looks of a line of progress

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


class LineReporter(Reporter):
    """Shows progress in one line on stderr, below the cell of a notebook as well; at the end it is empty again."""

    def __init__(self) -> None:
        self._shown = ""
        self._next = 0.0  # when the line may change again

    def note(self, text: str) -> None:
        """Write a line of its own."""
        self._show("")
        print(text, file=sys.stderr, flush=True)

    def quantizing(self, done: int, total: int) -> None:
        """Show the share that is done."""
        self._advance("quantizing", done, total, f"{format_count(total)} weights")

    def downloading(self, done: int, total: int | None) -> None:
        """Show the share that is done, or how much that is."""
        self._advance("downloading", done, total, format_size(total or done))

    def _advance(self, what: str, done: int, total: int | None, size: str) -> None:
        is_over, now = total is not None and done >= total, time.monotonic()
        if now < self._next and not is_over:
            return
        self._next = now + _PAUSE
        self._show("" if is_over else f"{what}: {done / total:.0%} of {size}" if total else f"{what}: {size}")

    def _show(self, line: str) -> None:
        if line or self._shown:
            print(f"\r{line:{len(self._shown)}}\r{line}", end="", file=sys.stderr, flush=True)
        self._shown = line


def default_reporter() -> Reporter:
    """A reporter that shows progress where somebody looks at stderr, a terminal or a notebook; otherwise none."""
    stream = sys.stderr
    try:
        is_seen = stream is not None and (stream.isatty() or type(stream).__module__.startswith("ipykernel."))
    except ValueError:  # it is closed
        is_seen = False
    return LineReporter() if is_seen else Reporter()


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


def format_count(count: int) -> str:
    """A large number of things: "29.9 M"."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return str(count)


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
