"""Which prompts begin alike: a tree of tokens in which paths that have a beginning in common share it.

A node stands for the tokens from the root to it, and may have the state after them. The last token of a prompt is not
part of the tree: it is read by each sequence alone, since its logits are wanted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rwkv_cli.engine.session import Snapshot
from rwkv_cli.engine.state import State

Tokens = NDArray[np.int32]


class Node:
    """Tokens [n] after those of the parent."""

    def __init__(self, parent: Node | None, tokens: Tokens) -> None:
        self.parent, self.tokens = parent, tokens
        self.depth: int = (parent.depth if parent else 0) + len(tokens)  # tokens from the root to here
        self.children = dict[int, Node]()  # by their first token
        self.waiting = 0  # prompts that lead to here or further, and are not being read yet
        self.users = 0  # prompts, waiting or being read, that end here
        self.state: State | None = None  # after its tokens
        self.used = 0  # when the state was used last

    def path(self) -> list[Node]:
        """The nodes from below the root to this one."""
        found = list[Node]()
        node: Node | None = self
        while node and node.parent:
            found.append(node)
            node = node.parent
        return found[::-1]


class PrefixTree:
    """The prompts of requests that continue from the same place."""

    def __init__(self, start: Snapshot | None = None) -> None:
        self.start = start
        self.root = Node(None, np.zeros(0, np.int32))

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing but the root."""
        return not self.root.children

    def insert(self, tokens: Sequence[int]) -> Node:
        """The node of a prompt that waits from now on, without its last token."""
        rest = np.asarray(tokens, np.int32)[:-1]
        node = self.root
        while len(rest):
            child = node.children.get(int(rest[0]))
            if child is None:
                child = node.children[int(rest[0])] = Node(node, rest.copy())
            elif (common := _common(child.tokens, rest)) < len(child.tokens):
                child = _split(child, common)
            node, rest = child, rest[len(child.tokens) :]
        node.users += 1
        self._count(node, 1)
        return node

    def begin(self, node: Node) -> None:
        """A prompt that waited is being read from now on."""
        self._count(node, -1)

    def remove(self, node: Node) -> None:
        """A prompt that is being read no longer needs the tree."""
        node.users -= 1
        self.prune(node)

    def prune(self, node: Node) -> None:
        """Remove nodes that nothing needs, from here towards the root."""
        while node.parent and not (node.children or node.users or node.state):
            del node.parent.children[int(node.tokens[0])]
            node = node.parent

    def states(self) -> Iterator[Node]:
        """The nodes that have a state."""
        nodes = [self.root]
        while nodes:
            node = nodes.pop()
            nodes += node.children.values()
            if node.state:
                yield node

    @staticmethod
    def _count(node: Node, change: int) -> None:
        for each in node.path():
            each.waiting += change


class Place(NamedTuple):
    """The end of a prompt in the tree of those that continue from the same place."""

    tree: PrefixTree
    node: Node

    @property
    def known(self) -> Node | None:
        """The last node on the way here that has a state."""
        return deepest_with_state(self.node)


def deepest_with_state(node: Node) -> Node | None:
    """The last node on the way to this one that has a state."""
    return next((each for each in reversed(node.path()) if each.state), None)


def deepest_common(a: Node, b: Node) -> Node | None:
    """The last node on the ways to both; None if that is the root."""
    on_the_way = set(map(id, a.path()))
    return next((each for each in reversed(b.path()) if id(each) in on_the_way), None)


def shared_ends(node: Node) -> list[Node]:
    """The nodes on the way to this one where ways of prompts that wait part from it, or end."""
    path = node.path()
    following = [*(each.waiting for each in path[1:]), 0]
    return [each for each, further in zip(path, following, strict=True) if each.waiting > further]


def _common(a: Tokens, b: Tokens) -> int:
    """How many tokens two sequences have in common at their beginning."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n


def _split(node: Node, at: int) -> Node:
    """A new node in the middle of the way to `node`, after `at` of its tokens."""
    assert node.parent
    upper = Node(node.parent, node.tokens[:at])
    node.parent.children[int(node.tokens[0])] = upper
    node.parent, node.tokens = upper, node.tokens[at:]
    upper.children[int(node.tokens[0])] = node
    upper.waiting = node.waiting
    return upper
