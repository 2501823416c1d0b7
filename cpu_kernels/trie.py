"""Greedy longest match over bytes: the World tokenizer's inner loop.

The trie is flat. Nodes are numbered from 0, the root, and the edges are in one hash table with open addressing and
linear probing: a row of `edges` (int32 [S, 2], S a power of two, at most half full) is (parent * 256 + byte, child),
or (EMPTY, anything). `tokens` (int32 [nodes]) holds the id whose byte string ends at a node, or 0 if none does: id 0 is
the end of a document and has no byte string.

The entry points, see `cpu_kernels.runtime.aot`, are `build`, `pack` and `longest_matches`; arrays are given by their
addresses, `edges` followed by S.
"""

import numpy as np
from numba import njit

from cpu_kernels.abi import EMPTY
from cpu_kernels.simd import get_i32, get_i64, get_u8, put_i32

EDGE, ID = 8, 4  # bytes of a row of edges, and of an id
OFFSET = 8  # bytes of where a byte string begins

# 2**32 / golden ratio, made odd: Fibonacci hashing (Knuth, volume 3, section 6.4) spreads the
# consecutive keys of sibling edges over the table.
_MULTIPLIER = np.uint32(2654435769)


@njit
def _edge(edges, S, key):
    """The address of the row of `edges` that holds `key`, or of the empty one where it belongs."""
    hashed = np.uint32(key) * _MULTIPLIER
    slot = np.int64(hashed ^ (hashed >> np.uint32(15))) & (S - 1)
    while get_i32(edges + slot * EDGE) != key and get_i32(edges + slot * EDGE) != EMPTY:
        slot = (slot + 1) & (S - 1)
    return edges + slot * EDGE


@njit
def _child(edge):
    """The node that an edge leads to."""
    return np.int64(get_i32(edge + EDGE // 2))


@njit
def _set_edge(edge, key, child):
    put_i32(edge, np.int32(key))
    put_i32(edge + EDGE // 2, np.int32(child))


def build(edges, S, tokens, data, offsets, V):
    """Build the trie of a vocabulary in which id i < V has the bytes data[offsets[i]:offsets[i + 1]]; returns the
    number of nodes.

    An id without bytes has no entry. data is uint8 [B] with B < 2**23, so that a key fits into an int32; offsets is
    int64 [V + 1]. The caller makes all edges EMPTY and all of tokens [B + 1] zero.
    """
    n_nodes = 1
    for token in range(V):
        node = 0
        for position in range(get_i64(offsets + token * OFFSET), get_i64(offsets + (token + 1) * OFFSET)):
            key = node * 256 + get_u8(data + position)
            edge = _edge(edges, S, key)
            if get_i32(edge) == EMPTY:
                _set_edge(edge, key, n_nodes)
                n_nodes += 1
            node = _child(edge)
        if node != 0:
            put_i32(tokens + node * ID, np.int32(token))
    return n_nodes


def pack(packed, P, edges, S):
    """Copy a trie's edges into a table `packed`, int32 [P, 2], whose rows are EMPTY.

    Prefixes are shared, so the number of edges is known only after `build`; a smaller table fits the CPU's caches.
    """
    for row in range(edges, edges + S * EDGE, EDGE):
        key = get_i32(row)
        if key != EMPTY:
            _set_edge(_edge(packed, P, key), key, _child(row))


def longest_matches(found, edges, S, tokens, text, n):
    """found int32 [n] = the ids of the longest byte strings that cover text, uint8 [n], from the left; returns their
    number.

    Every single byte has to be in the vocabulary, otherwise there may be no match.
    """
    count = 0
    start = 0
    while start < n:
        node = 0
        end = start
        position = start
        while position < n:
            edge = _edge(edges, S, node * 256 + get_u8(text + position))
            if get_i32(edge) == EMPTY:
                break
            node = _child(edge)
            position += 1
            token = get_i32(tokens + node * ID)
            if token != 0:
                put_i32(found + count * ID, token)
                end = position
        count += 1
        start = end
    return count
