"""Vocabularies behind one protocol."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class TokenizerSpec:
    """What a file needs to carry so that its tokenizer can be built again.

    kind "world" is greedy longest match over byte strings: data is None for the packaged World vocabulary, otherwise
    a vocabulary in the format of `rwkv_vocab_v20230424.txt`. kind "tokenizer.json" is a file of the `tokenizers`
    library: data is its bytes.
    """

    kind: Literal["world", "tokenizer.json"]
    data: bytes | None = None
