"""How well a model predicts a text: the measure that quantization is judged by."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from rwkv_cli.engine.backends.base import Backend
from rwkv_cli.engine.state import State

CHUNK = 64
"""Tokens whose logits are held at the same time."""


def negative_log_likelihoods(backend: Backend, tokens: Sequence[int]) -> NDArray[np.float64]:
    """-ln p of each token but the first, given all before it, from an empty state: float64 [T - 1]."""
    state, losses = State.zeros(backend.config), []
    for start in range(0, len(tokens) - 1, CHUNK):
        stop = min(start + CHUNK, len(tokens) - 1)
        logits = backend.forward_all(tokens[start:stop], state).astype(np.float64)
        targets = np.asarray(tokens[start + 1 : stop + 1])
        peak = logits.max(axis=1)
        total = peak + np.log(np.exp(logits - peak[:, None]).sum(axis=1))
        losses.append(total - logits[np.arange(len(targets)), targets])
    return np.concatenate(losses)


def perplexity(
    backend: Backend,
    tokens: Sequence[int],
    windows: int,
    length: int,
    progress: Callable[[int, int], None] | None = None,
) -> float:
    """exp of the mean loss of `length` predictions in each of `windows` evenly spread pieces, from empty states."""
    losses = []
    for j in range(windows):
        start = j * (len(tokens) // windows)
        losses.append(negative_log_likelihoods(backend, tokens[start : start + length + 1]).mean())
        if progress:
            progress(j + 1, windows)
    return float(np.exp(np.mean(losses)))
