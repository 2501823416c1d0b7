"""Where a prompt comes from: an option, a file or standard input."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from rwkv_cli.cli.terminal import ui
from rwkv_cli.errors import UsageError
from rwkv_cli.text import stop_strings

_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # some editors on Windows write it at the beginning of a file


def read_prompt(text: str | None, file: str | None, optional: bool = False) -> str:
    """The prompt of --prompt, of --prompt-file ("-" is standard input) or, without both, of standard input.

    One newline at the end of a file is dropped: the editor put it there, not the user. An `optional` prompt is empty
    if standard input is a terminal. Raises UsageError if there is no prompt, if both options are given, and for text
    that is not UTF-8.
    """
    if text is not None and file is not None:
        raise UsageError("give either --prompt or --prompt-file, not both")
    if text is not None:
        return checked_text(text, "prompt")
    if file is None and (sys.stdin is None or ui.is_terminal(sys.stdin)):
        if optional:
            return ""
        raise UsageError("no prompt given: use --prompt TEXT, --prompt-file FILE or a pipe")
    data = _read(file or "-").removeprefix(_BYTE_ORDER_MARK)
    return re.sub(r"\r?\n\Z", "", _decoded(data, "prompt"))


def parse_stops(texts: Sequence[str]) -> tuple[str, ...]:
    r"""The stop strings of --stop, in which \n, \t, \r and \\ are written as escapes. Raises UsageError."""
    return stop_strings.parse_stops(_unescaped(checked_text(text, "stop string")) for text in texts)


def checked_text(text: str, what: str) -> str:
    """An argument of the command line. Raises UsageError unless it was UTF-8: other bytes became surrogates."""
    return _decoded(
        text.encode("utf-8", "surrogatepass" if sys.platform == "win32" else "surrogateescape"), what
    )


def _unescaped(text: str) -> str:
    return re.sub(r"\\([ntr\\])", lambda match: _ESCAPES[match[1]], text)


def _read(file: str) -> bytes:
    try:
        if file == "-":
            return sys.stdin.buffer.read()
        return Path(file).expanduser().read_bytes()
    except OSError as error:
        where = "standard input" if file == "-" else file
        raise UsageError(
            f"cannot read the prompt from {where}: {(error.strerror or str(error)).lower()}"
        ) from None


def _decoded(data: bytes, what: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"the {what} is not valid UTF-8 text (byte {error.start})") from None
