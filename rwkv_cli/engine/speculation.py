"""Speculation: a drafter proposes tokens, the model reads them in one pass, and those that it would have chosen stay.

The text is the same as without it, to the token: each token is chosen from the model's logits as always. How many are
proposed depends on how many were right so far, and on the time that everything took: that does not change the text.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rwkv_cli.engine.backends.base import Backend
from rwkv_cli.engine.drafting import Drafter
from rwkv_cli.engine.look_ahead import LookAhead
from rwkv_cli.engine.sampling import Sampler
from rwkv_cli.engine.state import State

Array = NDArray[np.float32]

MOST = 8
"""Tokens that are proposed at once."""

FIRST = 4
"""Tokens that are proposed to measure what it takes."""

TRIES = 2
"""Proposals before it is decided whether it pays, of which the first one is a single token; after a pause, one."""

LEAST_GAIN = 1.05
"""How much faster it has to be than plain reading."""

FIRST_PAUSE, LONGEST_PAUSE = 64, 1024
"""Tokens that are read plainly where it does not pay, before it is tried again; each time twice as many."""

SUCCESS = 20
"""Proposals in a row after which it has paid, so that the next pause is a first one."""

_WEIGHT = 0.2  # of the newest measurement in an average


class Speculation:
    """What a session has beside its state: a drafter, and tokens that were read on trial."""

    def __init__(self, backend: Backend, drafter: Drafter) -> None:
        self._backend, self._drafter = backend, drafter
        self._pace = _Pace()
        self._tokens: list[int] = []  # that were read on trial
        self._ahead: LookAhead | None = None
        self._n = 0  # how many of them turned out to be right
        self._drafted = self._accepted = 0  # tokens that are no longer on trial

    @property
    def counts(self) -> tuple[int, int]:
        """How many tokens were proposed, and how many of those were right, so far."""
        if self._ahead is None:
            return self._drafted, self._accepted
        return self._drafted + len(self._tokens) - 1, self._accepted + self._n - 1

    def observe(self, tokens: Sequence[int]) -> None:
        """Take note of tokens that were read without speculation."""
        self._drafter.observe(tokens)

    def settle(self, state: State) -> State:
        """Give up what was read on trial: the state after the tokens that were right, for the one before them."""
        if self._ahead is None:
            return state
        ahead, self._ahead = self._ahead, None
        proposed = len(self._tokens) - 1
        self._drafted += proposed
        self._accepted += self._n - 1
        self._pace.count(proposed, self._n - 1)
        return ahead.state(self._n)

    def read(self, token: int, state: State, sampler: Sampler) -> tuple[Array | None, State]:
        """Read a token: the logits after it [V], and the state, which lags behind until it is settled.

        None where it is to be read plainly, since nothing is known of what may follow it, or it would not pay.
        """
        if self._ahead is None or self._n == len(self._tokens) or self._tokens[self._n] != token:
            state = self.settle(state)
            self._look(token, state, sampler)
        self._drafter.observe([token])
        if self._ahead is None:
            return None, state
        self._n += 1
        return self._ahead.logits[self._n - 1], state

    def took(self, seconds: float, *, plain: bool) -> None:
        """How long it took to read a token plainly and to choose the next one; or, if it was read, to choose alone."""
        self._pace.took_plain(seconds) if plain else self._pace.took_choice(seconds)

    def _look(self, token: int, state: State, sampler: Sampler) -> None:
        """Read a token and what may follow it on trial, if that is likely to pay."""
        most = self._pace.length()
        start = time.perf_counter()
        proposed = self._drafter.propose(token, state, sampler, most) if most else []
        if not proposed:
            return
        drafted = time.perf_counter()
        self._tokens, self._n = [token, *proposed], 0
        self._ahead = self._backend.look_ahead(self._tokens, state)
        self._pace.took(len(proposed), drafted - start, time.perf_counter() - drafted)


class _Pace:
    """How many tokens to propose, by what it costs and what comes of it."""

    def __init__(self) -> None:
        self._plain: float | None = None  # seconds to read one token and to choose the next
        self._choice = 0.0  # of these, to choose
        self._draft: float | None = None  # seconds to propose one
        self._more: float | None = None  # seconds of each further token in a pass
        self._right = 0.8  # the chance that a proposed token is right, if those before it are
        self._is_first = True  # which allocates memory, so that what it takes tells nothing
        self._tries = TRIES  # proposals that are made in any case
        self._pause, self._left, self._in_a_row = FIRST_PAUSE, 0, 0

    def took_plain(self, seconds: float) -> None:
        """A token was read plainly, and the next one chosen."""
        self._plain = _average(self._plain, seconds)

    def took_choice(self, seconds: float) -> None:
        """A token was chosen."""
        self._choice = _average(self._choice or None, seconds)

    def took(self, proposed: int, drafting: float, reading: float) -> None:
        """Tokens were proposed, and read with the one before them."""
        is_first, self._is_first = self._is_first, False
        self._tries = max(self._tries - 1, 0)
        if self._plain and not is_first:
            self._draft = _average(self._draft, drafting / proposed)
            alone = self._plain - self._choice
            self._more = _average(self._more, max(reading - alone, 0.0) / proposed)

    def count(self, proposed: int, right: int) -> None:
        """So many of the tokens that were proposed were right, and, but for the last, the next one was not."""
        for i in range(min(right + 1, proposed)):
            self._right += _WEIGHT * ((i < right) - self._right)
        self._in_a_row += 1
        if self._in_a_row == SUCCESS:
            self._pause = FIRST_PAUSE

    def length(self) -> int:
        """How many tokens to propose now; none where that does not pay."""
        if self._plain is None:
            return 0  # to measure it
        if self._left:
            self._left -= 1
            return 0
        if self._tries or self._draft is None:
            return 1 if self._is_first else FIRST
        best = max(range(1, MOST + 1), key=self._gain)
        if self._gain(best) >= LEAST_GAIN:
            return best
        self._left, self._tries, self._in_a_row = self._pause, 1, 0
        self._pause = min(2 * self._pause, LONGEST_PAUSE)
        return 0

    def _gain(self, n: int) -> float:
        """How many times as fast as plain reading it is to propose n tokens."""
        assert self._plain is not None
        assert self._draft is not None
        assert self._more is not None
        a = min(self._right, 0.999)
        tokens = (1 - a ** (n + 1)) / (1 - a)
        reading = self._plain - self._choice + n * (self._draft + self._more)
        return tokens * self._plain / (reading + tokens * self._choice)


def _average(before: float | None, now: float) -> float:
    return now if before is None else before + _WEIGHT * (now - before)
