"""Reading tokens on trial: their logits, and the state after as many of them as turn out to be right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rwkv_cli.engine.state import State
from rwkv_cli.reporting import Progress

Array = NDArray[np.float32]


class LookAhead(Protocol):
    """Tokens [T] that were read after a state."""

    @property
    def logits(self) -> Array:
        """The logits [T, V] after each token."""
        ...

    def state(self, n: int) -> State:
        """The state after the first n tokens, 0 <= n <= T, to be asked for once; the others are not there any more."""
        ...


class _Reads(Protocol):
    def forward(self, tokens: Sequence[int], state: State, progress: Progress | None = None) -> Array: ...

    def forward_all(self, tokens: Sequence[int], state: State) -> Array: ...


class ReadAgain:
    """A `LookAhead` of any backend: where not all tokens are right, those that are right are read again."""

    def __init__(self, backend: _Reads, tokens: Sequence[int], state: State) -> None:
        """`state` advances when `state` is called."""
        self._backend, self._tokens, self._before = backend, tokens, state
        self._after = state.copy()
        self.logits: Array = backend.forward_all(tokens, self._after)

    def state(self, n: int) -> State:
        """See `LookAhead`."""
        if n == len(self._tokens):
            return self._after
        if n:
            self._backend.forward(self._tokens[:n], self._before)
        return self._before
