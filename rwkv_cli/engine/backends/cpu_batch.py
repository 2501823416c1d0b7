"""Many sequences on the CPU: a pass reads the weights once for tokens of all of them, and chooses the next ones."""

from __future__ import annotations

from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from cpu_kernels import abi
from rwkv_cli.config import ModelConfig
from rwkv_cli.engine.backends.cpu_pass import ForwardPass, Table, addresses, in_place
from rwkv_cli.engine.backends.cpu_sampler import CpuSampler
from rwkv_cli.engine.batch import Batch, Part, passes
from rwkv_cli.engine.sampling import Choice, Sampler
from rwkv_cli.engine.state import State

Array = NDArray[np.float32]

MOST_TOKENS = 64
"""Of a pass for many sequences: all of them wait until it is over."""


class CpuBatch(Batch):
    """Sequences whose states are in slots. Each has the same results, to the bit, as alone."""

    def __init__(self, forward_pass: ForwardPass, sampler: CpuSampler, slots: int) -> None:
        """`forward_pass` and `sampler` are used with the lock of the former. Raises UsageError for no slots."""
        super().__init__(forward_pass.config, slots)
        self._pass, self._sampler = forward_pass, sampler
        self._states = _StatePool(forward_pass.config, slots)

    @property
    def capacity(self) -> int:
        """See `Batch.capacity`."""
        return min(self._pass.capacity, MOST_TOKENS)

    def read(self, parts: Mapping[int, Sequence[int]]) -> Array:
        """See `Batch.read`."""
        rows = dict[int, Array]()
        with self._pass.lock:
            for found in self._passes(self._checked(parts), parts):
                rows |= {slot: row.copy() for slot, row in found.items()}
        return np.stack([rows[slot] for slot in parts])

    def read_all(self, parts: Mapping[int, Sequence[int]]) -> dict[int, Array]:
        """See `Batch.read_all`."""
        found = dict[int, list[Array]]()
        with self._pass.lock:
            for pieces in passes(self._checked(parts), self.capacity):
                lengths = [len(tokens) for _, tokens in pieces]
                rows = self._run(pieces, np.arange(sum(lengths)))
                for (slot, _), part in zip(pieces, np.split(rows, np.cumsum(lengths[:-1])), strict=True):
                    found.setdefault(slot, []).append(part.copy())
        return {slot: np.concatenate(pieces) for slot, pieces in found.items()}

    def choose(
        self,
        parts: Mapping[int, Sequence[int]],
        samplers: Mapping[int, Sampler],
        wanted: Collection[int] = (),
    ) -> dict[int, Choice]:
        """See `Batch.choose`: by the kernel that chooses for a single text too."""
        checked = self._checked(parts)
        choices = dict[int, Choice]()
        self._logits.clear()
        with self._pass.lock:
            for found in self._passes(checked, samplers.keys() | set(wanted)):
                # Of all but the last pass, the logits are about to be overwritten.
                self._logits = {slot: row.copy() for slot, row in self._logits.items()} | found
                if chosen := [slot for slot in found if slot in samplers]:
                    of_these = [samplers[slot] for slot in chosen]
                    tokens = self._sampler.choose_for([found[slot] for slot in chosen], of_these)
                    choices |= zip(chosen, tokens, strict=True)
        return {slot: choices[slot] for slot in samplers}

    def _passes(self, parts: list[Part], wanted: Container[int]) -> Iterator[dict[int, Array]]:
        """Read parts in passes: after each, the logits [V] of those of the `wanted` slots that were read to their end.

        They are views that the next pass overwrites.
        """
        ends = {slot: tokens[-1:] for slot, tokens in parts}
        for pieces in passes(parts, self.capacity):
            lengths = [len(tokens) for _, tokens in pieces]
            done = [
                (slot, end - 1)
                for (slot, tokens), end in zip(pieces, accumulate(lengths), strict=True)
                if slot in wanted and np.shares_memory(tokens, ends[slot])
            ]
            rows = self._run(pieces, np.array([row for _, row in done], np.int64))
            yield {slot: row for (slot, _), row in zip(done, rows, strict=True)}

    def _run(self, pieces: Sequence[Part], wanted: NDArray[np.int64]) -> Array:
        """One pass: the logits [n, V] after the `wanted` ones of its tokens, a view that the next pass overwrites."""
        ids = np.concatenate([tokens for _, tokens in pieces])
        table = in_place(ids, [slot for slot, _ in pieces], [len(tokens) for _, tokens in pieces])
        return self._pass.run(table, self._states.table, wanted)

    def _store(self, slot: int, state: State | None) -> None:
        with self._pass.lock:
            self._states.store(slot, state)

    def _fetch(self, slot: int) -> State:
        with self._pass.lock:
            return self._states.fetch(slot)


class _StatePool:
    """Memory for states, and the table STATE [slots] of where they are. It is taken as slots are first used."""

    def __init__(self, config: ModelConfig, slots: int) -> None:
        self._config = config
        self._states: list[State | None] = [None] * slots
        self.table: Table = np.zeros(slots, abi.STATE)

    def store(self, slot: int, state: State | None) -> None:
        """Put a copy of a state, None for an empty one, into a slot."""
        copy = state.copy() if state else State.zeros(self._config)
        copy.to_host()
        self._states[slot] = copy
        self.table[slot] = addresses(copy)

    def fetch(self, slot: int) -> State:
        """A copy of the state in a slot."""
        state = self._states[slot]
        assert state  # a sequence has joined
        return state.copy()
