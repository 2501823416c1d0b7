"""ffn.value times the hidden units of the channel mix, most of which are zero in a trained model.

The matrix is stored by hidden unit, in blocks of 64 output channels: [C/64, F, 64] weights (int4: 32 bytes, the low
halves channels 0 to 31, the high halves 32 to 63) and [C/64, F/64, 64] scales. A *row* is what a unit adds to a block.

When one token is read, groups of 64 units with few non-zero ones are read row by row, skipping the rows of units that
are zero; this is exact. Denser groups are read whole: sequential reads and integer dot products are faster then. When
many tokens are read, nearly every unit is needed by one of them, and each row is read once for all.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from cpu_kernels.abi import ACTIVATION, BLOCK, GROUP, MATRIX
from cpu_kernels.elementwise import FLOAT, VECTOR
from cpu_kernels.products import amx, dot_int
from cpu_kernels.products.dot import HAS_TILES, WEIGHT_OFFSET, dot4, dot4_unsigned
from cpu_kernels.products.dot_int import INT4_OFFSET, INT8_GROUP, SCALE_BYTES, SCALES
from cpu_kernels.products.matrix import FLOAT16, INT8, is_integer, weight_bytes
from cpu_kernels.products.packing import TILES, int4_packers, pack_rows_int8
from cpu_kernels.simd import (
    LANES,
    fma,
    get_f32,
    get_i8,
    get_i32,
    get_u8,
    high_halves,
    interleave,
    load,
    load_bf16,
    load_f16,
    load_high_halves_as_f32,
    load_i8_as_f32,
    load_low_halves_as_f32,
    low_halves,
    prefetch,
    put_i32,
    put_u8,
    splat,
    splat_4i8,
    splat_i32,
    stack_memory,
    store,
    to_f32,
)

FEW = 20
"""Groups with at most this many non-zero units are read row by row."""

AHEAD = 6
"""Prefetch distance of single rows, in groups: the CPU's own prefetcher finds no pattern in them."""

GROUP_SCALES = BLOCK * SCALE_BYTES  # bytes of the scales of a group of units

_f = np.float32
_add_int8 = dot_int.int8.add_group_x4
_add_int4 = dot_int.unpacked_int4.add_group_x4
_pack_rows_int4, _ = int4_packers(njit(lambda halves: halves))
_packed = stack_memory(TILES * INT8_GROUP)


@njit
def find_active_i8(active, count, hq):
    """List the non-zero units of hq, int8 [64]: their numbers in active, uint8 [64], how many in count, int32 [1]."""
    found = 0
    for i in range(GROUP):
        put_u8(active + found, i)
        found += get_u8(hq + i) != 0
    put_i32(count, np.int32(found))


@njit
def find_active_f32(active, count, h):
    """The same for h [64] in float32."""
    found = 0
    for i in range(GROUP):
        put_u8(active + found, i)
        found += get_f32(h + i * FLOAT) != _f(0)
    put_i32(count, np.int32(found))


@njit
def sparse_rows(out, m: MATRIX, block, act: ACTIVATION, t, active, counts):
    """out [64] += a block of output channels of the matrix times token t's hidden units, most of which are zero.

    `active` [F] and `counts` [F/64] list the units that are not, see `find_active_i8`.
    """
    F = m.cols
    for g in range(AHEAD):
        _prefetch_rows(m, block, g, active, counts)
    for g in range(F // GROUP):
        _prefetch_rows(m, block, g + AHEAD, active, counts)
        n = get_i32(counts + g * FLOAT)
        if n == 0:
            continue
        units, group = active + g * GROUP, t * (F // GROUP) + g
        row = block * F + g * GROUP  # of the first unit of the group
        if is_integer(m):
            rows, scales = m.weights + weight_bytes(m, row * BLOCK), m.scales + row // GROUP * GROUP_SCALES
            hq, scale, total = (
                act.xq + group * GROUP,
                get_f32(act.scale + group * FLOAT),
                get_i32(act.sums + group * FLOAT),
            )
            if m.kind == INT8:
                s0, s1, s2, s3 = _sum_int8(rows, hq, units, n) if n <= FEW else _sum_all_int8(rows, hq, total)
            else:
                s0, s1, s2, s3 = (
                    _sum_int4(rows, hq, units, n, total) if n <= FEW else _sum_all_int4(rows, hq, total)
                )
            _add_scaled(out, s0, scales, scale)
            _add_scaled(out + VECTOR, s1, scales + SCALES, scale)
            _add_scaled(out + 2 * VECTOR, s2, scales + 2 * SCALES, scale)
            _add_scaled(out + 3 * VECTOR, s3, scales + 3 * SCALES, scale)
        elif m.kind == FLOAT16:
            _add_float16(out, m.weights + row * BLOCK * 2, act.x + group * GROUP * FLOAT, units, n)
        else:
            _add_float32(out, m.weights + row * BLOCK * 4, act.x + group * GROUP * FLOAT, units, n)


@njit
def _prefetch_rows(m: MATRIX, block, g, active, counts):
    """Prefetch the rows of the non-zero units of a group, if there are few."""
    if g >= m.cols // GROUP:
        return
    n, row_bytes = get_i32(counts + g * FLOAT), weight_bytes(m, BLOCK)
    rows = m.weights + (block * m.cols + g * GROUP) * row_bytes
    for i in range(n if n <= FEW else 0):
        prefetch(rows + get_u8(active + g * GROUP + i) * row_bytes)


@njit
def _add_scaled(out, total, scales, scale):
    store(out, fma(total, load_bf16(scales) * splat(scale), load(out)))


# The sum of a group's integer products is below 2**24, so that float32 holds it exactly.


@njit
def _sum_int8(rows, hq, units, n):
    """The sum over n units of h * row, [64]."""
    s0 = s1 = s2 = s3 = splat(_f(0))
    for i in range(n):
        unit = get_u8(units + i)
        h, row = splat(_f(get_i8(hq + unit))), rows + unit * BLOCK
        s0 = fma(h, load_i8_as_f32(row), s0)
        s1 = fma(h, load_i8_as_f32(row + LANES), s1)
        s2 = fma(h, load_i8_as_f32(row + 2 * LANES), s2)
        s3 = fma(h, load_i8_as_f32(row + 3 * LANES), s3)
    return s0, s1, s2, s3


@njit
def _sum_int4(rows, hq, units, n, total):
    """The sum over n units of h * row, [64]; total is the sum of all h, to correct for the weights' offset."""
    s0 = s1 = s2 = s3 = splat(_f(-INT4_OFFSET * total))
    for i in range(n):
        unit = get_u8(units + i)
        h, row = splat(_f(get_i8(hq + unit))), rows + unit * (BLOCK // 2)
        s0 = fma(h, load_low_halves_as_f32(row), s0)
        s1 = fma(h, load_low_halves_as_f32(row + LANES), s1)
        s2 = fma(h, load_high_halves_as_f32(row), s2)
        s3 = fma(h, load_high_halves_as_f32(row + LANES), s3)
    return s0, s1, s2, s3


@njit
def _sum_all_int8(rows, hq, total):
    """The sum over all 64 units of h * row, [64]; total is the sum of all h."""
    a0 = a1 = a2 = a3 = splat_i32(np.int32(-WEIGHT_OFFSET) * total)
    for u in range(0, GROUP, 4):
        h, row = splat_4i8(hq + u), rows + u * BLOCK
        a0 = dot4(a0, interleave(row, BLOCK), h)
        a1 = dot4(a1, interleave(row + LANES, BLOCK), h)
        a2 = dot4(a2, interleave(row + 2 * LANES, BLOCK), h)
        a3 = dot4(a3, interleave(row + 3 * LANES, BLOCK), h)
    return to_f32(a0), to_f32(a1), to_f32(a2), to_f32(a3)


@njit
def _sum_all_int4(rows, hq, total):
    """The same for int4."""
    a0 = a1 = a2 = a3 = splat_i32(np.int32(-INT4_OFFSET) * total)
    for u in range(0, GROUP, 4):
        h, row = splat_4i8(hq + u), rows + u * (BLOCK // 2)
        both = interleave(row, BLOCK // 2)
        a0, a2 = dot4_unsigned(a0, low_halves(both), h), dot4_unsigned(a2, high_halves(both), h)
        both = interleave(row + LANES, BLOCK // 2)
        a1, a3 = dot4_unsigned(a1, low_halves(both), h), dot4_unsigned(a3, high_halves(both), h)
    return to_f32(a0), to_f32(a1), to_f32(a2), to_f32(a3)


def _float_kernel(load_weights, width):
    """The kernel for one group of units with float weights of `width` bytes, sixteen of which `load_weights` reads."""
    vector = LANES * width

    @njit
    def kernel(out, rows, h, units, n):
        out1, out2, out3 = out + VECTOR, out + 2 * VECTOR, out + 3 * VECTOR
        s0, s1, s2, s3 = load(out), load(out1), load(out2), load(out3)
        for i in range(n):
            unit = get_u8(units + i)
            hi, row = splat(get_f32(h + unit * FLOAT)), rows + unit * BLOCK * width
            s0 = fma(hi, load_weights(row), s0)
            s1 = fma(hi, load_weights(row + vector), s1)
            s2 = fma(hi, load_weights(row + 2 * vector), s2)
            s3 = fma(hi, load_weights(row + 3 * vector), s3)
        store(out, s0)
        store(out1, s1)
        store(out2, s2)
        store(out3, s3)

    return kernel


_add_float16 = _float_kernel(load_f16, 2)
_add_float32 = _float_kernel(load, 4)


@njit
def n_read_densely(T):
    """How many of T tokens, the first ones, `dense_rows` takes, for integer weights; `sparse_rows` takes the others."""
    if HAS_TILES and T >= amx.LEAST:
        return T
    return T // 4 * 4


@njit
def _dense_rows_by_vectors(out, stride, m: MATRIX, block, act: ACTIVATION, T):
    """out [T, 64] += what `sparse_rows` adds, to the bit, for integer weights and as many tokens as `n_read_densely`.

    Each group of units is first repacked into four tiles, for which the kernels of the other matrices can be used.
    """
    F, packed = m.cols, _packed(0)
    for g in range(F // GROUP if T else 0):
        row = block * F + g * GROUP
        if m.kind == INT8:
            pack_rows_int8(packed, INT8_GROUP, m.weights + row * BLOCK)
        else:
            _pack_rows_int4(packed, INT8_GROUP, m.weights + row * BLOCK // 2)
        for t in range(0, T, 4):
            for half in range(2):
                at, tiles = out + t * stride + half * 2 * VECTOR, packed + half * 2 * INT8_GROUP
                scales = m.scales + row // GROUP * GROUP_SCALES + half * 2 * SCALES
                if m.kind == INT8:
                    _add_int8(at, stride, tiles, INT8_GROUP, scales, SCALES, act, t, g)
                else:
                    _add_int4(at, stride, tiles, INT8_GROUP, scales, SCALES, act, t, g)


dense_rows = amx.dense_rows if HAS_TILES else _dense_rows_by_vectors
