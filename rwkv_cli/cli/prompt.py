"""Where a prompt comes from: an option, a file or standard input."""

from __future__ import annotations

import os
import re
import select
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

from rwkv_cli import paths
from rwkv_cli.cli.terminal import ui
from rwkv_cli.errors import UsageError
from rwkv_cli.text import prompt_bytes, stop_strings

_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}
_PATIENCE = 2  # seconds


def read_prompt(text: str | None, file: str | None, optional: bool = False) -> str:
    """The prompt: what is in --prompt-file ("-" is standard input) or a pipe, and below it that of --prompt.

    A blank line separates them. One newline at the end of a file is dropped: the editor put it there, not the user. An
    `optional` prompt is empty if standard input is a terminal. Raises UsageError if there is no prompt, for text that
    is not UTF-8, and for more than prompt_bytes.MOST_BYTES.
    """
    given = [] if text is None else [checked_text(text, "prompt")]
    if file is None:
        if text is not None and not _is_piped():
            return given[0]
        if sys.stdin is None or ui.is_terminal(sys.stdin):
            if optional:
                return ""
            raise UsageError("no prompt given: use --prompt TEXT, --prompt-file FILE or a pipe")
        if text is not None:
            _tell_of_waiting()
    data = _read(file or "-").removeprefix(prompt_bytes.BYTE_ORDER_MARK)
    read = re.sub(r"\r?\n\Z", "", prompt_bytes.decoded(data, "prompt"))
    return "\n\n".join([read, *given] if read or not given else given)


def words_or_option(words: Sequence[str] | None, option: str | None) -> str | None:
    """The prompt that is given as arguments, or with --prompt. Raises UsageError if both are given."""
    if not words:
        return option
    if option is not None:
        raise UsageError("give either PROMPT or --prompt, not both")
    return " ".join(words)


def _is_piped() -> bool:
    """Whether something was meant to be read from standard input: a pipe or a file, not a terminal or /dev/null."""
    if sys.stdin is None or ui.is_terminal(sys.stdin):
        return False
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):  # no file of the system: a text in memory, or it is closed
        return not sys.stdin.closed
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)


def _tell_of_waiting() -> None:
    """Say why nothing happens, where a pipe stays silent: a program that calls this one may never have closed it."""
    try:
        is_ready = select.select([sys.stdin], [], [], _PATIENCE)[0]
    except (OSError, ValueError):  # Windows has this for sockets only
        return
    if not is_ready:
        ui.note("reading standard input, which comes before --prompt; without one, use: < /dev/null")


def parse_stops(texts: Sequence[str]) -> tuple[str, ...]:
    r"""The stop strings of --stop, in which \n, \t, \r and \\ are written as escapes. Raises UsageError."""
    return stop_strings.parse_stops(_unescaped(checked_text(text, "stop string")) for text in texts)


def checked_text(text: str, what: str) -> str:
    """An argument of the command line. Raises UsageError unless it was UTF-8: other bytes became surrogates."""
    try:
        data = text.encode("utf-8", "surrogatepass" if sys.platform == "win32" else "surrogateescape")
    except UnicodeEncodeError as error:  # a surrogate that stands for no byte
        raise UsageError(f"the {what} is not valid UTF-8 text (character {error.start})") from None
    return prompt_bytes.decoded(data, what)


def _unescaped(text: str) -> str:
    return re.sub(r"\\([ntr\\])", lambda match: _ESCAPES[match[1]], text)


def read_limited(path: Path, most: int) -> bytes | None:
    """What is in a file, which may be a pipe or a device; None if that is more than `most` bytes. Raises OSError."""
    with path.open("rb") as file:
        data = file.read(most + 1)
    return data if len(data) <= most else None


def _read(file: str) -> bytes:
    where = "standard input" if file == "-" else file
    try:
        if file != "-":
            data = read_limited(paths.user_path(file), prompt_bytes.MOST_BYTES)
        elif sys.stdin is None:
            raise UsageError("cannot read the prompt from standard input: it is closed")
        else:
            data = sys.stdin.buffer.read(prompt_bytes.MOST_BYTES + 1)
    except OSError as error:
        raise UsageError(
            f"cannot read the prompt from {where}: {(error.strerror or str(error)).lower()}"
        ) from None
    if data is None or len(data) > prompt_bytes.MOST_BYTES:
        limit = f"{prompt_bytes.MOST_BYTES // 10**6} MB"
        raise UsageError(f"{where} has more than {limit}, which is the most that is read: use a part of it")
    return data
