"""Tokens that are read on trial on a GPU: the state as it was before them stays there, or goes to the host."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from rwkv_cli.engine.state import State

Array = NDArray[np.float32]


class Backup:
    """The values of a state: in the slot BACKUP, or here."""

    host: State | None = None


class RestoringLookAhead:
    """See `LookAhead`: tokens that are right are read again, after the state that was kept."""

    def __init__(self, logits: Array, state: State, restore: Callable[[int], None]) -> None:
        """`restore(n)` makes `state` the one after n tokens."""
        self.logits, self._state, self._restore = logits, state, restore

    def state(self, n: int) -> State:
        """See `LookAhead`."""
        if n < len(self.logits):
            self._restore(n)
        return self._state
