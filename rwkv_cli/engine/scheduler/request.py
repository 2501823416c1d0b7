"""What is asked of the scheduler."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from rwkv_cli.engine.generate import Ending
from rwkv_cli.engine.sampling import Sampler
from rwkv_cli.engine.session import Snapshot


class Beginnings(Protocol):
    """Keeps snapshots after beginnings of prompts, from one run of the program to the next."""

    def longest(self, tokens: Sequence[int]) -> Snapshot | None:
        """The snapshot after the longest beginning of these tokens that is kept, None if none is."""
        ...

    def places(self, tokens: Sequence[int]) -> Sequence[int]:
        """After how many tokens of a prompt, ascending, a snapshot is to be kept."""
        ...

    def keep(self, tokens: Sequence[int], snapshot: Snapshot) -> None:
        """Keep the snapshot after a beginning of these tokens."""
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
    beginnings: Beginnings | None = None  # where its prompt may be found, and is kept; only without a `start`
