"""Integer weights repacked into groups of tiles with a byte for each weight, [16, 16, 4]: operands of dot products.

Weights of a matrix that is stored by input, see `cpu_kernels.products.sparse_ffn`, and those of int4.
"""

from __future__ import annotations

from numba import njit

from cpu_kernels.abi import BLOCK, GROUP
from cpu_kernels.products.dot_int import INT4_GROUP, INT8_GROUP, QUAD
from cpu_kernels.simd import LANES, high_halves, interleave, load_i8, low_halves, store_i8

TILES = BLOCK // LANES


@njit
def pack_rows_int8(packed, next_tile, rows):
    """Four tiles, `next_tile` bytes apart, of the rows of a group of 64 inputs, int8 [64, 64]."""
    for q in range(GROUP // 4):
        for c in range(TILES):
            store_i8(packed + c * next_tile + q * QUAD, interleave(rows + 4 * q * BLOCK + c * LANES, BLOCK))


def int4_packers(finish):
    """Functions that repack int4; `finish` turns 64 halves from 0 to 15 into the weights that are stored."""

    @njit
    def pack_rows(packed, next_tile, rows):
        """Four tiles, `next_tile` bytes apart, of the rows of a group of 64 inputs, uint8 [64, 32]."""
        for q in range(GROUP // 4):
            for c in range(TILES // 2):
                both = interleave(rows + 4 * q * (BLOCK // 2) + c * LANES, BLOCK // 2)
                low, high = finish(low_halves(both)), finish(high_halves(both))
                store_i8(packed + c * next_tile + q * QUAD, low)
                store_i8(packed + (c + TILES // 2) * next_tile + q * QUAD, high)

    @njit
    def pack_groups(packed, weights, n):
        """n groups of a tile, whose quads p and p + 8 are stored in the same bytes."""
        for g in range(n):
            for line in range(0, INT4_GROUP, QUAD):
                both, place = load_i8(weights + g * INT4_GROUP + line), packed + g * INT8_GROUP + line
                store_i8(place, finish(low_halves(both)))
                store_i8(place + INT4_GROUP, finish(high_halves(both)))

    return pack_rows, pack_groups
