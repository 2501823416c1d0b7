"""The tokens of a model, as llguidance needs them: built once for each tokenizer."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rwkv_cli.engine.constraint import Mask, mask_of
from rwkv_cli.text.thinking import CLOSE
from rwkv_cli.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLTokenizer

TAG = CLOSE.encode()
"""What ends a thought."""

WHITE = b" \n"
"""What may follow the tag in the same token."""


@dataclass(frozen=True)
class Vocabulary:
    """What constraints need to know of a tokenizer."""

    library: LLTokenizer
    tokens: Sequence[bytes]  # [V]; empty for those that end a text and for ids without an entry
    ends: tuple[int, ...]  # the tokens that end a text
    thinking: Mask  # of the tokens that a thought may consist of
    closing: Mapping[int, NDArray[np.int64]]
    """By n: the tokens that complete the tag after its first n bytes, and then go on with what no mask has seen."""

    @property
    def size(self) -> int:
        """V."""
        return len(self.tokens)


@functools.lru_cache(maxsize=8)
def vocabulary(tokenizer: Tokenizer, size: int, ends: tuple[int, ...]) -> Vocabulary:
    """The vocabulary of a model with `size` rows, in which the tokens `ends` end a text."""
    from llguidance import LLTokenizer
    from llguidance._tokenizer import TokenizerWrapper

    tokens = [b"" if token in ends else tokenizer.token_bytes(token) for token in range(size)]
    closing = _closing(tokens)
    thinking = np.ones(size, bool)
    thinking[[*ends, *closing.pop(0, ())]] = False
    library = LLTokenizer(
        TokenizerWrapper(_Wrapped(tokenizer, tokens, ends)), n_vocab=size, eos_token=[*ends]
    )
    return Vocabulary(library, tokens, ends, mask_of(np.flatnonzero(thinking), size), closing)


def _closing(tokens: Sequence[bytes]) -> dict[int, NDArray[np.int64]]:
    found: dict[int, list[int]] = {}
    for token, data in enumerate(tokens):
        if (end := data.find(b">")) < 0 or not data[end + 1 :].strip(WHITE):
            continue
        for n in range(len(TAG)):  # of the tag, that came before this token
            part = TAG[n:]
            if data.startswith(part) if n else TAG in data and data.partition(TAG)[2].strip(WHITE):
                found.setdefault(n, []).append(token)
    return {n: np.array(each, np.int64) for n, each in found.items()}


class _Wrapped:
    """A tokenizer with the names that llguidance asks for."""

    bos_token_id = None
    special_token_ids: Sequence[int] = ()

    def __init__(self, tokenizer: Tokenizer, tokens: Sequence[bytes], ends: tuple[int, ...]) -> None:
        self.tokens = tokens
        self.eos_token_id = ends[0]
        self._tokenizer = tokenizer

    def __call__(self, data: bytes) -> list[int]:
        return self._tokenizer.encode(data.decode("utf-8", "replace"))
