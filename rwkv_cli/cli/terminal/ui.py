"""The terminal: what may be written to it, and how."""

from __future__ import annotations

import io
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

INTERRUPTED = 130
"""The exit code after Ctrl-C: 128 + SIGINT, as shells have it."""

BOLD, DIM, RED = "1", "2", "1;31"

# What a terminal might obey: the C0 controls but for tab and newline, DEL, and the C1 controls.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def is_terminal(stream: IO[str] | None) -> bool:
    """Whether a person is at the other end."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # it is closed
        return False


def is_animated(stream: IO[str] | None) -> bool:
    """Whether a bar or a spinner can move there."""
    return is_terminal(stream) and os.environ.get("TERM") != "dumb"


def printable(text: str) -> str:
    """Text that no terminal obeys: control characters as their pictures, such as ␛, carriage returns dropped."""
    return _CONTROLS.sub(_picture, text)


def _picture(match: re.Match[str]) -> str:
    code = ord(match[0])
    if match[0] == "\r":
        return ""
    return chr(0x2400 + code) if code < 0x20 else "␡" if code == 0x7F else "\ufffd"


def is_styled(stream: IO[str] | None) -> bool:
    """Whether bold and the like can be shown there, and NO_COLOR is not set."""
    return is_animated(stream) and not os.environ.get("NO_COLOR")


def styled(text: str, style: str, stream: IO[str]) -> str:
    """Text in bold and the like, where the stream shows them."""
    return f"\x1b[{style}m{text}\x1b[0m" if is_styled(stream) else text


def note(text: str) -> None:
    """A line on stderr, beside the output."""
    print(styled(printable(text), DIM, sys.stderr), file=sys.stderr)


def error(text: str) -> None:
    """The line on stderr that says why there is no output."""
    print(f"{styled('rwkv:', RED, sys.stderr)} {printable(text)}", file=sys.stderr)


def table(title: str, rows: Mapping[str, str]) -> None:
    """Rows of a name and a text on stdout, under a title; a terminal gets texts that are wrapped to its width."""
    is_person = is_terminal(sys.stdout)
    indent = max(map(len, rows)) + 4
    room = max(shutil.get_terminal_size().columns - indent, 16)
    print(styled(title, BOLD, sys.stdout))
    for name, text in rows.items():
        lines = (
            textwrap.wrap(printable(text), room, break_on_hyphens=False) if is_person else [printable(text)]
        )
        print(f"  {name:{indent - 2}}" + ("\n" + " " * indent).join(lines))


def columns(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table with a title over each column on stdout; the last column is as wide as it is."""
    rows = [[printable(text) for text in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]

    def line(texts: Sequence[str]) -> str:
        return "  ".join(f"{text:{width}}" for text, width in zip(texts, widths, strict=True)).rstrip()

    print(styled(line(titles), BOLD, sys.stdout))
    for row in rows:
        print(line(row))


def prepare_streams() -> None:
    """UTF-8 into files and pipes on every system; a terminal that lacks a character shows a question mark."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by `>&-`
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding=None if stream.isatty() else "utf-8", errors="replace")


def abandon_stdout() -> None:
    """Nobody reads, or nothing can be written: what is still buffered must not fail again at exit."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
    except (OSError, ValueError, AttributeError):  # no real file behind it, as under a test
        pass
