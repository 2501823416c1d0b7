"""The recurrence of one head: decay, removal, insertion and reading of its 64 x 64 state."""

import math

import numpy as np
from numba import njit

from cpu_kernels.elementwise import FLOAT, VECTOR, dot, exp, mean_and_rstd, sigmoid
from cpu_kernels.simd import fma, get_f32, load, put_f32, splat, store, sum_lanes

N = 64  # head size
HEAD_BYTES = N * FLOAT

_f = np.float32
DECAY_SCALE = _f(math.exp(-0.5))  # bounds the decay: exp(-exp(-1/2)) = 0.545 <= w <= 1
GROUP_NORM_EPS = _f(64e-5)
NORMALISE_FLOOR = _f(1e-12)


@njit
def decay(w, w0):
    """w [N] = exp(-exp(-1/2) * sigmoid(w0 + w)), in place."""
    for i in range(0, HEAD_BYTES, VECTOR):
        store(w + i, exp(splat(-DECAY_SCALE) * sigmoid(load(w0 + i) + load(w + i))))


@njit
def value_residual(v, v_first, gate, v0):
    """v [N] += (v_first - v) * sigmoid(v0 + gate), in place."""
    for i in range(0, HEAD_BYTES, VECTOR):
        vi = load(v + i)
        store(v + i, fma(load(v_first + i) - vi, sigmoid(load(v0 + i) + load(gate + i)), vi))


@njit
def keys(kk, a, k, k_k, k_a, a0):
    """The removal key kk [N] = k * k_k, normalised; a becomes kk * sigmoid(a0 + a), and k is scaled by its rate."""
    one = splat(_f(1))
    squares = splat(_f(0))
    for i in range(0, HEAD_BYTES, VECTOR):
        unscaled = load(k + i) * load(k_k + i)
        squares = fma(unscaled, unscaled, squares)
        store(kk + i, unscaled)
    inverse = splat(_f(1) / max(np.sqrt(sum_lanes(squares)), NORMALISE_FLOOR))
    for i in range(0, HEAD_BYTES, VECTOR):
        rate = sigmoid(load(a0 + i) + load(a + i))
        ki = load(kk + i) * inverse
        store(kk + i, ki)
        store(a + i, ki * rate)
        store(k + i, load(k + i) * fma(rate - one, load(k_a + i), one))


@njit
def step(y, S, r, w, k, v, kk, b):
    """S [N, N] = S diag(w) - (S kk) b^T + v k^T with b = kk * a, in place;  y [N] = S r.

    A row of S is one value index and fits four vectors, as do r, w, k, kk and b, which stay in registers.
    """
    r0, r1, r2, r3 = load(r), load(r + VECTOR), load(r + 2 * VECTOR), load(r + 3 * VECTOR)
    w0, w1, w2, w3 = load(w), load(w + VECTOR), load(w + 2 * VECTOR), load(w + 3 * VECTOR)
    k0, k1, k2, k3 = load(k), load(k + VECTOR), load(k + 2 * VECTOR), load(k + 3 * VECTOR)
    c0, c1, c2, c3 = load(kk), load(kk + VECTOR), load(kk + 2 * VECTOR), load(kk + 3 * VECTOR)
    b0, b1, b2, b3 = load(b), load(b + VECTOR), load(b + 2 * VECTOR), load(b + 3 * VECTOR)
    for i in range(N):
        row = S + i * HEAD_BYTES
        s0, s1, s2, s3 = load(row), load(row + VECTOR), load(row + 2 * VECTOR), load(row + 3 * VECTOR)
        removed = splat(-sum_lanes(fma(s0, c0, s1 * c1) + fma(s2, c2, s3 * c3)))
        vi = splat(get_f32(v + i * FLOAT))
        s0 = fma(s0, w0, fma(removed, b0, vi * k0))
        s1 = fma(s1, w1, fma(removed, b1, vi * k1))
        s2 = fma(s2, w2, fma(removed, b2, vi * k2))
        s3 = fma(s3, w3, fma(removed, b3, vi * k3))
        store(row, s0)
        store(row + VECTOR, s1)
        store(row + 2 * VECTOR, s2)
        store(row + 3 * VECTOR, s3)
        put_f32(y + i * FLOAT, sum_lanes(fma(s0, r0, s1 * r1) + fma(s2, r2, s3 * r3)))


@njit
def finish(y, r, k, v, g, r_k, weight, bias):
    """y [N] = (the group norm of y, plus the bonus (sum of r k r_k) * v for the current token) * g, in place."""
    bonus = splat(dot(r, k, r_k, N))
    mean, rstd = mean_and_rstd(y, N, GROUP_NORM_EPS)
    for i in range(0, HEAD_BYTES, VECTOR):
        normed = fma((load(y + i) - splat(mean)) * splat(rstd), load(weight + i), load(bias + i))
        store(y + i, fma(bonus, load(v + i), normed) * load(g + i))
