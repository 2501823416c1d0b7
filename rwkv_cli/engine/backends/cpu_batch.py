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
from rwkv_cli.engine.batch import Batch, Part, Tokens, passes
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
        flat, _ = self._flat(parts)
        rows = dict[int, Array]()
        with self._pass.lock:
            for found in self._passes(flat, parts, parts):
                rows |= {slot: row.copy() for slot, row in found.items()}
        return np.stack([rows[slot] for slot in parts])

    def read_all(self, parts: Mapping[int, Sequence[int]]) -> dict[int, Array]:
        """See `Batch.read_all`."""
        found = dict[int, list[Array]]()
        with self._pass.lock:
            for pieces in passes(self._checked(parts), self.capacity):
                ids, slots, lengths = _joined(pieces)
                rows = self._pass.run(in_place(ids, slots, lengths), self._states.table, np.arange(len(ids)))
                for slot, part in zip(slots, np.split(rows, np.cumsum(lengths[:-1])), strict=True):
                    found.setdefault(slot, []).append(part.copy())
        return {slot: np.concatenate(pieces) for slot, pieces in found.items()}

    def choose(
        self,
        parts: Mapping[int, Sequence[int]],
        samplers: Mapping[int, Sampler],
        wanted: Collection[int] = (),
    ) -> dict[int, Choice]:
        """See `Batch.choose`: by the kernel that chooses for a single text too."""
        flat, lengths = self._flat(parts)
        wanted = {*samplers, *wanted}
        self._logits.clear()
        with self._pass.lock:
            if len(flat) <= self.capacity:  # as where texts are answered
                self._logits = self._run(flat, [*parts], lengths, wanted)
                return self._chosen(self._logits, samplers)
            choices: dict[int, Choice] = {}
            for found in self._passes(flat, parts, wanted):
                # Of all but the last pass, the logits are about to be overwritten.
                self._logits = {slot: row.copy() for slot, row in self._logits.items()} | found
                here = {slot: samplers[slot] for slot in found if slot in samplers}
                choices |= self._chosen(found, here)
        return {slot: choices[slot] for slot in samplers}

    def _chosen(self, logits: Mapping[int, Array], samplers: Mapping[int, Sampler]) -> dict[int, Choice]:
        """What samplers, perhaps none, choose from the logits [V] of their slots."""
        if not samplers:
            return {}
        rows = [logits[slot] for slot in samplers]
        return dict(zip(samplers, self._sampler.choose_for(rows, [*samplers.values()]), strict=True))

    def _passes(
        self, flat: Tokens, parts: Mapping[int, Sequence[int]], wanted: Container[int]
    ) -> Iterator[dict[int, Array]]:
        """Read the tokens [T] of parts in passes: after each, the logits [V] of `wanted` slots that came to their end.

        They are views that the next pass overwrites.
        """
        left = {slot: len(part) for slot, part in parts.items()}
        for pieces in passes(self._split(flat, parts), self.capacity):
            ids, slots, lengths = _joined(pieces)
            for slot, n in zip(slots, lengths, strict=True):
                left[slot] -= n
            yield self._run(
                ids, slots, lengths, {slot for slot in slots if not left[slot] and slot in wanted}
            )

    def _run(
        self, ids: Tokens, slots: Sequence[int], lengths: Sequence[int], wanted: Container[int]
    ) -> dict[int, Array]:
        """One pass over tokens [T], some of each slot: the logits [V] after the last ones of the `wanted` slots."""
        ends = [
            (slot, end - 1) for slot, end in zip(slots, accumulate(lengths), strict=True) if slot in wanted
        ]
        rows = np.array([row for _, row in ends], np.int64)
        logits = self._pass.run(in_place(ids, slots, lengths), self._states.table, rows)
        return {slot: row for (slot, _), row in zip(ends, logits, strict=True)}

    def _store(self, slot: int, state: State | None) -> None:
        with self._pass.lock:
            self._states.store(slot, state)

    def _fetch(self, slot: int) -> State:
        with self._pass.lock:
            return self._states.fetch(slot)


def _joined(pieces: Sequence[Part]) -> tuple[Tokens, list[int], list[int]]:
    """The tokens [T] of a pass one after another, their slots, and how many each has."""
    ids = np.concatenate([tokens for _, tokens in pieces])
    return ids, [slot for slot, _ in pieces], [len(tokens) for _, tokens in pieces]


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
