"""What is asked of the scheduler."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rwkv_cli.engine.generate import Ending
from rwkv_cli.engine.sampling import Sampler
from rwkv_cli.engine.session import Snapshot


class Beginnings(Protocol):
    """Snapshots after beginnings of one prompt, which are kept from one run of the program to the next."""

    places: Sequence[int]
    """After how many tokens, ascending, a snapshot is to be kept."""

    def longest(self) -> Snapshot | None:
        """The one after the longest beginning that is kept, None if none is."""
        ...

    def keep(self, snapshot: Snapshot) -> None:
        """Keep one."""
        ...


@dataclass(frozen=True)
class Observation:
    """The wish for logits in place of an answer: those after each of the last `n` tokens of a request."""

    n: int
    take: Callable[[NDArray[np.float32]], Any]
    """Gets them as they are computed, [m, V] at a time, in order. They may be a view that does not last."""


@dataclass(frozen=True, eq=False)
class Request:
    """A sequence to read and to continue. `sampler` belongs to it alone; `start` may be shared, and stays as it is."""

    tokens: Sequence[int]  # to read; none where `start` has logits
    sampler: Sampler
    ending: Ending = field(default_factory=Ending)
    start: Snapshot | None = None  # where it continues, None for the beginning
    submitter: Hashable = None  # whose it is: submitters are served in turn
    keeps: bool = False  # whether it shall be possible to go on from where it ends
    beginnings: Beginnings | None = None  # of its prompt; only without a `start`
    observed: Observation | None = None  # then no token is chosen

    @property
    def shareable(self) -> Sequence[int]:
        """Of the tokens, those up to the first one that has to be read by this sequence itself, and that one."""
        return self.tokens[: len(self.tokens) - self.observed.n + 1] if self.observed else self.tokens
