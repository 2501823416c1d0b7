"""The recurrence of one head: decay, removal, insertion and readout of its 64 x 64 state.

All parameters are addresses of float32 [N], and of the state, float32 [N, N].
"""

import math

import numpy as np
from numba import njit

from cpu_kernels.abi import HEAD_SIZE
from cpu_kernels.elementwise import FLOAT, VECTOR, dot, exp, mean_and_rstd, sigmoid
from cpu_kernels.simd import fma, get_f32, load, splat, store, sum_lanes

N = HEAD_SIZE
HEAD_BYTES = N * FLOAT

_f = np.float32
DECAY_SCALE = _f(math.exp(-0.5))  # so that the decay has a lower bound: exp(-exp(-1/2)) = 0.545 <= w <= 1
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
def removal(m, S, kk):
    """m [N] = S kk: what the state holds for the removal key."""
    m0 = m1 = m2 = m3 = splat(_f(0))
    for j in range(N):
        s, c = S + j * HEAD_BYTES, splat(get_f32(kk + j * FLOAT))
        m0, m1 = fma(load(s), c, m0), fma(load(s + VECTOR), c, m1)
        m2, m3 = fma(load(s + 2 * VECTOR), c, m2), fma(load(s + 3 * VECTOR), c, m3)
    store_4(m, m0, m1, m2, m3)


@njit
def step(y, target, S, r, w, k, v, b, m, next_kk):
    """target = S diag(w) - m b^T + v k^T with m = S kk, b = kk * a;  y [N] = target r.  `target` may be S.

    S [N, N] is stored by key: a row holds what all values remember of one key, in four vectors, so that no sum over
    lanes is needed. m becomes target next_kk, to the bit as by `removal`: the next token need not read the state twice.
    """
    n0 = n1 = n2 = n3 = y0 = y1 = y2 = y3 = splat(_f(0))
    m0, m1, m2, m3 = load(m), load(m + VECTOR), load(m + 2 * VECTOR), load(m + 3 * VECTOR)
    v0, v1, v2, v3 = load(v), load(v + VECTOR), load(v + 2 * VECTOR), load(v + 3 * VECTOR)
    for j in range(N):
        s, out, column = S + j * HEAD_BYTES, target + j * HEAD_BYTES, j * FLOAT
        wj, bj = splat(get_f32(w + column)), splat(-get_f32(b + column))
        kj, rj = splat(get_f32(k + column)), splat(get_f32(r + column))
        s0 = fma(load(s), wj, fma(m0, bj, v0 * kj))
        s1 = fma(load(s + VECTOR), wj, fma(m1, bj, v1 * kj))
        s2 = fma(load(s + 2 * VECTOR), wj, fma(m2, bj, v2 * kj))
        s3 = fma(load(s + 3 * VECTOR), wj, fma(m3, bj, v3 * kj))
        store_4(out, s0, s1, s2, s3)
        c = splat(get_f32(next_kk + column))
        y0, y1, y2, y3 = fma(s0, rj, y0), fma(s1, rj, y1), fma(s2, rj, y2), fma(s3, rj, y3)
        n0, n1, n2, n3 = fma(s0, c, n0), fma(s1, c, n1), fma(s2, c, n2), fma(s3, c, n3)
    store_4(y, y0, y1, y2, y3)
    store_4(m, n0, n1, n2, n3)


@njit
def store_4(out, a, b, c, d):
    """out [N] = four vectors."""
    store(out, a)
    store(out + VECTOR, b)
    store(out + 2 * VECTOR, c)
    store(out + 3 * VECTOR, d)


@njit
def finish(y, r, k, v, g, r_k, weight, bias):
    """y [N] = (the group norm of y, plus the bonus (sum of r k r_k) * v for the current token) * g, in place."""
    bonus = splat(dot(r, k, r_k, N))
    mean, rstd = mean_and_rstd(y, N, GROUP_NORM_EPS)
    for i in range(0, HEAD_BYTES, VECTOR):
        normed = fma((load(y + i) - splat(mean)) * splat(rstd), load(weight + i), load(bias + i))
        store(y + i, fma(bonus, load(v + i), normed) * load(g + i))
