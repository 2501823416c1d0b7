"""Prompts as bytes of files: how long they may be, and how they become text."""

from __future__ import annotations

from rwkv_cli.errors import UsageError

MOST_BYTES = 64_000_000
"""Of a prompt, or of a line with one: a hundred books. A device or a pipe without an end must not fill the memory."""

BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # some editors on Windows write it at the beginning of a file


def decoded(data: bytes, what: str) -> str:
    """The text of bytes. Raises UsageError unless they are UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"the {what} is not valid UTF-8 text (byte {error.start})") from None
