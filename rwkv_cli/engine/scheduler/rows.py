"""Sequences in the slots of a batch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from rwkv_cli.engine.scheduler.handle import Handle
from rwkv_cli.engine.scheduler.prefix_tree import Node, Place


@dataclass
class Row:
    """A sequence that is running: a prompt that is read, and then a token in each step."""

    handle: Handle
    slot: int
    n_read: int  # tokens that the state has read, those before the start included
    base: int  # those before the start
    place: Place | None = None  # while its prompt is read: where that ends in the tree of prompts
    nodes: list[Node] = field(default_factory=list)  # where its state is wanted, the next one first
    places: list[int] = field(default_factory=list)  # in its prompt, where it is to be kept on disk, likewise
    served: int = 0  # tokens that it was given since it joined

    @property
    def is_reading(self) -> bool:
        """Whether a part of its prompt is left."""
        return self.handle.prompt_left > 0

    @property
    def is_observed(self) -> bool:
        """Whether the logits after each of its next tokens are wanted."""
        observed = self.handle.request.observed
        return observed is not None and self.handle.prompt_left <= observed.n

    @property
    def position(self) -> int:
        """Tokens of the prompt that were read."""
        return self.n_read - self.base

    def most(self) -> int:
        """How many of its unread tokens may be read before something is to be done with its state."""
        n = len(self.handle.unread)
        stops = [each.depth for each in self.nodes[:1]] + self.places[:1]
        observed = self.handle.request.observed
        if observed and n > observed.n:
            stops.append(self.position + n - observed.n)
        return min([n, *(stop - self.position for stop in stops)])

    def add(self, node: Node) -> None:
        """Want the state at a node ahead."""
        if node.depth > self.position and node not in self.nodes:
            self.nodes.append(node)
            self.nodes.sort(key=lambda each: each.depth)


def shares(rows: Iterable[Row], room: int) -> dict[int, int]:
    """How many tokens each row reads in the next step, by slot: those with one token that, prompts what is left.

    Prompts share what is left evenly, so that a short one is not held up by long ones.
    """
    wanted = {row.slot: row.most() for row in rows}
    given = dict.fromkeys(wanted, 0)
    left = room
    while wanted and left > 0:
        share = max(left // len(wanted), 1)
        for slot, most in [*wanted.items()]:
            n = min(share, most, left)
            given[slot] += n
            left -= n
            if n == most:
                del wanted[slot]
            else:
                wanted[slot] = most - n
            if not left:
                break
    return {slot: n for slot, n in given.items() if n}
