"""Greedy longest match over bytes: the World tokenizer's inner loop.

The trie is flat. Nodes are numbered from 0, the root, and the edges lie in one hash table with open
addressing and linear probing: a row of `edges` (int32 [S, 2], S a power of two, at most half full) is (parent
* 256 + byte, child), or (EMPTY, 0). `tokens` (int32 [nodes]) holds the id whose byte string ends at a node, 0
where none does: id 0 is the end of a document and has no byte string.
"""

import numpy as np
from numba import njit

EMPTY = -1
# 2**32 over the golden ratio, made odd: Fibonacci hashing (Knuth, volume 3, section 6.4) spreads the
# consecutive keys of sibling edges over the table.
_MULTIPLIER = np.uint32(2654435769)


@njit(cache=True, nogil=True)
def _slot(edges, key):
    """The row of `edges` that holds `key`, or the empty one where it belongs."""
    mask = edges.shape[0] - 1
    hashed = np.uint32(key) * _MULTIPLIER
    slot = np.int64(hashed ^ (hashed >> np.uint32(15))) & mask
    while edges[slot, 0] != key and edges[slot, 0] != EMPTY:
        slot = (slot + 1) & mask
    return slot


@njit(cache=True, nogil=True)
def _empty_table(n_edges):
    """int32 [S, 2] with room for n_edges at a load of at most one half."""
    size = 2
    while size < 2 * n_edges:
        size *= 2
    edges = np.zeros((size, 2), np.int32)
    edges[:, 0] = EMPTY
    return edges


@njit(cache=True, nogil=True)
def build_trie(data, offsets):
    """(edges, tokens) of the vocabulary in which id i has the bytes data[offsets[i]:offsets[i + 1]].

    An id without bytes has no entry. data is uint8 [B] with B < 2**23, so that a key fits into an int32;
    offsets is int64 [V + 1].
    """
    edges = _empty_table(data.shape[0])
    tokens = np.zeros(data.shape[0] + 1, np.int32)
    n_nodes = 1
    for token in range(offsets.shape[0] - 1):
        node = 0
        for position in range(offsets[token], offsets[token + 1]):
            key = node * 256 + data[position]
            slot = _slot(edges, key)
            if edges[slot, 0] == EMPTY:
                edges[slot, 0] = key
                edges[slot, 1] = n_nodes
                n_nodes += 1
            node = edges[slot, 1]
        if node != 0:
            tokens[node] = token
    # Prefixes are shared, so the real number of edges is known only now: a smaller table stays in the cache.
    packed = _empty_table(n_nodes - 1)
    for row in range(edges.shape[0]):
        if edges[row, 0] != EMPTY:
            packed[_slot(packed, edges[row, 0])] = edges[row]
    return packed, tokens[:n_nodes].copy()


@njit(cache=True, nogil=True)
def longest_matches(edges, tokens, text):
    """int32 [T]: the ids of the longest byte strings that cover text (uint8), taken from the left.

    Every single byte has to be in the vocabulary, otherwise there may be no match.
    """
    found = np.empty(text.shape[0], np.int32)
    count = 0
    start = 0
    while start < text.shape[0]:
        node = 0
        end = start
        position = start
        while position < text.shape[0]:
            slot = _slot(edges, node * 256 + text[position])
            if edges[slot, 0] == EMPTY:
                break
            node = edges[slot, 1]
            position += 1
            if tokens[node] != 0:
                found[count] = tokens[node]
                end = position
        count += 1
        start = end
    return found[:count].copy()
