"""A queue that serves submitters in turn, each in the order in which it came."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator
from itertools import islice
from typing import Generic, TypeVar

T = TypeVar("T")

LOOK_AHEAD = 64
"""Of each submitter, how many are looked at for one that can be served now."""


class FairQueue(Generic[T]):
    """One line for each submitter; the one that was served last is asked last."""

    def __init__(self) -> None:
        self._lines = OrderedDict[Hashable, deque[T]]()

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def __iter__(self) -> Iterator[T]:
        for line in self._lines.values():
            yield from line

    @property
    def submitters(self) -> list[Hashable]:
        """Those who wait, in the order in which they are asked."""
        return [*self._lines]

    def push(self, submitter: Hashable, item: T) -> None:
        """Put an item at the end of a line; a submitter without one is asked after all others."""
        self._lines.setdefault(submitter, deque()).append(item)

    def push_first(self, submitter: Hashable, item: T) -> None:
        """Put an item at the front of its line, which is asked after all others."""
        self._lines.setdefault(submitter, deque()).appendleft(item)
        self._lines.move_to_end(submitter)

    def pop(self, can_serve: Callable[[T], bool]) -> T | None:
        """Take the next item that can be served now; None if there is none."""
        for submitter, line in self._lines.items():
            for i, item in enumerate(islice(line, LOOK_AHEAD)):
                if can_serve(item):
                    del line[i]
                    self._served(submitter)
                    return item
        return None

    def remove(self, submitter: Hashable, item: T) -> bool:
        """Take an item out; whether it was there."""
        line = self._lines.get(submitter)
        if line is None or item not in line:
            return False
        line.remove(item)
        if not line:
            del self._lines[submitter]
        return True

    def _served(self, submitter: Hashable) -> None:
        if self._lines[submitter]:
            self._lines.move_to_end(submitter)
        else:
            del self._lines[submitter]
