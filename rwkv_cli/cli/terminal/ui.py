"""The terminal: what may be written to it, and how."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal

from rwkv_cli.cli.terminal.visible import printable as printable
from rwkv_cli.cli.terminal.visible import safe_json
from rwkv_cli.errors import shortened

if TYPE_CHECKING:
    from rich.console import Console

INTERRUPTED = 130
"""The exit code after Ctrl-C, as in shells: 128 + SIGINT."""

BOLD, DIM, RED = "1", "2", "1;31"

_MOST_COLUMNS = 9999
_LINES = 24

_theme = "auto"
_is_verbose = False


def use_theme(name: str) -> None:
    """Choose the theme of what follows: "auto", or "plain" for no styles at all."""
    global _theme
    _theme = name


def be_verbose(verbose: bool) -> None:
    """Choose whether `detail` tells anything, from now on."""
    global _is_verbose
    _is_verbose = verbose


def is_verbose() -> bool:
    """Whether the user wants to know more than the result."""
    return _is_verbose


def is_terminal(stream: IO[str] | None) -> bool:
    """Whether a stream is a terminal, with a person in front of it."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # it is closed
        return False


def is_dumb() -> bool:
    """Whether the terminal understands no escape sequences, as that of an editor or a build server."""
    return os.environ.get("TERM", "").lower() in ("dumb", "unknown")


def is_animated(stream: IO[str] | None) -> bool:
    """Whether a stream is a terminal that can show a bar or a spinner."""
    return is_terminal(stream) and not is_dumb()


def columns_of_terminal() -> int:
    """The width of the terminal, or what COLUMNS says; a number that no terminal has is taken for the largest."""
    return min(shutil.get_terminal_size().columns, _MOST_COLUMNS)


def console(stream: Literal["stdout", "stderr"]) -> Console:
    """What `rich` draws on."""
    from rich.console import Console

    width = height = None
    if any(not _is_size(os.environ.get(name, "1")) for name in ("COLUMNS", "LINES")):  # which rich trusts
        width, height = columns_of_terminal(), _LINES
    is_error = stream == "stderr"
    return Console(
        stderr=is_error,
        highlight=False,
        soft_wrap=not is_error,
        width=width,
        height=height,
        no_color=True if _theme == "plain" else None,
    )


def _is_size(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 5


def is_styled(stream: IO[str] | None) -> bool:
    """Whether a stream shows styles such as bold, and neither NO_COLOR nor the theme turns them off."""
    return is_animated(stream) and not os.environ.get("NO_COLOR") and _theme != "plain"


def styled(text: str, style: str, stream: IO[str]) -> str:
    """Text in a style, such as BOLD, if the stream shows styles."""
    return f"\x1b[{style}m{text}\x1b[0m" if is_styled(stream) else text


def note(text: str) -> None:
    """Print a remark on stderr, which is not part of the output."""
    print(styled(shortened(printable(text)), DIM, sys.stderr), file=sys.stderr)


def detail(text: str) -> None:
    """Print a remark that only some want to read."""
    if _is_verbose:
        note(text)


def error(text: str) -> None:
    """Print on stderr why a command failed."""
    print(f"{styled('rwkv:', RED, sys.stderr)} {shortened(printable(text))}", file=sys.stderr)


def table(title: str, rows: Mapping[str, str]) -> None:
    """Print rows of a name and a text under a title; on a terminal, texts are wrapped to its width.

    A text that is very long is shortened, as messages are.
    """
    is_person = is_terminal(sys.stdout)
    rows = {printable(name): shortened(printable(text)) for name, text in rows.items()}
    indent = max(map(len, rows)) + 4
    width = max(columns_of_terminal() - indent, 16)
    print(styled(printable(title), BOLD, sys.stdout))
    for name, text in rows.items():
        lines = textwrap.wrap(text, width, break_on_hyphens=False) if is_person else [text]
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


def json_text(value: object, indent: int | None = None) -> str:
    """A value as JSON, which may be printed: no terminal obeys it."""
    from json import dumps

    return safe_json(dumps(value, ensure_ascii=False, allow_nan=False, indent=indent))


def write_json(value: object) -> None:
    """Print a value as indented JSON."""
    print(json_text(value, indent=2))


def write_path(path: Path) -> None:
    """Print a path: to a terminal for a person, otherwise its bytes as they are, whether they are UTF-8 or not."""
    if is_terminal(sys.stdout):
        print(printable(str(path)))
        return
    sys.stdout.flush()
    sys.stdout.buffer.write(os.fsencode(path) + os.linesep.encode())
    sys.stdout.buffer.flush()
