"""The terminal: what may be written to it, and how."""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import IO

INTERRUPTED = 130
"""The exit code after Ctrl-C, as in shells: 128 + SIGINT."""

BOLD, DIM, RED = "1", "2", "1;31"

# What a terminal might obey: the C0 controls except tab and newline, DEL, and the C1 controls.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def is_terminal(stream: IO[str] | None) -> bool:
    """Whether a stream is a terminal, with a person in front of it."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # it is closed
        return False


def is_animated(stream: IO[str] | None) -> bool:
    """Whether a stream is a terminal that can show a bar or a spinner."""
    return is_terminal(stream) and os.environ.get("TERM") != "dumb"


def printable(text: str) -> str:
    """Text that is safe to print: control characters become pictures, such as ␛, and carriage returns are dropped."""
    return _CONTROLS.sub(_picture, text)


def _picture(match: re.Match[str]) -> str:
    code = ord(match[0])
    if match[0] == "\r":
        return ""
    return chr(0x2400 + code) if code < 0x20 else "␡" if code == 0x7F else "\ufffd"


def is_styled(stream: IO[str] | None) -> bool:
    """Whether a stream shows styles such as bold, and NO_COLOR is not set."""
    return is_animated(stream) and not os.environ.get("NO_COLOR")


def styled(text: str, style: str, stream: IO[str]) -> str:
    """Text in a style, such as BOLD, if the stream shows styles."""
    return f"\x1b[{style}m{text}\x1b[0m" if is_styled(stream) else text


def note(text: str) -> None:
    """Print a remark on stderr, which is not part of the output."""
    print(styled(printable(text), DIM, sys.stderr), file=sys.stderr)


def error(text: str) -> None:
    """Print on stderr why a command failed."""
    print(f"{styled('rwkv:', RED, sys.stderr)} {printable(text)}", file=sys.stderr)


def table(title: str, rows: Mapping[str, str]) -> None:
    """Print rows of a name and a text under a title; on a terminal, texts are wrapped to its width."""
    is_person = is_terminal(sys.stdout)
    indent = max(map(len, rows)) + 4
    width = max(shutil.get_terminal_size().columns - indent, 16)
    print(styled(title, BOLD, sys.stdout))
    for name, text in rows.items():
        lines = (
            textwrap.wrap(printable(text), width, break_on_hyphens=False) if is_person else [printable(text)]
        )
        print(f"  {name:{indent - 2}}" + ("\n" + " " * indent).join(lines))


def columns(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table with a title above each column; the last column is as wide as its longest text."""
    rows = [[printable(text) for text in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]

    def line(texts: Sequence[str]) -> str:
        return "  ".join(f"{text:{width}}" for text, width in zip(texts, widths, strict=True)).rstrip()

    print(styled(line(titles), BOLD, sys.stdout))
    for row in rows:
        print(line(row))


def write_json(value: object) -> None:
    """Print a value as indented JSON."""
    from json import dumps

    print(dumps(value, ensure_ascii=False, indent=2))
