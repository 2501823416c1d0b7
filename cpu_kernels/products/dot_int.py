"""Dot products of integer weights with activations rounded to int8, in groups of 64 columns.

A group of a tile is 16 rows x 64 columns: sixteen *quads* of four columns, each one operand of `dot4`. The kernels of
all kinds of weights share their source and differ in how they read a pair of quads:

    int8     1,024 bytes: quad after quad, read sequentially, which suits the CPU's prefetcher
    int4     512 bytes: the low halves of 64 bytes are quad p, the high halves quad p + 8; a half is the weight + 8

The integer sum of a group is exact. It is scaled by the weights' scale of each row and by the activation's scale, and
accumulated in float32, group after group, so that results do not depend on how many tokens are read together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from cpu_kernels.abi import ACTIVATION, CACHE_LINE, GROUP, MATRIX
from cpu_kernels.elementwise import FLOAT, VECTOR
from cpu_kernels.products.dot import WEIGHT_OFFSET, dot4, dot4_unsigned
from cpu_kernels.simd import (
    LANES,
    fma,
    get_f32,
    get_i32,
    high_halves,
    load,
    load_bf16,
    load_i8,
    low_halves,
    prefetch,
    splat,
    splat_4i8,
    splat_i32,
    store,
    to_f32,
)

QUAD = 4 * LANES  # bytes of an operand of dot4
PAIRS = GROUP // 8  # of quads that are read together, in a group
SCALE_BYTES = 2  # bfloat16
SCALES = LANES * SCALE_BYTES  # bytes of the scales of one group of a tile
INT8_GROUP, INT4_GROUP = GROUP * LANES, GROUP * LANES // 2  # bytes of one group of a tile
INT4_OFFSET = 8

AHEAD = 2048
"""Prefetch distance, in bytes: the CPU's own prefetcher stops at page boundaries."""

_f = np.float32


class Packing(NamedTuple):
    """How one kind of integer weights is packed into a group of a tile, and which dot product it takes."""

    two_quads: Callable[
        ..., Any
    ]  # two_quads(weights, p): quads p * step and p * step + apart of the group at `weights`
    step: int
    apart: int
    dot: Callable[..., Any]  # `dot4` or `dot4_unsigned`
    offset: int  # added to each weight that `dot` sees
    group_bytes: int


class Kernels(NamedTuple):
    """The kernels for one kind of integer weights."""

    x1: Any
    x4: Any
    add_group_x4: Any


def _kernels(packing):
    """The kernels for one kind of integer weights."""
    add_group_x4 = _add_group_x4(packing)
    return Kernels(_x1(packing), _x4(add_group_x4, packing.group_bytes), add_group_x4)


def _x1(packing):
    """The kernel for one tile and one token."""
    two_quads, step, apart, dot, offset, group_bytes = packing
    negative_offset = np.int32(-offset)
    next_pair, next_quad = 4 * step, 4 * apart  # columns

    @njit
    def x1(out, m: MATRIX, tile, act: ACTIVATION, t):
        """out [16] = one tile times token t."""
        groups = m.cols // GROUP
        weights, scales = m.weights + tile * groups * group_bytes, m.scales + tile * groups * SCALES
        xq, scale, sums = group_of_activation(act, t, 0)
        total = splat(_f(0))
        for g in range(groups):
            for line in range(0, group_bytes, CACHE_LINE):
                prefetch(weights + AHEAD + line)
            acc = splat_i32(negative_offset * get_i32(sums + g * FLOAT))
            for p in range(PAIRS):
                low, high = two_quads(weights, p)
                acc = dot(acc, low, splat_4i8(xq + p * next_pair))
                acc = dot(acc, high, splat_4i8(xq + p * next_pair + next_quad))
            total = fma(to_f32(acc), load_bf16(scales) * splat(get_f32(scale + g * FLOAT)), total)
            weights += group_bytes
            scales += SCALES
            xq += GROUP
        store(out, total)

    return x1


def _x4(add_group_x4, group_bytes):
    """The kernel for two tiles and four tokens."""

    @njit
    def x4(out, stride, m: MATRIX, tile, act: ACTIVATION, t):
        """out [4, 32] = two tiles times four tokens, from t on."""
        groups = m.cols // GROUP
        weights, scales = m.weights + tile * groups * group_bytes, m.scales + tile * groups * SCALES
        for i in range(4):
            store(out + i * stride, splat(_f(0)))
            store(out + i * stride + VECTOR, splat(_f(0)))
        for g in range(groups):
            add_group_x4(out, stride, weights, groups * group_bytes, scales, groups * SCALES, act, t, g)
            weights += group_bytes
            scales += SCALES

    return x4


def _add_group_x4(packing):
    """The kernel for one group of two tiles and four tokens."""
    two_quads, step, apart, dot, offset, _ = packing
    negative_offset = np.int32(-offset)
    next_pair, next_quad = 4 * step, 4 * apart  # columns

    @njit
    def add_group_x4(out, stride, weights, next_tile, scales, next_scales, act: ACTIVATION, t, g):
        """out [4, 32] += group g of two tiles times four tokens, from t on.

        stride, next_tile and next_scales are distances in bytes: between the outputs of two tokens, the weights of the
        two tiles, and their scales.
        """
        xq, scale, sums = group_of_activation(act, t, g)
        K, token = act.cols, act.cols // GROUP * FLOAT
        a0 = b0 = splat_i32(negative_offset * get_i32(sums))
        a1 = b1 = splat_i32(negative_offset * get_i32(sums + token))
        a2 = b2 = splat_i32(negative_offset * get_i32(sums + 2 * token))
        a3 = b3 = splat_i32(negative_offset * get_i32(sums + 3 * token))
        for p in range(PAIRS):
            a_low, a_high = two_quads(weights, p)
            b_low, b_high = two_quads(weights + next_tile, p)
            x = splat_4i8(xq + p * next_pair)
            a0, b0 = dot(a0, a_low, x), dot(b0, b_low, x)
            x = splat_4i8(xq + K + p * next_pair)
            a1, b1 = dot(a1, a_low, x), dot(b1, b_low, x)
            x = splat_4i8(xq + 2 * K + p * next_pair)
            a2, b2 = dot(a2, a_low, x), dot(b2, b_low, x)
            x = splat_4i8(xq + 3 * K + p * next_pair)
            a3, b3 = dot(a3, a_low, x), dot(b3, b_low, x)
            x = splat_4i8(xq + p * next_pair + next_quad)
            a0, b0 = dot(a0, a_high, x), dot(b0, b_high, x)
            x = splat_4i8(xq + K + p * next_pair + next_quad)
            a1, b1 = dot(a1, a_high, x), dot(b1, b_high, x)
            x = splat_4i8(xq + 2 * K + p * next_pair + next_quad)
            a2, b2 = dot(a2, a_high, x), dot(b2, b_high, x)
            x = splat_4i8(xq + 3 * K + p * next_pair + next_quad)
            a3, b3 = dot(a3, a_high, x), dot(b3, b_high, x)
        sa, sb = load_bf16(scales), load_bf16(scales + next_scales)
        _add_scaled(out, a0, b0, sa, sb, scale)
        _add_scaled(out + stride, a1, b1, sa, sb, scale + token)
        _add_scaled(out + 2 * stride, a2, b2, sa, sb, scale + 2 * token)
        _add_scaled(out + 3 * stride, a3, b3, sa, sb, scale + 3 * token)

    return add_group_x4


@njit
def group_of_activation(act: ACTIVATION, t, g):
    """The addresses of the int8 values, the scale and the sum of group g of the activation of token t."""
    group = t * (act.cols // GROUP) + g
    return act.xq + group * GROUP, act.scale + group * FLOAT, act.sums + group * FLOAT


@njit
def _add_scaled(out, a, b, sa, sb, scale):
    """out [32] += the sums of two tiles, times the scales of their rows and that of the token."""
    s = splat(get_f32(scale))
    store(out, fma(to_f32(a), sa * s, load(out)))
    store(out + VECTOR, fma(to_f32(b), sb * s, load(out + VECTOR)))


@njit
def _two_bytes(weights, p):
    return load_i8(weights + 2 * p * QUAD), load_i8(weights + (2 * p + 1) * QUAD)


@njit
def _two_halves(weights, p):
    both = load_i8(weights + p * QUAD)
    return low_halves(both), high_halves(both)


int8 = _kernels(Packing(_two_bytes, 2, 1, dot4, WEIGHT_OFFSET, INT8_GROUP))
int4 = _kernels(Packing(_two_halves, 1, 8, dot4_unsigned, INT4_OFFSET, INT4_GROUP))
unpacked_int4 = _kernels(Packing(_two_bytes, 2, 1, dot4_unsigned, INT4_OFFSET, INT8_GROUP))
"""int4 with a byte for each weight, which still has the offset 8."""
