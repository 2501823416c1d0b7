"""What prompts have in common at their beginning is read once: by whom, and where the state after it is kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable

from rwkv_cli.engine.scheduler.handle import Handle
from rwkv_cli.engine.scheduler.prefix_tree import (
    Node,
    Place,
    PrefixTree,
    deepest_common,
    shared_ends,
)
from rwkv_cli.engine.scheduler.rows import Row
from rwkv_cli.engine.state import State

LEAST_SHARED = 16
"""Tokens that prompts have in common which are worth a copy of a state."""


class SharedPrefixes:
    """The prompts that wait or are being read, and the states after what they have in common."""

    def __init__(self, state_bytes: int) -> None:
        """`state_bytes` is for all states together; one is kept in any case."""
        self._state_bytes = state_bytes
        self._trees = dict[int, PrefixTree]()  # by the identity of where their requests start
        self._waiting = dict[Handle, Place]()
        self._states = OrderedDict[int, Place]()  # nodes that have one, the most recently used last

    def add(self, handle: Handle, rows: Iterable[Row]) -> None:
        """Find out which prompts begin like that of a request which waits from now on, among those being read too."""
        tokens = handle.request.shareable
        if len(tokens) <= LEAST_SHARED:
            return
        start = handle.request.start
        if (tree := self._trees.get(id(start))) is None:
            tree = self._trees[id(start)] = PrefixTree(start)
        place = self._waiting[handle] = Place(tree, tree.insert(tokens))
        for row in rows:
            if not row.place or row.place.tree is not tree:
                continue
            common = deepest_common(row.place.node, place.node)
            if common and common.depth - row.position >= LEAST_SHARED:
                row.add(common)

    def drop(self, handle: Handle) -> None:
        """A request that waited will not be read."""
        if place := self._waiting.pop(handle, None):
            place.tree.begin(place.node)
            self._remove(place)

    def can_begin(self, handle: Handle, rows: Iterable[Row]) -> bool:
        """Whether nobody is about to read, ahead of a request that waits, what both begin with."""
        if not (place := self._waiting.get(handle)):
            return True
        path = {id(each): each.depth for each in place.node.path()}
        least = (place.known.depth if place.known else 0) + LEAST_SHARED
        of_the_tree = (row for row in rows if row.place and row.place.tree is place.tree)
        return not any(path.get(id(node), 0) >= least for row in of_the_tree for node in row.nodes)

    def begin(self, handle: Handle) -> tuple[Place | None, Node | None]:
        """A request is being read from now on: where its prompt ends, and the last node before that with a state."""
        if not (place := self._waiting.pop(handle, None)):
            return None, None
        if known := place.known:
            self._touch(place.tree, known)
        return place, known

    @staticmethod
    def plan(row: Row) -> None:
        """Want the state of a row, which begins, where the ways of prompts that wait part from its own."""
        if row.place:
            row.place.tree.begin(row.place.node)
            for node in shared_ends(row.place.node):
                if node.depth - row.position >= LEAST_SHARED:
                    row.add(node)

    def reached(self, row: Row, state: Callable[[], State]) -> None:
        """Keep the state of a row that has come to a node where it is wanted."""
        while row.nodes and row.nodes[0].depth <= row.position:
            node = row.nodes.pop(0)
            if node.depth == row.position and row.place:
                node.state = node.state or state()
                self._touch(row.place.tree, node)
                self._make_room(node.state.nbytes)

    def forget(self, row: Row) -> None:
        """The prompt of a row is read, or will not be."""
        if row.place:
            self._remove(row.place)
        row.place, row.nodes = None, []

    def _make_room(self, nbytes: int) -> None:
        """Let go of the states that were used least recently; each takes so many bytes."""
        while len(self._states) > max(self._state_bytes // nbytes, 1):
            _, (tree, node) = self._states.popitem(last=False)
            node.state = None
            tree.prune(node)
            self._drop_if_empty(tree)

    def _touch(self, tree: PrefixTree, node: Node) -> None:
        self._states[id(node)] = Place(tree, node)
        self._states.move_to_end(id(node))

    def _remove(self, place: Place) -> None:
        place.tree.remove(place.node)
        self._drop_if_empty(place.tree)

    def _drop_if_empty(self, tree: PrefixTree) -> None:
        if tree.is_empty:
            self._trees.pop(id(tree.start), None)
