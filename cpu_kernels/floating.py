"""Dot products of float weights with float activations: low-rank maps, and whole models in fp16 and fp32."""

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from cpu_kernels.elementwise import FLOAT
from cpu_kernels.simd import LANES, fma, get_f32, load, load_f16, splat, store

_f = np.float32


class Kernels(NamedTuple):
    """The kernels for one kind of float weights."""

    x1: Any
    x4: Any


def _kernels(load_weights, width):
    """The kernels for weights of `width` bytes, sixteen of which `load_weights` turns into floats."""
    vector = LANES * width

    @njit
    def x1(out, m, tile, act, t):
        """out [16] = one tile times token t."""
        # Four sums, since one would wait for itself: a fused multiply-add takes four cycles and two start in each.
        weights, x = m.weights + tile * m.cols * vector, act.x + t * act.cols * FLOAT
        a0 = a1 = a2 = a3 = splat(_f(0))
        for k in range(0, m.cols, 4):
            at, xk = weights + k * vector, x + k * FLOAT
            a0 = fma(load_weights(at), splat(get_f32(xk)), a0)
            a1 = fma(load_weights(at + vector), splat(get_f32(xk + FLOAT)), a1)
            a2 = fma(load_weights(at + 2 * vector), splat(get_f32(xk + 2 * FLOAT)), a2)
            a3 = fma(load_weights(at + 3 * vector), splat(get_f32(xk + 3 * FLOAT)), a3)
        store(out, (a0 + a1) + (a2 + a3))

    @njit
    def x4(out, stride, m, tile, act, t):
        """out [4, 16] = one tile times the four tokens from t on, in the order of x1: the same to the bit."""
        weights, x = m.weights + tile * m.cols * vector, act.x + t * act.cols * FLOAT
        next_token = act.cols * FLOAT
        a0 = a1 = a2 = a3 = splat(_f(0))
        b0 = b1 = b2 = b3 = c0 = c1 = c2 = c3 = d0 = d1 = d2 = d3 = a0
        for k in range(0, m.cols, 4):
            at, xk = weights + k * vector, x + k * FLOAT
            a0, b0, c0, d0 = column(load_weights(at), xk, next_token, a0, b0, c0, d0)
            a1, b1, c1, d1 = column(load_weights(at + vector), xk + FLOAT, next_token, a1, b1, c1, d1)
            a2, b2, c2, d2 = column(load_weights(at + 2 * vector), xk + 2 * FLOAT, next_token, a2, b2, c2, d2)
            a3, b3, c3, d3 = column(load_weights(at + 3 * vector), xk + 3 * FLOAT, next_token, a3, b3, c3, d3)
        store(out, (a0 + a1) + (a2 + a3))
        store(out + stride, (b0 + b1) + (b2 + b3))
        store(out + 2 * stride, (c0 + c1) + (c2 + c3))
        store(out + 3 * stride, (d0 + d1) + (d2 + d3))

    return Kernels(x1, x4)


@njit
def column(w, x, next_token, a, b, c, d):
    """Add one column of weights, times its activation, to the sums of four tokens."""
    a = fma(w, splat(get_f32(x)), a)
    b = fma(w, splat(get_f32(x + next_token)), b)
    c = fma(w, splat(get_f32(x + 2 * next_token)), c)
    d = fma(w, splat(get_f32(x + 3 * next_token)), d)
    return a, b, c, d


float16 = _kernels(load_f16, 2)
float32 = _kernels(load, 4)
