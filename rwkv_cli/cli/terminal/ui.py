"""The terminal: what may be written to it, and how."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Container, Mapping, Sequence
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
_COLUMNS, _LINES = 80, 24
_GAP = 2  # columns between those of a table
_LEAST_COLUMN = 20  # columns in which a text is still wrapped, or the rows are stacked

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
    columns = shutil.get_terminal_size((0, 0)).columns or _columns_of_stderr()
    return min(columns, _MOST_COLUMNS)


def _columns_of_stderr() -> int:
    """The width of the terminal where stdout is a pipe or a file, but messages are read."""
    try:
        return os.get_terminal_size(2).columns or _COLUMNS
    except OSError:
        return _COLUMNS


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
    print(styled(_at_width(shortened(printable(text))), DIM, sys.stderr), file=sys.stderr)


def detail(text: str) -> None:
    """Print a remark that only some want to read."""
    if _is_verbose:
        note(text)


def error(text: str) -> None:
    """Print on stderr why a command failed."""
    first, *others = _at_width(f"rwkv: {shortened(printable(text))}").split(" ", 1)
    print(" ".join([styled(first, RED, sys.stderr), *others]), file=sys.stderr)


def _at_width(text: str) -> str:
    """A message with line breaks between words, as the terminal needs them; a word longer than a line stays whole."""
    if not is_terminal(sys.stderr):
        return text
    width = max(columns_of_terminal(), 1)
    lines = (
        textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False)
        for line in text.split("\n")
    )
    return "\n".join(lines)


def table(title: str, rows: Mapping[str, str]) -> None:
    """Print rows of a name and a text under a title; on a terminal, texts are wrapped to its width.

    A text that is very long is shortened, as messages are.
    """
    print(styled(printable(title), BOLD, sys.stdout))
    print(_pairs(rows))


def columns(titles: Sequence[str], rows: Sequence[Sequence[str]], right: Container[int] = ()) -> None:
    """Print a table with a title above each column; the columns of the numbers in `right` are aligned to the right.

    On a terminal that it does not fit, the last column is wrapped, or else every row becomes a table of its own.
    """
    from rich.cells import cell_len

    from rwkv_cli.cli.terminal.wrap import wrapped

    rows = [[printable(text) for text in row] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(titles, *rows, strict=True)]
    before = sum(widths[:-1]) + _GAP * len(widths[:-1])
    last = widths[-1]
    if is_terminal(sys.stdout):
        last = min(last, columns_of_terminal() - before)
        if last < min(widths[-1], _LEAST_COLUMN):
            _stacked(titles, rows)
            return

    def line(texts: Sequence[str]) -> str:
        *cells, text = (
            _padded(text, width, number in right)
            for number, (text, width) in enumerate(zip(texts, [*widths[:-1], 0], strict=True))
        )
        lines = wrapped(text, last) if cell_len(text) > last else [_padded(text, last, len(cells) in right)]
        return ("\n" + " " * before).join([(" " * _GAP).join([*cells, lines[0]]).rstrip(), *lines[1:]])

    print(styled(line(titles), BOLD, sys.stdout))
    for row in rows:
        print(line(row))


def _stacked(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows one below the other: the first cell, and under it the others with their titles."""
    for number, (name, *cells) in enumerate(rows):
        pairs = dict(zip(titles[1:], cells, strict=True))
        shown = {title: text for title, text in pairs.items() if text}
        print(("\n" if number else "") + styled(name, BOLD, sys.stdout))
        if shown:
            print(_pairs(shown))


def _pairs(rows: Mapping[str, str]) -> str:
    """Lines of names and texts, beside each other or, on a narrow terminal, one below the other."""
    from rich.cells import cell_len

    from rwkv_cli.cli.terminal.wrap import wrapped

    rows = {printable(name): shortened(printable(text)) for name, text in rows.items()}
    is_person = is_terminal(sys.stdout)
    indent = max(map(cell_len, rows)) + 2 * _GAP
    is_narrow = is_person and columns_of_terminal() - indent < _LEAST_COLUMN
    if is_narrow:
        indent = 2 * _GAP
    lines = []
    for name, text in rows.items():
        first, *others = wrapped(text, max(columns_of_terminal() - indent, 1)) if is_person else [text]
        head = " " * _GAP + (name if is_narrow else _padded(name, indent - _GAP))
        lines += [head, " " * indent + first] if is_narrow else [head + first]
        lines += [" " * indent + other for other in others]
    return "\n".join(lines)


def _padded(text: str, width: int, to_right: bool = False) -> str:
    from rich.cells import cell_len

    space = " " * (width - cell_len(text))
    return space + text if to_right else text + space


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
