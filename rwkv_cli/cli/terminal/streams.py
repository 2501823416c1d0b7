"""The standard streams: UTF-8 where no terminal is, complete where a pipe is slow, harmless where one is closed."""

from __future__ import annotations

import contextlib
import io
import os
import select
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, TypeVar

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

_T = TypeVar("_T")


def prepare() -> None:
    """Make the streams of this process what the commands expect; once, before anything is read or written.

    UTF-8 goes to files and pipes on every system; a terminal that lacks a character shows a question mark.
    """
    _occupy_closed()
    if os.name == "posix" and isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin = _reader(sys.stdin)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by `>&-`
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            if os.name == "posix":
                setattr(sys, name, _writer(stream))
            else:
                stream.reconfigure(encoding=None if stream.isatty() else "utf-8", errors="replace")


def abandon_stdout() -> None:
    """Drop what is still buffered for stdout, which cannot be written, so that it does not fail again at exit."""
    _abandon(sys.stdout)


def abandon_stderr_if_gone() -> None:
    """The same for stderr, if it cannot be written any more: a terminal that was closed."""
    try:
        sys.stderr.flush()
    except (OSError, ValueError):
        _abandon(sys.stderr)


def _abandon(stream: TextIO) -> None:
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
    except (OSError, ValueError, AttributeError):  # no real file behind it, as under a test
        pass


def _occupy_closed() -> None:
    """Open the null device in place of closed streams: a file that got the number of one would get its output, too."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free


def _reader(stream: io.TextIOWrapper) -> TextIO:
    waiting = io.BufferedReader(_Waiting(stream.fileno()))
    return io.TextIOWrapper(waiting, encoding=stream.encoding, errors=stream.errors)


def _writer(stream: io.TextIOWrapper) -> TextIO:
    with contextlib.suppress(OSError):  # which what is written next meets again
        stream.flush()  # what is in it comes first
    return io.TextIOWrapper(
        io.BufferedWriter(_Waiting(stream.fileno())),
        encoding=stream.encoding if stream.isatty() else "utf-8",
        errors="replace",
        line_buffering=stream.line_buffering or stream.write_through,  # the latter: PYTHONUNBUFFERED
    )


class _Waiting(io.RawIOBase):
    """A descriptor that waits where it would block.

    Whether a pipe is O_NONBLOCK is up to every program that has it open, and may change at any time. Python's own
    streams then lose what does not fit, with an error or, if they are unbuffered, without one.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer).cast("B")
        data = self._patiently(lambda: os.read(self._descriptor, len(view)), reads=True)
        view[: len(data)] = data
        return len(data)

    def write(self, data: ReadableBuffer, /) -> int:
        return self._patiently(lambda: os.write(self._descriptor, data), reads=False)

    def _patiently(self, attempt: Callable[[], _T], *, reads: bool) -> _T:
        waits = [self._descriptor]
        while True:
            try:
                return attempt()
            except BlockingIOError:
                select.select(waits if reads else [], [] if reads else waits, [])
