"""Reading tokens on trial on the CPU: the pass leaves the state after each token in memory of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cpu_kernels import abi
from rwkv_cli.engine.backends.cpu_pass import ForwardPass, addresses, in_place
from rwkv_cli.engine.state import State

Array = NDArray[np.float32]

AT_ONCE = 9
"""States that are there before they are needed: a copy has its memory at once, which zeros get when they are used."""


class CpuLookAhead:
    """See `LookAhead`."""

    logits: Array

    def __init__(self, forward_pass: ForwardPass, state: State, spare: list[State]) -> None:
        """`spare` are states that nobody needs, to be taken, and given back."""
        self._pass, self._before, self._spare = forward_pass, state, spare
        self._after: list[State] = []  # after each token

    def read(self, tokens: Sequence[int]) -> None:
        """Read tokens, at most as many as fit into a pass."""
        T = len(tokens)
        while len(self._spare) < max(T, AT_ONCE):  # not while somebody measures what more tokens take
            self._spare.append(State.zeros(self._pass.config).copy())
        self._after = [self._spare.pop() for _ in range(T)]
        states = np.array([addresses(each) for each in (self._before, *self._after)], abi.STATE)
        table = in_place(tokens, [0], [T])
        table["source"], table["target"], table["is_last"] = np.arange(T), np.arange(1, T + 1), 1
        with self._pass.lock:
            self.logits = self._pass.run(table, states, np.arange(T)).copy()

    def state(self, n: int) -> State:
        """See `LookAhead`."""
        states = [self._before, *self._after]
        found = states.pop(n)
        self._spare += states
        self._after = []
        return found
