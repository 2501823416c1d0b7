"""A matrix times the activations of some tokens, in tiles of 16 output rows.

A tile stores its rows interleaved, so that one vector holds 16 rows and no sum over lanes is ever needed:

    int8      [K/4, 16, 4] bytes: four columns of 16 rows are one operand of `dot4`; bfloat16 scales [K/64, 16]
    float16   [K, 16]
    float32   [K, 16]

Activations are [T, K], in float32 and, for int8 matrices, also as `elementwise.quantize` gives them. Each kernel has a
form for one token (decode) and one for four (prefill), which reads a weight once for all of them.

ffn.value is stored the other way round, by hidden unit, so that rows whose unit is zero need not be read: see
`sparse_rows`.
"""

import numpy as np
from numba import njit

from cpu_kernels.dot import dot4
from cpu_kernels.elementwise import FLOAT, GROUP, VECTOR
from cpu_kernels.simd import (
    LANES,
    fma,
    get_f32,
    get_i32,
    get_u8,
    load,
    load_bf16,
    load_f16,
    load_i8,
    load_i8_as_f32,
    put_i32,
    put_u8,
    splat,
    splat_4i8,
    splat_i32,
    store,
    to_f32,
)

INT8, FLOAT16, FLOAT32 = 0, 1, 2
"""Kinds of weights."""

WEIGHT_BYTES = (1, 2, 4)  # by kind
SCALE_BYTES = 2  # bfloat16

MATRIX = np.dtype(
    [
        ("kind", np.int64),
        ("rows", np.int64),  # R, padded to a multiple of 16
        ("cols", np.int64),  # K, a multiple of 64 for int8, of 4 for floats
        ("weights", np.int64),  # the address of its R / 16 tiles
        ("scales", np.int64),  # int8: the address of bfloat16 [R/16, K/64, 16]
    ]
)
"""Where a matrix lies and what it is made of."""

ACTIVATION = np.dtype(
    [
        ("cols", np.int64),  # K
        ("x", np.int64),  # the address of float32 [T, K]
        ("xq", np.int64),  # int8 [T, K]
        ("scale", np.int64),  # float32 [T, K/64]
        ("start", np.int64),  # int32 [T, K/64], see `elementwise.quantize`
    ]
)
"""Where the inputs of a matrix lie."""

_f = np.float32


@njit
def rows_times_tokens(out, stride, m, tile, n_tiles, act, T):
    """out[t, 0 : 16 * n_tiles] = rows of the matrix m, from tile `tile` on, times token t's activation, for t < T.

    `stride` is the distance in bytes between two tokens' outputs.
    """
    for j in range(tile, tile + n_tiles):
        t = 0
        while t + 4 <= T:
            _tile(out + t * stride, stride, m, j, act, t, True)
            t += 4
        while t < T:
            _tile(out + t * stride, stride, m, j, act, t, False)
            t += 1
        out += LANES * FLOAT


@njit
def _tile(out, stride, m, tile, act, t, four):
    """One tile times one token, or times the four from t on."""
    K = m.cols
    if m.kind == INT8:
        weights, scales = m.weights + tile * LANES * K, m.scales + tile * LANES * SCALE_BYTES * (K // GROUP)
        groups = t * (K // GROUP) * FLOAT
        if four:
            _int8_x4(out, stride, weights, scales, act.xq + t * K, act.scale + groups, act.start + groups, K)
        else:
            _int8_x1(out, weights, scales, act.xq + t * K, act.scale + groups, act.start + groups, K)
    elif m.kind == FLOAT16:
        weights, x = m.weights + tile * LANES * K * 2, act.x + t * act.cols * FLOAT
        if four:
            _float16_x4(out, stride, weights, x, act.cols * FLOAT, K)
        else:
            _float16_x1(out, weights, x, K)
    else:
        weights, x = m.weights + tile * LANES * K * 4, act.x + t * act.cols * FLOAT
        if four:
            _float32_x4(out, stride, weights, x, act.cols * FLOAT, K)
        else:
            _float32_x1(out, weights, x, K)


@njit
def _int8_x1(out, weights, scales, xq, scale, start, K):
    total = splat(_f(0))
    for g in range(K // GROUP):
        acc = splat_i32(get_i32(start + g * FLOAT))
        for q in range(0, GROUP, 4):
            acc = dot4(acc, load_i8(weights + q * LANES), splat_4i8(xq + q))
        total = fma(to_f32(acc), load_bf16(scales) * splat(get_f32(scale + g * FLOAT)), total)
        weights += GROUP * LANES
        scales += LANES * SCALE_BYTES
        xq += GROUP
    store(out, total)


@njit
def _int8_x4(out, stride, weights, scales, xq, scale, start, K):
    groups = (K // GROUP) * FLOAT  # bytes between two tokens' scales
    total0 = total1 = total2 = total3 = splat(_f(0))
    for g in range(0, groups, FLOAT):
        acc0 = splat_i32(get_i32(start + g))
        acc1 = splat_i32(get_i32(start + groups + g))
        acc2 = splat_i32(get_i32(start + 2 * groups + g))
        acc3 = splat_i32(get_i32(start + 3 * groups + g))
        for q in range(0, GROUP, 4):
            w = load_i8(weights + q * LANES)
            acc0 = dot4(acc0, w, splat_4i8(xq + q))
            acc1 = dot4(acc1, w, splat_4i8(xq + K + q))
            acc2 = dot4(acc2, w, splat_4i8(xq + 2 * K + q))
            acc3 = dot4(acc3, w, splat_4i8(xq + 3 * K + q))
        s = load_bf16(scales)
        total0 = fma(to_f32(acc0), s * splat(get_f32(scale + g)), total0)
        total1 = fma(to_f32(acc1), s * splat(get_f32(scale + groups + g)), total1)
        total2 = fma(to_f32(acc2), s * splat(get_f32(scale + 2 * groups + g)), total2)
        total3 = fma(to_f32(acc3), s * splat(get_f32(scale + 3 * groups + g)), total3)
        weights += GROUP * LANES
        scales += LANES * SCALE_BYTES
        xq += GROUP
    store(out, total0)
    store(out + stride, total1)
    store(out + 2 * stride, total2)
    store(out + 3 * stride, total3)


def _float_kernels(load_weights, width):
    """The kernels for weights of `width` bytes that `load_weights` turns into floats."""
    vector = LANES * width

    @njit
    def x1(out, weights, x, K):
        # Four sums, since one would wait for itself: a fused multiply-add takes four cycles and two start in each.
        a0 = a1 = a2 = a3 = splat(_f(0))
        for k in range(0, K, 4):
            at, xk = weights + k * vector, x + k * FLOAT
            a0 = fma(load_weights(at), splat(get_f32(xk)), a0)
            a1 = fma(load_weights(at + vector), splat(get_f32(xk + FLOAT)), a1)
            a2 = fma(load_weights(at + 2 * vector), splat(get_f32(xk + 2 * FLOAT)), a2)
            a3 = fma(load_weights(at + 3 * vector), splat(get_f32(xk + 3 * FLOAT)), a3)
        store(out, (a0 + a1) + (a2 + a3))

    @njit
    def x4(out, stride, weights, x, x_stride, K):
        # Four sums for each token too, so that its result is the same to the bit as that of x1.
        a0 = a1 = a2 = a3 = splat(_f(0))
        b0 = b1 = b2 = b3 = c0 = c1 = c2 = c3 = d0 = d1 = d2 = d3 = a0
        for k in range(0, K, 4):
            at, xa = weights + k * vector, x + k * FLOAT
            xb, xc, xd = xa + x_stride, xa + 2 * x_stride, xa + 3 * x_stride
            w = load_weights(at)
            a0, b0 = fma(w, splat(get_f32(xa)), a0), fma(w, splat(get_f32(xb)), b0)
            c0, d0 = fma(w, splat(get_f32(xc)), c0), fma(w, splat(get_f32(xd)), d0)
            w, i = load_weights(at + vector), FLOAT
            a1, b1 = fma(w, splat(get_f32(xa + i)), a1), fma(w, splat(get_f32(xb + i)), b1)
            c1, d1 = fma(w, splat(get_f32(xc + i)), c1), fma(w, splat(get_f32(xd + i)), d1)
            w, i = load_weights(at + 2 * vector), 2 * FLOAT
            a2, b2 = fma(w, splat(get_f32(xa + i)), a2), fma(w, splat(get_f32(xb + i)), b2)
            c2, d2 = fma(w, splat(get_f32(xc + i)), c2), fma(w, splat(get_f32(xd + i)), d2)
            w, i = load_weights(at + 3 * vector), 3 * FLOAT
            a3, b3 = fma(w, splat(get_f32(xa + i)), a3), fma(w, splat(get_f32(xb + i)), b3)
            c3, d3 = fma(w, splat(get_f32(xc + i)), c3), fma(w, splat(get_f32(xd + i)), d3)
        store(out, (a0 + a1) + (a2 + a3))
        store(out + stride, (b0 + b1) + (b2 + b3))
        store(out + 2 * stride, (c0 + c1) + (c2 + c3))
        store(out + 3 * stride, (d0 + d1) + (d2 + d3))

    return x1, x4


_float16_x1, _float16_x4 = _float_kernels(load_f16, 2)
_float32_x1, _float32_x4 = _float_kernels(load, 4)


@njit
def sparse_rows(out, m, block, h, active, counts):
    """out [64] += channels 64 * block... of ffn.value times h [F], reading only the rows of units that are not zero.

    Here the matrix is stored by hidden unit: [C/64, F, 64], with scales [C/64, F/64, 64]. In each group of 64 units,
    counts [F/64] (int32) says how many are not zero, and the first bytes of active [F] which.
    """
    F = m.cols
    for g in range(F // GROUP):
        n = get_i32(counts + g * FLOAT)
        if n == 0:
            continue
        units, hg = active + g * GROUP, h + g * GROUP * FLOAT
        rows = (block * F + g * GROUP) * GROUP  # in weights
        if m.kind == INT8:
            scales = m.scales + (block * F + g * GROUP) * SCALE_BYTES
            _sparse_int8(out, m.weights + rows, scales, hg, units, n)
        elif m.kind == FLOAT16:
            _sparse_float16(out, m.weights + rows * 2, hg, units, n)
        else:
            _sparse_float32(out, m.weights + rows * 4, hg, units, n)


def _sparse_kernel(load_weights, width, scaled):
    """The kernel for one group of units: rows of 64 channels, each weight `width` bytes, with or without scales."""
    row, vector = GROUP * width, LANES * width

    @njit
    def sum_rows(rows, h, units, n):
        """The sum of h times row, over n units: 64 floats in four vectors."""
        s0 = s1 = s2 = s3 = splat(_f(0))
        for i in range(n):
            unit = get_u8(units + i)
            hi, at = splat(get_f32(h + unit * FLOAT)), rows + unit * row
            s0 = fma(hi, load_weights(at), s0)
            s1 = fma(hi, load_weights(at + vector), s1)
            s2 = fma(hi, load_weights(at + 2 * vector), s2)
            s3 = fma(hi, load_weights(at + 3 * vector), s3)
        return s0, s1, s2, s3

    if scaled:

        @njit
        def kernel(out, rows, scales, h, units, n):
            s0, s1, s2, s3 = sum_rows(rows, h, units, n)
            half = LANES * SCALE_BYTES
            store(out, fma(s0, load_bf16(scales), load(out)))
            store(out + VECTOR, fma(s1, load_bf16(scales + half), load(out + VECTOR)))
            store(out + 2 * VECTOR, fma(s2, load_bf16(scales + 2 * half), load(out + 2 * VECTOR)))
            store(out + 3 * VECTOR, fma(s3, load_bf16(scales + 3 * half), load(out + 3 * VECTOR)))

    else:

        @njit
        def kernel(out, rows, h, units, n):
            s0, s1, s2, s3 = sum_rows(rows, h, units, n)
            store(out, load(out) + s0)
            store(out + VECTOR, load(out + VECTOR) + s1)
            store(out + 2 * VECTOR, load(out + 2 * VECTOR) + s2)
            store(out + 3 * VECTOR, load(out + 3 * VECTOR) + s3)

    return kernel


_sparse_int8 = _sparse_kernel(load_i8_as_f32, 1, scaled=True)
_sparse_float16 = _sparse_kernel(load_f16, 2, scaled=False)
_sparse_float32 = _sparse_kernel(load, 4, scaled=False)


@njit
def find_active(active, counts, h):
    """List the units of h [64] that are not zero, as `sparse_rows` wants them."""
    found = 0
    for i in range(GROUP):
        if get_f32(h + i * FLOAT) != _f(0):
            put_u8(active + found, i)
            found += 1
    put_i32(counts, np.int32(found))
