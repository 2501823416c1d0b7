"""Keeps the `tokenizers` library from what it cannot bear, and makes a sentence of whatever it raises."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rwkv_cli.errors import TokenizerError


def check(description: Any) -> None:
    """Raise an exception for the content of a tokenizer.json that the library would end the process for.

    Of any kind, as those of the library are: it goes within `told`.
    """
    _check_merges(description["model"])
    _check_normalizer(description.get("normalizer"))


def _check_normalizer(normalizer: object) -> None:
    """Raise ValueError where the library would take as much memory as a table claims to need, and end the process."""
    if not isinstance(normalizer, dict):
        return
    inner = normalizer.get("normalizers")
    for each in inner if isinstance(inner, list) else ():
        _check_normalizer(each)
    if normalizer.get("type") == "Precompiled":
        table = base64.b64decode(normalizer["precompiled_charsmap"])
        if int.from_bytes(table[:4], "little") > len(table) - 4:
            raise ValueError("its table of characters is shorter than it claims")


def _check_merges(model: Any) -> None:
    """Raise ValueError where the library would cut the prefix off a piece without one, and end the process."""
    prefix = model.get("continuing_subword_prefix")
    for merge in model.get("merges") or () if prefix else ():
        _, second = merge.split(" ") if isinstance(merge, str) else merge
        if not second.startswith(prefix):
            raise ValueError(
                f"{second!r} is merged as the rest of a word, and does not begin with {prefix!r}"
            )


@contextmanager
def told(what: str) -> Iterator[None]:
    """Around a call of the `tokenizers` library: whatever it raises is a TokenizerError.

    It raises bare Exceptions; and where its Rust code panics, something that is not even one.
    """
    try:
        yield
    except MemoryError:
        raise
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise TokenizerError(f"{what}: {error}") from error
        raise
