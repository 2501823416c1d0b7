"""How differently two models continue the same text: distributions of the next token, and greedy texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rwkv_cli.engine.backends.base import Backend
from rwkv_cli.engine.perplexity import CHUNK
from rwkv_cli.engine.state import State
from rwkv_cli.evaluation.text import Losses, Windows

GREEDY_PROMPT = 32
GREEDY_TOKENS = 64
GREEDY_TEXTS = 8


class Pairs(NamedTuple):
    """What two models said of each predicted token."""

    before: Losses  # -ln p, [n]
    after: Losses
    divergence: Losses  # sum of p ln(p / q) over the vocabulary, in nats; p is of the first model
    agrees: NDArray[np.bool_]  # whether the most probable token is the same


def pairs(
    before: Backend, after: Backend, windows: Windows, progress: Callable[[int, int], None] | None = None
) -> Pairs:
    """Read every window with both models, from empty states; a few tokens' logits are in memory at a time."""
    parts = []
    for j, window in enumerate(windows):
        states = State.zeros(before.config), State.zeros(after.config)
        for start in range(0, len(window) - 1, CHUNK):
            stop = min(start + CHUNK, len(window) - 1)
            p, q = (
                _log_probabilities(backend.forward_all(window[start:stop], state))
                for backend, state in zip((before, after), states, strict=True)
            )
            i, targets = np.arange(stop - start), np.asarray(window[start + 1 : stop + 1])
            divergence = np.maximum((np.exp(p) * (p - q)).sum(axis=1), 0)  # rounding can make it -1e-17
            agrees = p.argmax(axis=1) == q.argmax(axis=1)
            parts.append(Pairs(-p[i, targets], -q[i, targets], divergence, agrees))
        if progress:
            progress(j + 1, len(windows))
    return Pairs(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _log_probabilities(logits: NDArray[np.float32]) -> Losses:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=1, keepdims=True))
    return wide


def greedy_prompts(windows: Windows) -> Windows:
    """Beginnings of texts, evenly spread: for `parted`."""
    pieces = [
        window[i : i + GREEDY_PROMPT] for window in windows for i in range(0, len(window), GREEDY_PROMPT)
    ]
    step = max(1, len(pieces) // GREEDY_TEXTS)
    return pieces[::step][:GREEDY_TEXTS]


def parted(before: Backend, after: Backend, prompt: Sequence[int], most: int = GREEDY_TOKENS) -> int:
    """How many tokens two greedy texts have in common, up to `most`.

    The second model reads what the first one wrote, all at once: its own text is the same until its choice differs.
    """
    state = State.zeros(before.config)
    written = [int(before.forward(prompt, state).argmax())]
    while len(written) < most:
        written.append(int(before.forward(written[-1:], state).argmax()))
    logits = after.forward_all([*prompt, *written[:-1]], State.zeros(after.config))[len(prompt) - 1 :]
    differs = np.flatnonzero(logits.argmax(axis=1) != np.array(written))
    return int(differs[0]) if len(differs) else most
