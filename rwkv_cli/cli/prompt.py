"""Where a prompt comes from: an option, a file or standard input."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from rwkv_cli.cli.terminal import ui
from rwkv_cli.errors import UsageError

_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # what some editors on Windows begin a file with


def read_prompt(text: str | None, file: str | None, optional: bool = False) -> str:
    """The prompt of --prompt, of --prompt-file ("-" is standard input) or, without both, of standard input.

    One newline at the end of a file is its editor's and not the user's. Where a prompt is `optional`, there is none if
    standard input is a terminal. Raises UsageError where there is no
    prompt, where there are two, and where it is no text.
    """
    if text is not None and file is not None:
        raise UsageError("give either --prompt or --prompt-file, not both")
    if text is not None:
        return checked_text(text, "prompt")
    if file is None and (sys.stdin is None or ui.is_terminal(sys.stdin)):
        if optional:
            return ""
        raise UsageError('there is no prompt; try: rwkv generate --prompt "Once upon a time"')
    data = _read(file or "-").removeprefix(_BYTE_ORDER_MARK)
    return re.sub(r"\r?\n\Z", "", _decoded(data, "prompt"))


def checked_text(text: str, what: str) -> str:
    """An argument of the command line, unless its bytes were no UTF-8, which Python keeps as surrogates."""
    return _decoded(
        text.encode("utf-8", "surrogatepass" if sys.platform == "win32" else "surrogateescape"), what
    )


def unescaped(text: str) -> str:
    r"""Text with \n, \t, \r and \\ as the characters that they stand for, which are hard to type."""
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
