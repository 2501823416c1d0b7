"""Many sequences, each with its state in a slot: they join and leave at any step, and are read together.

slot = batch.join()
logits = batch.read({slot: prompt, another: [token]})
state = batch.leave(slot)
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rwkv_cli.config import ModelConfig
from rwkv_cli.engine.sampling import Choice, Sampler
from rwkv_cli.engine.state import State
from rwkv_cli.engine.token_ids import NO_TOKENS, check_tokens
from rwkv_cli.errors import UsageError
from rwkv_cli.reporting import Progress

Array = NDArray[np.float32]
Tokens = NDArray[np.int32]
Part = tuple[int, Tokens]
"""Tokens [n] of the sequence in a slot."""


class Batch(ABC):
    """Slots for sequences, taken and given back. A subclass keeps the states and reads the tokens."""

    def __init__(self, config: ModelConfig, slots: int) -> None:
        """Raises UsageError for no slots."""
        if slots < 1:
            raise UsageError(f"a batch of {slots} sequences: there must be at least one")
        self.config = config
        self._free, self._taken = set(range(slots)), set[int]()
        self._logits: dict[int, Array] = {}  # of the last `choose`, by slot

    @property
    @abstractmethod
    def capacity(self) -> int:
        """Tokens that are read at the same time: more take as long as if they were read one after the other."""

    @property
    def free(self) -> int:
        """How many more sequences can join."""
        return len(self._free)

    def join(self, state: State | None = None) -> int:
        """Add a sequence that continues from a copy of `state`, None for an empty one: its slot.

        Raises UsageError if no slot is free, and for the state of a model of another shape.
        """
        if not self._free:
            raise UsageError(f"all {len(self._taken)} slots of the batch are taken: a sequence has to leave")
        if state:
            state.check_fits(self.config)
        slot = min(self._free)
        self._store(slot, state)
        self._logits.pop(slot, None)
        self._free.remove(slot)
        self._taken.add(slot)
        return slot

    def state(self, slot: int) -> State:
        """A copy of the state of a sequence. Raises UsageError for a slot without one."""
        self._check_slot(slot)
        return self._fetch(slot)

    def leave(self, slot: int) -> State:
        """Remove a sequence: its state. Raises UsageError for a slot without one."""
        state = self.state(slot)
        self.drop(slot)
        return state

    def drop(self, slot: int) -> None:
        """Remove a sequence whose state is not needed."""
        self._check_slot(slot)
        self._taken.remove(slot)
        self._free.add(slot)

    @abstractmethod
    def read(self, parts: Mapping[int, Sequence[int]]) -> Array:
        """Read some tokens of each sequence, by slot: the logits [n, V] after their last ones, in the same order.

        A sequence may bring one token or a whole prompt; those that are not named stay where they are. The logits may
        be a view that the next `read` overwrites. Raises UsageError, before anything is read, for a slot without a
        sequence, no tokens, or a token outside the vocabulary.
        """

    def read_all(self, parts: Mapping[int, Sequence[int]]) -> dict[int, Array]:
        """Read like `read`: the logits [n, V] after each of the n tokens of each sequence, by slot."""
        self._checked(parts)
        found = {
            slot: np.empty((len(part), self.config.vocab_size), np.float32) for slot, part in parts.items()
        }
        for i in range(max(map(len, parts.values()))):
            here = {slot: part[i : i + 1] for slot, part in parts.items() if i < len(part)}
            for slot, logits in zip(here, self.read(here), strict=True):
                found[slot][i] = logits
        return found

    def choose(
        self,
        parts: Mapping[int, Sequence[int]],
        samplers: Mapping[int, Sampler],
        wanted: Collection[int] = (),
    ) -> dict[int, Choice]:
        """Read like `read`, and choose the next token of each sequence in `samplers`, by slot, as its sampler would.

        A sequence that only reads needs no sampler; `wanted` are slots of such ones whose logits are wanted afterwards.
        `Sampler.accept` is to follow, which raises if there is a reason in place of a token: so one sequence that fails
        stops no other. Raises like `read`.
        """
        logits = dict(zip(parts, self.read(parts), strict=True))
        self._logits = {slot: row for slot, row in logits.items() if slot in samplers or slot in wanted}
        return {slot: sampler.choose(logits[slot]) for slot, sampler in samplers.items()}

    def logits(self, slot: int) -> Array | None:
        """The logits [V] after what a sequence has read, for which the last `choose` needed them; None for others.

        A view, perhaps, that the next `choose` or `read` overwrites. Raises UsageError for a slot without a sequence.
        """
        self._check_slot(slot)
        return self._logits.get(slot)

    @abstractmethod
    def _store(self, slot: int, state: State | None) -> None:
        """Put a copy of a state, None for an empty one, into a slot."""

    @abstractmethod
    def _fetch(self, slot: int) -> State:
        """The state in a slot, for the caller alone."""

    def _check_slot(self, slot: int) -> None:
        if slot not in self._taken:
            raise UsageError(f"there is no sequence in slot {slot} of the batch")

    def _checked(self, parts: Mapping[int, Sequence[int]]) -> list[Part]:
        """The tokens to read, as arrays int32 [n]. Raises like `read`."""
        return self._split(self._flat(parts)[0], parts)

    @staticmethod
    def _split(flat: Tokens, parts: Mapping[int, Sequence[int]]) -> list[Part]:
        """The tokens of each sequence, as views of those of all."""
        ends = itertools.accumulate(map(len, parts.values()))
        return [
            (slot, flat[end - len(part) : end]) for (slot, part), end in zip(parts.items(), ends, strict=True)
        ]

    def _flat(self, parts: Mapping[int, Sequence[int]]) -> tuple[Tokens, list[int]]:
        """The tokens to read one after another, int32 [T], and how many of each sequence. Raises like `read`."""
        if not parts.keys() <= self._taken:
            for slot in parts:
                self._check_slot(slot)
        lengths = list(map(len, parts.values()))
        if not lengths or not all(lengths):
            raise UsageError(NO_TOKENS)
        tokens = list(itertools.chain.from_iterable(parts.values()))
        flat: NDArray[Any] = np.array(tokens)
        # Of a few tokens, Python finds the least faster than numpy, which is left to say what is wrong.
        if (
            flat.ndim != 1
            or flat.dtype.kind not in "iu"
            or min(tokens) < 0
            or max(tokens) >= self.config.vocab_size
        ):
            check_tokens(flat, self.config.vocab_size)
        return flat.astype(np.int32), lengths


def passes(parts: Iterable[Part], capacity: int) -> Iterator[list[Part]]:
    """Cut parts, in the same order, into passes of up to `capacity` tokens."""
    left = capacity
    pieces: list[Part] = []
    for slot, tokens in parts:
        while len(tokens):
            piece, tokens = tokens[:left], tokens[left:]
            pieces.append((slot, piece))
            left -= len(piece)
            if not left:
                yield pieces
                left, pieces = capacity, []
    if pieces:
        yield pieces


class _Reads(Protocol):
    """What `SequentialBatch` needs of a backend."""

    config: ModelConfig

    def forward(self, tokens: Sequence[int], state: State, progress: Progress | None = None) -> Array: ...


class SequentialBatch(Batch):
    """Sequences that take turns: the default of every backend, with the results of each sequence alone."""

    def __init__(self, backend: _Reads, slots: int) -> None:
        super().__init__(backend.config, slots)
        self._backend = backend
        self._states: dict[int, State] = {}

    @property
    def capacity(self) -> int:
        """See `Batch.capacity`."""
        return 1

    def read(self, parts: Mapping[int, Sequence[int]]) -> Array:
        """See `Batch.read`."""
        checked = self._checked(parts)
        return np.stack(
            [self._backend.forward(tokens.tolist(), self._states[slot]) for slot, tokens in checked]
        )

    def drop(self, slot: int) -> None:
        """See `Batch.drop`."""
        super().drop(slot)
        del self._states[slot]

    def _store(self, slot: int, state: State | None) -> None:
        self._states[slot] = state.copy() if state else State.zeros(self.config)

    def _fetch(self, slot: int) -> State:
        return self._states[slot].copy()
