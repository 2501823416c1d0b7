"""Dot products of weights with float activations: low-rank maps, and whole models in fp16 and fp32."""

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from cpu_kernels.dot_int import SCALES
from cpu_kernels.elementwise import FLOAT, GROUP
from cpu_kernels.simd import LANES, fma, get_f32, load, load_bf16, load_f16, load_i8_as_f32, splat, store

_f = np.float32


class Kernels(NamedTuple):
    """The kernels for one kind of weights."""

    x1: Any
    x4: Any


def _sums(load_weights, width):
    """The products of some columns, for weights of `width` bytes, sixteen of which `load_weights` turns into floats.

    The columns lie at `weights`, their activations at `x`; n is a multiple of four.
    """
    vector = LANES * width

    @njit
    def x1(weights, x, n):
        """[16]: those of one token."""
        # Four sums, since one would wait for itself: a fused multiply-add takes four cycles and two start in each.
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
        """Four [16]: those of four tokens, in the order of x1: the same to the bit."""
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


@njit
def _store_x4(out, stride, a, b, c, d):
    store(out, a)
    store(out + stride, b)
    store(out + 2 * stride, c)
    store(out + 3 * stride, d)


def _float_kernels(load_weights, width):
    """The kernels for float weights of `width` bytes."""
    sums_x1, sums_x4 = _sums(load_weights, width)

    @njit
    def x1(out, m, tile, act, t):
        """out [16] = one tile times token t."""
        weights, x = m.weights + tile * m.cols * LANES * width, act.x + t * act.cols * FLOAT
        store(out, sums_x1(weights, x, m.cols))

    @njit
    def x4(out, stride, m, tile, act, t):
        """out [4, 16] = one tile times the four tokens from t on."""
        weights, x = m.weights + tile * m.cols * LANES * width, act.x + t * act.cols * FLOAT
        a, b, c, d = sums_x4(weights, x, act.cols * FLOAT, m.cols)
        _store_x4(out, stride, a, b, c, d)

    return Kernels(x1, x4)


def _scaled_kernels():
    """The kernels for weights in int8, of which 64 share a scale, or as many as there are."""
    sums_x1, sums_x4 = _sums(load_i8_as_f32, 1)

    @njit
    def x1(out, m, tile, act, t):
        """out [16] = one tile times token t."""
        weights, x = m.weights + tile * m.cols * LANES, act.x + t * act.cols * FLOAT
        scales = m.scales + tile * ((m.cols + GROUP - 1) // GROUP) * SCALES
        total = splat(_f(0))
        for k in range(0, m.cols, GROUP):
            n = min(GROUP, m.cols - k)
            scale = load_bf16(scales + k // GROUP * SCALES)
            total = fma(sums_x1(weights + k * LANES, x + k * FLOAT, n), scale, total)
        store(out, total)

    @njit
    def x4(out, stride, m, tile, act, t):
        """out [4, 16] = one tile times the four tokens from t on."""
        weights, x = m.weights + tile * m.cols * LANES, act.x + t * act.cols * FLOAT
        scales = m.scales + tile * ((m.cols + GROUP - 1) // GROUP) * SCALES
        a = b = c = d = splat(_f(0))
        for k in range(0, m.cols, GROUP):
            n = min(GROUP, m.cols - k)
            scale = load_bf16(scales + k // GROUP * SCALES)
            sums = sums_x4(weights + k * LANES, x + k * FLOAT, act.cols * FLOAT, n)
            a, b = fma(sums[0], scale, a), fma(sums[1], scale, b)
            c, d = fma(sums[2], scale, c), fma(sums[3], scale, d)
        _store_x4(out, stride, a, b, c, d)

    return Kernels(x1, x4)


float16 = _float_kernels(load_f16, 2)
float32 = _float_kernels(load, 4)
small = _scaled_kernels()
