"""TOML that people write, read within limits; an error names the file, and for a key the line."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from rwkv_cli.errors import RwkvError

MOST_BYTES = 1 << 20


def read(path: Path, error: type[RwkvError], what: str = "") -> tuple[dict[str, Any], str]:
    """The content of a file, and its text, in which only a newline ends a line.

    `what` is how messages introduce the file, such as "the template". Raises `error` for a file that cannot be read,
    has more than MOST_BYTES, or is not TOML in UTF-8.
    """
    shown = f"{what} {path}".lstrip()
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise error(f"{shown} is too large: it has more than {MOST_BYTES >> 20} MB")
        text = data.decode("utf-8-sig").replace("\r\n", "\n")
        return tomllib.loads(text), text
    except OSError as failure:
        raise error(f"cannot read {shown}: {(failure.strerror or str(failure)).lower()}") from None
    except UnicodeDecodeError as failure:
        raise error(f"{shown} is not valid UTF-8 text (byte {failure.start})") from None
    except tomllib.TOMLDecodeError as failure:
        reason = str(failure).replace("at end of document", f"at line {len(text.splitlines())}, the last")[
            :200
        ]
        raise error(f"{shown} is not valid TOML: {reason[:1].lower()}{reason[1:]}") from None
    except RecursionError:
        raise error(f"{shown} is nested too deeply") from None
    except ValueError:
        raise error(f"{shown} has a number of too many digits") from None


def line_of(text: str, table: str, key: str | None = None) -> int:
    """The line of a key in a table, or of the table's header; `tomllib` does not tell. 1 if neither is found.

    The table "" is the beginning of a file, before the first header.
    """
    header, inside = 1, not table
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.strip()
        if line.startswith("["):
            inside = bool(table) and _is_header(line, table)
            if inside:
                header = number
                if key is None:
                    return number
        elif inside and key and is_line_of(line, key):
            return number
        elif header == 1 and table and re.match(rf"""["']?{re.escape(table)}["']?\s*[=.]""", line):
            header = number
    return header


def is_line_of(line: str, key: str) -> bool:
    """Whether a line gives a key its value."""
    return bool(re.match(rf"""\s*["']?{re.escape(key)}["']?\s*(=|\.)""", line))


def _is_header(line: str, table: str) -> bool:
    """Whether a line opens a table, or one within it."""
    try:
        opened = tomllib.loads(line)
    except tomllib.TOMLDecodeError:
        return False
    return table in opened
