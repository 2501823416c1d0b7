"""Work on single vectors: norms, token shift, the activation functions, and rounding activations to int8.

All lengths are multiples of 64, so that no loop has a remainder. Addresses are int64, offsets in bytes; a float has 4.
"""

import numpy as np
from numba import njit

from cpu_kernels.abi import GROUP, LANES
from cpu_kernels.simd import (
    absolute,
    fma,
    load,
    max_lanes,
    maximum,
    minimum,
    put_f32,
    put_i32,
    round_f32,
    scale_by_power,
    splat,
    store,
    store_f32_as_i8,
    sum_lanes,
)

FLOAT = 4  # bytes
VECTOR = LANES * FLOAT  # bytes of a vector of floats

LAYER_NORM_EPS = np.float32(1e-5)

_f = np.float32
_LEAST_TOP = _f(4e-37)  # 127 divided by less overflows float32
_LOG2_E = _f(1.4426950408889634)
_LN2_HIGH, _LN2_LOW = _f(0.693359375), _f(-2.12194440e-4)  # ln 2 in two parts: n * the first is exact
_LEAST, _MOST = _f(-87.0), _f(88.0)  # exp stays a normal float between them


@njit
def exp(x):
    """e**x lane by lane, to two units in the last place: 2**n times a polynomial on [-ln2/2, ln2/2] (Cephes, expf)."""
    x = minimum(maximum(x, splat(_LEAST)), splat(_MOST))
    n = round_f32(x * splat(_LOG2_E))
    r = fma(n, splat(-_LN2_HIGH), x)
    r = fma(n, splat(-_LN2_LOW), r)
    p = splat(_f(1.9875691500e-4))
    p = fma(p, r, splat(_f(1.3981999507e-3)))
    p = fma(p, r, splat(_f(8.3334519073e-3)))
    p = fma(p, r, splat(_f(4.1665795894e-2)))
    p = fma(p, r, splat(_f(1.6666665459e-1)))
    p = fma(p, r, splat(_f(5.0000001201e-1)))
    return scale_by_power(fma(p, r * r, r) + splat(_f(1)), n)


@njit
def sigmoid(x):
    """1 / (1 + e**-x)"""
    return splat(_f(1)) / (splat(_f(1)) + exp(splat(_f(0)) - x))


@njit
def tanh(x):
    """1 - 2 / (1 + e**2x)"""
    return splat(_f(1)) - splat(_f(2)) / (splat(_f(1)) + exp(x + x))


@njit
def mean_and_rstd(x, n, eps):
    """The mean of n floats, and 1 / sqrt(variance + eps)."""
    total = splat(_f(0))
    for i in range(0, n * FLOAT, VECTOR):
        total = total + load(x + i)
    mean = sum_lanes(total) / _f(n)
    squares = splat(_f(0))
    for i in range(0, n * FLOAT, VECTOR):
        d = load(x + i) - splat(mean)
        squares = fma(d, d, squares)
    return mean, _f(1) / np.sqrt(sum_lanes(squares) / _f(n) + eps)


@njit
def layer_norm(out, x, weight, bias, n):
    """out [n] = the layer norm of x [n]; out may be x."""
    mean, rstd = mean_and_rstd(x, n, LAYER_NORM_EPS)
    for i in range(0, n * FLOAT, VECTOR):
        store(out + i, fma((load(x + i) - splat(mean)) * splat(rstd), load(weight + i), load(bias + i)))


@njit
def token_shift(out, u, last, mix, n):
    """out [n] = u + (last - u) * mix: a blend of the inputs of this token and the one before."""
    for i in range(0, n * FLOAT, VECTOR):
        ui = load(u + i)
        store(out + i, fma(load(last + i) - ui, load(mix + i), ui))


@njit
def quantize(xq, scale, sums, x, n):
    """Round x [n] to int8 in groups of 64:  x = xq * scale, the largest of a group becoming 127 or -127.

    xq is int8 [n], scale float32 [n / 64]. sums, int32 [n / 64], are the sums of the groups' int8 values, from which
    kernels compute the correction for weights that are stored with an offset. A group of zeros, or of values whose
    scale has no finite reciprocal, becomes zeros.
    """
    for g in range(n // GROUP):
        group = x + g * GROUP * FLOAT
        largest = absolute(load(group))
        for i in range(VECTOR, GROUP * FLOAT, VECTOR):
            largest = maximum(largest, absolute(load(group + i)))
        top = max_lanes(largest)
        inverse = _f(127) / top if top > _LEAST_TOP else _f(0)
        total = splat(_f(0))
        for i in range(0, GROUP * FLOAT, VECTOR):
            rounded = round_f32(load(group + i) * splat(inverse))
            store_f32_as_i8(xq + g * GROUP + i // FLOAT, rounded)
            total = total + rounded
        put_f32(scale + g * FLOAT, top / _f(127))
        put_i32(sums + g * FLOAT, np.int32(sum_lanes(total)))


@njit
def copy(out, x, n):
    """out [n] = x [n]"""
    for i in range(0, n * FLOAT, VECTOR):
        store(out + i, load(x + i))


@njit
def add(out, x, n):
    """out [n] += x [n]"""
    for i in range(0, n * FLOAT, VECTOR):
        store(out + i, load(out + i) + load(x + i))


@njit
def square_relu(out, n):
    """out [n] = max(out, 0)**2, in place."""
    for i in range(0, n * FLOAT, VECTOR):
        positive = maximum(load(out + i), splat(_f(0)))
        store(out + i, positive * positive)


@njit
def dot(a, b, c, n):
    """The sum of a * b * c, each [n]."""
    total = splat(_f(0))
    for i in range(0, n * FLOAT, VECTOR):
        total = fma(load(a + i) * load(b + i), load(c + i), total)
    return sum_lanes(total)
