"""What is asked of the scheduler."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

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
