"""How well a model predicts a text: perplexity and bits per byte."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkv_cli.engine.backends.base import Backend
from rwkv_cli.engine.perplexity import negative_log_likelihoods
from rwkv_cli.evaluation.intervals import Interval, bootstrap

Losses = NDArray[np.float64]

Windows = Sequence[Sequence[int]]
"""Pieces of a text, each read from an empty state; all tokens but the first of each are predicted."""


@dataclass(frozen=True)
class TextScore:
    """How well a text is predicted. Bits per byte are None where it is not known what bytes the tokens stand for."""

    tokens: int  # that were predicted
    perplexity: Interval
    bits_per_byte: Interval | None


def windows_of(tokens: Sequence[int], length: int, most: int | None = None) -> Windows:
    """Pieces of at most length + 1 tokens: the whole text or, with `most`, that many evenly spread over it."""
    length = min(length, len(tokens) - 1)
    fitting = max(1, len(tokens) // (length + 1))
    count = fitting if most is None else max(1, min(most, fitting))
    stride = len(tokens) // count
    return [tokens[j * stride : j * stride + length + 1] for j in range(count)]


def losses(backend: Backend, windows: Windows, progress: Callable[[int, int], None] | None = None) -> Losses:
    """-ln p of every predicted token, window after window."""
    found = []
    for j, window in enumerate(windows):
        found.append(negative_log_likelihoods(backend, window))
        if progress:
            progress(j + 1, len(windows))
    return np.concatenate(found)


def byte_counts(windows: Windows, token_bytes: Callable[[int], bytes]) -> NDArray[np.int64]:
    """The number of bytes of every predicted token."""
    return np.array([len(token_bytes(token)) for window in windows for token in window[1:]])


def score(found: Losses, n_bytes: NDArray[np.int64] | None) -> TextScore:
    """The measures of these losses, of tokens with these numbers of bytes."""
    bits = None
    if n_bytes is not None and n_bytes.sum():
        bits = bootstrap(len(found), lambda i: _per_byte(found, n_bytes, i))
    return TextScore(len(found), bootstrap(len(found), lambda i: math.exp(found[i].mean())), bits)


def _per_byte(found: Losses, n_bytes: NDArray[np.int64], i: NDArray[Any]) -> float:
    return float(found[i].sum() / math.log(2) / max(1, n_bytes[i].sum()))
