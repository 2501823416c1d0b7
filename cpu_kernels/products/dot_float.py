"""Dot products of weights with float activations: low-rank maps, and whole models in fp16 and fp32."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from cpu_kernels.abi import ACTIVATION, GROUP, MATRIX
from cpu_kernels.elementwise import FLOAT, VECTOR
from cpu_kernels.products.dot_int import SCALES
from cpu_kernels.simd import (
    LANES,
    fma,
    get_f32,
    load,
    load_bf16,
    load_f16,
    load_i8_as_f32,
    splat,
    stack_memory,
    store,
)

_f = np.float32
_floats = stack_memory(2 * GROUP * VECTOR)


class Kernels(NamedTuple):
    """The kernels for one kind of float weights."""

    x1: Any
    x4: Any


def _sums(load_weights, width):
    """Functions for the sums of products of n columns, a multiple of four, whose weights have `width` bytes.

    `load_weights(address)` converts sixteen weights to floats. `weights` and `x` are the addresses of the first column
    and of its activation.
    """
    vector = LANES * width

    @njit
    def x1(weights, x, n):
        """[16], for one token."""
        # Four accumulators hide the latency of fused multiply-adds, which take four cycles while two start in each.
        a0 = a1 = a2 = a3 = splat(_f(0))
        for k in range(0, n, 4):
            at, xk = weights + k * vector, x + k * FLOAT
            a0 = fma(load_weights(at), splat(get_f32(xk)), a0)
            a1 = fma(load_weights(at + vector), splat(get_f32(xk + FLOAT)), a1)
            a2 = fma(load_weights(at + 2 * vector), splat(get_f32(xk + 2 * FLOAT)), a2)
            a3 = fma(load_weights(at + 3 * vector), splat(get_f32(xk + 3 * FLOAT)), a3)
        return (a0 + a1) + (a2 + a3)

    @njit
    def x4(weights, x, next_token, n):
        """Four [16], for four tokens whose activations are `next_token` bytes apart: added in the order of x1."""
        a0 = a1 = a2 = a3 = splat(_f(0))
        b0 = b1 = b2 = b3 = c0 = c1 = c2 = c3 = d0 = d1 = d2 = d3 = a0
        for k in range(0, n, 4):
            at, xk = weights + k * vector, x + k * FLOAT
            a0, b0, c0, d0 = _column(load_weights(at), xk, next_token, a0, b0, c0, d0)
            a1, b1, c1, d1 = _column(load_weights(at + vector), xk + FLOAT, next_token, a1, b1, c1, d1)
            a2, b2, c2, d2 = _column(
                load_weights(at + 2 * vector), xk + 2 * FLOAT, next_token, a2, b2, c2, d2
            )
            a3, b3, c3, d3 = _column(
                load_weights(at + 3 * vector), xk + 3 * FLOAT, next_token, a3, b3, c3, d3
            )
        return (a0 + a1) + (a2 + a3), (b0 + b1) + (b2 + b3), (c0 + c1) + (c2 + c3), (d0 + d1) + (d2 + d3)

    return x1, x4


@njit
def _column(w, x, next_token, a, b, c, d):
    """Add one column of weights, times its activation, to the sums of four tokens."""
    a = fma(w, splat(get_f32(x)), a)
    b = fma(w, splat(get_f32(x + next_token)), b)
    c = fma(w, splat(get_f32(x + 2 * next_token)), c)
    d = fma(w, splat(get_f32(x + 3 * next_token)), d)
    return a, b, c, d


def _float_tile(load_weights, width):
    """Functions for the product of a tile of float weights with one and with four tokens, see `_kernels`."""
    sums_x1, sums_x4 = _sums(load_weights, width)

    @njit
    def tile_x1(m: MATRIX, tile, x):
        return sums_x1(m.weights + tile * m.cols * LANES * width, x, m.cols)

    @njit
    def tile_x4(m: MATRIX, tile, x, next_token):
        return sums_x4(m.weights + tile * m.cols * LANES * width, x, next_token, m.cols)

    return tile_x1, tile_x4


_small_sums, _ = _sums(load_i8_as_f32, 1)


@njit
def small_x1(out, m: MATRIX, tile, act: ACTIVATION, t):
    """out [16] = one tile in int8 times token t; 64 columns share a scale, or fewer at the end of a row."""
    weights, scales = m.weights + tile * m.cols * LANES, _scales(m, tile)
    x, total = act.x + t * act.cols * FLOAT, splat(_f(0))
    for k in range(0, m.cols, GROUP):
        n, scale = min(GROUP, m.cols - k), load_bf16(scales + k // GROUP * SCALES)
        total = fma(_small_sums(weights + k * LANES, x + k * FLOAT, n), scale, total)
    store(out, total)


@njit
def small_pair(out, stride, m: MATRIX, tile, act: ACTIVATION, T):
    """out [T, 32] = two tiles of weights in int8 times an even number of tokens, with the bits of the other kernels.

    The weights are converted to floats once for all tokens.
    """
    weights, next_tile, K = m.weights + tile * m.cols * LANES, m.cols * LANES, m.cols
    floats, scales = _floats(0), _scales(m, tile)
    for k in range(0, K if T else 0, GROUP):
        n, group = min(GROUP, K - k), k // GROUP * SCALES
        for i in range(n):
            store(floats + i * VECTOR, load_i8_as_f32(weights + (k + i) * LANES))
            store(floats + (GROUP + i) * VECTOR, load_i8_as_f32(weights + next_tile + (k + i) * LANES))
        first_scale, second_scale = load_bf16(scales + group), load_bf16(_scales(m, tile + 1) + group)
        for t in range(0, T, 2):
            a, b, c, d = _sums_2x2(floats, act.x + (t * K + k) * FLOAT, K * FLOAT, n)
            row = out + t * stride
            _add_scaled(row, a, first_scale, k)
            _add_scaled(row + VECTOR, b, second_scale, k)
            _add_scaled(row + stride, c, first_scale, k)
            _add_scaled(row + stride + VECTOR, d, second_scale, k)


@njit
def _sums_2x2(floats, x, next_token, n):
    """Four [16]: the sums of n columns of two tiles, times a token, then times the next; added in the order of x1."""
    a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = splat(_f(0))
    c0 = c1 = c2 = c3 = d0 = d1 = d2 = d3 = a0
    for k in range(0, n, 4):
        at, xk = floats + k * VECTOR, x + k * FLOAT
        a0, b0, c0, d0 = _column_2x2(at, xk, next_token, a0, b0, c0, d0)
        a1, b1, c1, d1 = _column_2x2(at + VECTOR, xk + FLOAT, next_token, a1, b1, c1, d1)
        a2, b2, c2, d2 = _column_2x2(at + 2 * VECTOR, xk + 2 * FLOAT, next_token, a2, b2, c2, d2)
        a3, b3, c3, d3 = _column_2x2(at + 3 * VECTOR, xk + 3 * FLOAT, next_token, a3, b3, c3, d3)
    return (a0 + a1) + (a2 + a3), (b0 + b1) + (b2 + b3), (c0 + c1) + (c2 + c3), (d0 + d1) + (d2 + d3)


@njit
def _column_2x2(floats, x, next_token, a, b, c, d):
    first, second = load(floats), load(floats + GROUP * VECTOR)
    this, following = splat(get_f32(x)), splat(get_f32(x + next_token))
    return fma(first, this, a), fma(second, this, b), fma(first, following, c), fma(second, following, d)


@njit
def _add_scaled(out, total, scale, k):
    """out [16] += total * scale; the first group, k = 0, sets it."""
    store(out, fma(total, scale, load(out) if k else splat(_f(0))))


@njit
def _scales(m: MATRIX, tile):
    """The address of the scales of a tile, whose last group may be shorter."""
    return m.scales + tile * ((m.cols + GROUP - 1) // GROUP) * SCALES


def _kernels(tile_x1, tile_x4):
    """The kernels for one kind of weights, given the products of a tile with the activations at an address."""

    @njit
    def x1(out, m: MATRIX, tile, act: ACTIVATION, t):
        """out [16] = one tile times token t."""
        store(out, tile_x1(m, tile, act.x + t * act.cols * FLOAT))

    @njit
    def x4(out, stride, m: MATRIX, tile, act: ACTIVATION, t):
        """out [4, 16] = one tile times four tokens, from t on."""
        a, b, c, d = tile_x4(m, tile, act.x + t * act.cols * FLOAT, act.cols * FLOAT)
        store(out, a)
        store(out + stride, b)
        store(out + 2 * stride, c)
        store(out + 3 * stride, d)

    return Kernels(x1, x4)


float16 = _kernels(*_float_tile(load_f16, 2))
float32 = _kernels(*_float_tile(load, 4))
