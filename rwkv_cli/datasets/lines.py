"""The lines of a file of prompts, read one at a time: the file may be larger than the memory, or have no end."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import BinaryIO

from rwkv_cli.errors import UsageError
from rwkv_cli.text import prompt_bytes

_PART = 1 << 20
_MOST_LIMITS = 100
"""A line that is this many times too long is taken for one without an end, such as that of /dev/zero."""


@dataclass(frozen=True)
class Line:
    """A line that is not blank."""

    index: int  # among those that are not blank, from 0
    number: int  # among all lines, from 1
    text: str  # without its end; empty for a wrong one
    digest: int  # 64 bits of a hash of its bytes
    begin: int  # the byte of the file where it begins
    n_bytes: int  # in the file
    error: str = ""  # why it is not a text


def read_lines(file: BinaryIO, name: str, first_number: int = 1) -> Iterator[Line]:
    """The lines that follow in a file, which is called `name`; the next one has the number `first_number`.

    Raises UsageError for a line without an end, and OSError.
    """
    index, begin = 0, 0
    for number in itertools.count(first_number):
        data, digest, n_bytes = _next(file, name, number)
        if not n_bytes:
            return
        text = error = ""
        if data is None:
            most = prompt_bytes.MOST_BYTES // 10**6
            error = f"the line has more than {most} MB, which is the most that is read"
        else:
            if number == 1:
                data = data.removeprefix(prompt_bytes.BYTE_ORDER_MARK)
            try:
                text = prompt_bytes.decoded(data, "prompt")
            except UsageError as wrong:
                error = str(wrong)
        if text.strip() or error:
            yield Line(index, number, text, digest, begin, n_bytes, error)
            index += 1
        begin += n_bytes


def _next(file: BinaryIO, name: str, number: int) -> tuple[bytes | None, int, int]:
    """The next line without its end, None if it is too long; the digest of all of it, and its size in the file."""
    most = prompt_bytes.MOST_BYTES
    data = file.readline(most + 2)  # with \r\n
    line = data.removesuffix(b"\n").removesuffix(b"\r")
    hasher, n_bytes = blake2b(line, digest_size=8), len(data)
    while n_bytes > most and data and not data.endswith(b"\n"):
        data = file.readline(_PART)
        hasher.update(data)
        n_bytes += len(data)
        if n_bytes > most * _MOST_LIMITS:
            raise UsageError(
                f"{name}, line {number}: it has more than {n_bytes // 10**6:,} MB, and no end is in sight"
            )
    return line if len(line) <= most else None, int.from_bytes(hasher.digest()), n_bytes
