"""ffn.value times the hidden units of the channel mix, most of which are zero in a trained model.

The matrix is stored by hidden unit, 64 output channels at a time: [C/64, F, 64] weights (int4: 32 bytes, the low halves
channels 0 to 31, the high halves 32 to 63) and [C/64, F/64, 64] scales. When one token is read, only the rows of units
that are not zero are read, in groups of 64 units of which few are not: this is exact. Where many are not, memory is
faster read in one go, and integer dot products are faster. When many tokens are read, nearly every unit is needed by
one of them, and each row is read once for all.
"""

import numpy as np
from numba import njit

from cpu_kernels import dot_int
from cpu_kernels.dot import WEIGHT_OFFSET, dot4, dot4_unsigned
from cpu_kernels.dot_int import INT4_OFFSET, INT8_GROUP, QUAD, SCALE_BYTES, SCALES
from cpu_kernels.elementwise import FLOAT, GROUP, VECTOR
from cpu_kernels.matrix import FLOAT16, INT8, is_integer, weight_bytes
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
    store,
    store_i8,
    to_f32,
)

FEW = 20
"""Up to so many units of a group that are not zero, their rows are read one by one."""

AHEAD = 6
"""So many groups before they are needed, such rows are asked for: the CPU itself sees no pattern in them."""

_f = np.float32
_add_int8 = dot_int.int8.add_group_x4
_add_int4 = dot_int.unpacked_int4.add_group_x4


@njit
def find_active_i8(active, count, hq):
    """List the units of hq [64], int8, that are not zero: their numbers in active [64], how many in count (int32)."""
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
def sparse_rows(out, m, block, act, t, active, counts):
    """out [64] += channels 64 * block... of the matrix times token t's hidden units, reading active units only.

    `active` [F] and `counts` [F/64] list them, group by group.
    """
    F = m.cols
    for g in range(AHEAD):
        _ask_for_rows(m, block, g, active, counts)
    for g in range(F // GROUP):
        _ask_for_rows(m, block, g + AHEAD, active, counts)
        n = get_i32(counts + g * FLOAT)
        if n == 0:
            continue
        units, group = active + g * GROUP, t * (F // GROUP) + g
        row = block * F + g * GROUP  # of the group's first unit
        if is_integer(m):
            rows, scales = m.weights + weight_bytes(m, row * GROUP), m.scales + row * SCALE_BYTES
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
            _add_float16(out, m.weights + row * GROUP * 2, act.x + group * GROUP * FLOAT, units, n)
        else:
            _add_float32(out, m.weights + row * GROUP * 4, act.x + group * GROUP * FLOAT, units, n)


@njit
def _ask_for_rows(m, block, g, active, counts):
    """Prefetch the rows of a group's active units, if they are few."""
    if g >= m.cols // GROUP:
        return
    n, row_bytes = get_i32(counts + g * FLOAT), weight_bytes(m, GROUP)
    rows = m.weights + (block * m.cols + g * GROUP) * row_bytes
    for i in range(n if n <= FEW else 0):
        prefetch(rows + get_u8(active + g * GROUP + i) * row_bytes)


@njit
def _add_scaled(out, total, scales, scale):
    store(out, fma(total, load_bf16(scales) * splat(scale), load(out)))


# The sum of a group's products of integers is below 2**24, so that floats hold it exactly.


@njit
def _sum_int8(rows, hq, units, n):
    """The sum over n units of h * row, [64]."""
    s0 = s1 = s2 = s3 = splat(_f(0))
    for i in range(n):
        unit = get_u8(units + i)
        h, row = splat(_f(get_i8(hq + unit))), rows + unit * GROUP
        s0 = fma(h, load_i8_as_f32(row), s0)
        s1 = fma(h, load_i8_as_f32(row + LANES), s1)
        s2 = fma(h, load_i8_as_f32(row + 2 * LANES), s2)
        s3 = fma(h, load_i8_as_f32(row + 3 * LANES), s3)
    return s0, s1, s2, s3


@njit
def _sum_int4(rows, hq, units, n, total):
    """The sum over n units of h * row, [64]; total is the sum of all h, to make good for the weights' offset."""
    s0 = s1 = s2 = s3 = splat(_f(-INT4_OFFSET * total))
    for i in range(n):
        unit = get_u8(units + i)
        h, row = splat(_f(get_i8(hq + unit))), rows + unit * (GROUP // 2)
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
        h, row = splat_4i8(hq + u), rows + u * GROUP
        a0 = dot4(a0, interleave(row, GROUP), h)
        a1 = dot4(a1, interleave(row + LANES, GROUP), h)
        a2 = dot4(a2, interleave(row + 2 * LANES, GROUP), h)
        a3 = dot4(a3, interleave(row + 3 * LANES, GROUP), h)
    return to_f32(a0), to_f32(a1), to_f32(a2), to_f32(a3)


@njit
def _sum_all_int4(rows, hq, total):
    """The same for int4."""
    a0 = a1 = a2 = a3 = splat_i32(np.int32(-INT4_OFFSET) * total)
    for u in range(0, GROUP, 4):
        h, row = splat_4i8(hq + u), rows + u * (GROUP // 2)
        both = interleave(row, GROUP // 2)
        a0, a2 = dot4_unsigned(a0, low_halves(both), h), dot4_unsigned(a2, high_halves(both), h)
        both = interleave(row + LANES, GROUP // 2)
        a1, a3 = dot4_unsigned(a1, low_halves(both), h), dot4_unsigned(a3, high_halves(both), h)
    return to_f32(a0), to_f32(a1), to_f32(a2), to_f32(a3)


def _float_kernel(load_weights, width):
    """The kernel for one group of units whose weights of `width` bytes `load_weights` turns into floats."""
    vector = LANES * width

    @njit
    def kernel(out, rows, h, units, n):
        out1, out2, out3 = out + VECTOR, out + 2 * VECTOR, out + 3 * VECTOR
        s0, s1, s2, s3 = load(out), load(out1), load(out2), load(out3)
        for i in range(n):
            unit = get_u8(units + i)
            hi, row = splat(get_f32(h + unit * FLOAT)), rows + unit * GROUP * width
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
def dense_rows(out, stride, m, block, act, T, packed):
    """Like `sparse_rows`, to the bit, for T tokens, a multiple of four, and integer weights.

    Each group of units is first turned into four tiles, in `packed` [4,096] bytes, so that the kernels of other
    matrices serve.
    """
    F = m.cols
    for g in range(F // GROUP if T else 0):
        row = block * F + g * GROUP
        if m.kind == INT8:
            _pack_int8(packed, m.weights + row * GROUP)
        else:
            _pack_int4(packed, m.weights + row * GROUP // 2)
        for t in range(0, T, 4):
            for half in range(2):
                at, tiles = out + t * stride + half * 2 * VECTOR, packed + half * 2 * INT8_GROUP
                scales = m.scales + row * SCALE_BYTES + half * 2 * SCALES
                if m.kind == INT8:
                    _add_int8(at, stride, tiles, INT8_GROUP, scales, SCALES, act, t, g)
                else:
                    _add_int4(at, stride, tiles, INT8_GROUP, scales, SCALES, act, t, g)


@njit
def _pack_int8(packed, rows):
    for q in range(GROUP // 4):
        for c in range(GROUP // LANES):
            store_i8(packed + c * INT8_GROUP + q * QUAD, interleave(rows + 4 * q * GROUP + c * LANES, GROUP))


@njit
def _pack_int4(packed, rows):
    for q in range(GROUP // 4):
        for c in range(GROUP // LANES // 2):
            both = interleave(rows + 4 * q * (GROUP // 2) + c * LANES, GROUP // 2)
            store_i8(packed + c * INT8_GROUP + q * QUAD, low_halves(both))
            store_i8(packed + (c + 2) * INT8_GROUP + q * QUAD, high_halves(both))
