"""How probable given continuations are: many at once, and what texts have in common at their beginning is read once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rwkv_cli.engine.backends.base import Backend
from rwkv_cli.engine.sampling import Sampler
from rwkv_cli.engine.scheduler import Handle, Observation, Request, Scheduler
from rwkv_cli.sampling_settings import SamplingSettings

AHEAD = 512
"""Texts that the scheduler knows at the same time, in an order in which those that begin alike are neighbours."""


class Continuation(NamedTuple):
    """Tokens that have been read, and those that may follow; at least one of each."""

    context: Sequence[int]
    tokens: Sequence[int]


class Score(NamedTuple):
    """ln p of a continuation, and whether each of its tokens is the most probable one."""

    log_likelihood: float
    is_greedy: bool


def score_all(
    backend: Backend,
    continuations: Sequence[Continuation],
    done: Callable[[int, Score], Any],
    slots: int | None = None,
) -> None:
    """Call `done` with the index and the score of each continuation, as they become known.

    `slots` is how many texts are read together, None for the backend's own number. A text whose continuations differ
    in their last token only is read once, as for the letters of a multiple choice. Raises what reading raises.
    """
    texts = dict[bytes, list[int]]()  # of each, int32, which continuations it has
    for i, (context, tokens) in enumerate(continuations):
        text = np.array([*context, *tokens[:-1]], np.int32).tobytes()
        texts.setdefault(text, []).append(i)
    scheduler = Scheduler(backend, slots)
    coming = _requests(continuations, texts)
    open_ = dict[Handle, tuple[list[int], _Reading]]()
    while True:
        for request, indices, reading in islice(coming, AHEAD - len(open_)):
            open_[scheduler.submit(request)] = indices, reading
        if not open_:
            return
        for handle in scheduler.step():
            if handle.error:
                raise handle.error
            indices, reading = open_.pop(handle)
            for i in indices:
                done(i, reading.score(continuations[i].tokens))


def _requests(
    continuations: Sequence[Continuation], texts: dict[bytes, list[int]]
) -> Iterator[tuple[Request, list[int], _Reading]]:
    """What to submit, with the continuations that it is about."""
    for text in sorted(texts):
        indices, tokens = texts[text], np.frombuffer(text, np.int32)
        n = max(len(continuations[i].tokens) for i in indices)
        reading = _Reading(tokens[len(tokens) - n + 1 :])
        observed = Observation(n, reading.take)
        yield Request(tokens.tolist(), Sampler(SamplingSettings()), observed=observed), indices, reading


class _Reading:
    """What the logits after the last n tokens of a text say about the n - 1 tokens `known` and any after them."""

    def __init__(self, known: NDArray[np.int32]) -> None:
        self._known = known
        self._log_likelihoods = list[float]()
        self._is_first = list[bool]()
        self._last: NDArray[np.float32] | None = None  # logits [V]
        self._total = 0.0  # ln of the sum of exp of these

    def take(self, logits: NDArray[np.float32]) -> None:
        """Note what the next logits [m, V] say."""
        peak = logits.max(axis=1)
        total = peak + np.log(np.exp(logits - peak[:, None]).sum(axis=1, dtype=np.float64))
        start = len(self._log_likelihoods)
        targets = self._known[start : start + len(logits)]
        m = len(targets)
        self._log_likelihoods += (logits[np.arange(m), targets] - total[:m]).tolist()
        self._is_first += (logits[:m].argmax(axis=1) == targets).tolist()
        if m < len(logits):
            self._last, self._total = logits[-1].copy(), float(total[-1])

    def score(self, tokens: Sequence[int]) -> Score:
        """The score of a continuation whose last token follows the text, and whose other tokens end it."""
        assert self._last is not None
        before = len(self._known) - (len(tokens) - 1)
        found = self._log_likelihoods[before:]
        last = float(self._last[tokens[-1]]) - self._total
        is_greedy = all(self._is_first[before:]) and int(self._last.argmax()) == tokens[-1]
        return Score(sum(found) + last, is_greedy)
