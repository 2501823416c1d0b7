"""Where a conversation stood after each turn: dense for the last turns, sparse for old ones, bounded in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rwkv_cli.engine.state import Position

BUDGET = 128_000_000
"""Bytes of snapshots that a conversation keeps."""

_ALWAYS = 2  # the last ones, however large: where it stands, and what `retry` begins with


@dataclass(frozen=True)
class Snapshot:
    """A position, and how often the sampler had seen each token there. Neither is ever changed."""

    position: Position
    tokens: NDArray[np.int32]
    counts: NDArray[np.float64]

    @classmethod
    def take(cls, position: Position, counts: Mapping[int, float] | None = None) -> Snapshot:
        """Of a position that nobody will change, and the counts of a sampler."""
        counts = counts or {}
        return cls(position, np.array(list(counts), np.int32), np.array(list(counts.values()), np.float64))

    def as_counts(self) -> dict[int, float]:
        """The counts, for a sampler."""
        return dict(zip(self.tokens.tolist(), self.counts.tolist(), strict=True))

    @property
    def nbytes(self) -> int:
        """Its size in memory."""
        logits = self.position.logits
        arrays = self.position.state.nbytes + (0 if logits is None else logits.nbytes)
        return arrays + self.tokens.nbytes + self.counts.nbytes


class Snapshots:
    """Snapshots by the number of turns before them. The first one is where the conversation begins."""

    def __init__(self, budget: int = BUDGET) -> None:
        """`budget` is in bytes; the last two and the first one are kept even where they take more."""
        self.budget = budget
        self._at: dict[int, Snapshot] = {}

    def put(self, turns: int, snapshot: Snapshot) -> None:
        """Keep a snapshot, in place of one after as many turns."""
        self._at[turns] = snapshot
        while self.nbytes > self.budget and len(self._at) > _ALWAYS + 1:
            del self._at[self._least_missed()]

    def last(self, turns: int) -> tuple[int, Snapshot] | None:
        """The last snapshot after at most so many turns, and after how many it is."""
        found = max((each for each in self._at if each <= turns), default=None)
        return None if found is None else (found, self._at[found])

    def forget_after(self, turns: int) -> None:
        """Forget what lies after so many turns."""
        for each in [each for each in self._at if each > turns]:
            del self._at[each]

    def copy(self) -> Snapshots:
        """An independent collection of the same snapshots."""
        other = Snapshots(self.budget)
        other._at = self._at.copy()
        return other

    def __len__(self) -> int:
        return len(self._at)

    @property
    def nbytes(self) -> int:
        """Bytes of all snapshots."""
        return sum(snapshot.nbytes for snapshot in self._at.values())

    def _least_missed(self) -> int:
        """Whose absence would cost least: few tokens to read again, for their distance from the end."""
        turns = sorted(self._at)
        tokens = [self._at[each].position.tokens for each in turns]
        end = tokens[-1] + 1

        def cost(index: int) -> float:
            return (tokens[index + 1] - tokens[index - 1]) / (end - tokens[index])

        return turns[min(range(1, len(turns) - _ALWAYS), key=cost)]  # of equals the oldest
