"""Where a conversation stood after each turn: dense for the last turns, sparse for old ones, bounded in memory."""

from __future__ import annotations

from rwkv_cli.engine.session import Snapshot

BUDGET = 128_000_000
"""Bytes of snapshots that a conversation keeps."""

_ALWAYS = 2  # the last ones, however large: where it stands, and what `retry` begins with


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
            del self._at[self._cheapest_to_drop()]

    def last(self, turns: int) -> tuple[int, Snapshot] | None:
        """The last snapshot after at most `turns` turns, with the number of turns before it."""
        found = max((each for each in self._at if each <= turns), default=None)
        return None if found is None else (found, self._at[found])

    def forget_after(self, turns: int) -> None:
        """Forget the snapshots after more than `turns` turns."""
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

    def _cheapest_to_drop(self) -> int:
        """The snapshot that is cheapest to recompute: few tokens to read again, for their distance from the end."""
        turns = sorted(self._at)
        tokens = [self._at[each].n_tokens for each in turns]
        end = tokens[-1] + 1

        def cost(index: int) -> float:
            return (tokens[index + 1] - tokens[index - 1]) / (end - tokens[index])

        return turns[min(range(1, len(turns) - _ALWAYS), key=cost)]  # of equals the oldest
