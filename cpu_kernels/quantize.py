"""Rounding weights to int4: the search for the scale of each group, see `rwkv_cli.files.quantization`.

Sixteen groups are worked on at a time, one in each lane of a vector: so no sum over lanes is needed, and the sums of a
group have the order of NumPy's, in eight accumulators.
"""

import numpy as np
from numba import njit

from cpu_kernels.abi import GROUP, LANES
from cpu_kernels.elementwise import FLOAT, VECTOR
from cpu_kernels.simd import (
    absolute,
    get_f32,
    load,
    max_lanes,
    maximum,
    minimum,
    put_f32,
    round_f32,
    round_to_bf16,
    splat,
    store,
    store_bf16,
    store_f32_as_i8,
    where_less,
)

OFFSET = 8  # of an integer as it is stored

_f = np.float32
_INFINITY = _f(np.inf)
_ACCUMULATORS = 8

_SAFE_STEP = _f(0.05)
_DOUBTFUL = _f(0.5 - 1e-5)
"""A quotient below 1 / _SAFE_STEP, as a product with a reciprocal, is off by less than 1e-5: it rounds to the same
integer as the true one, unless the two are on different sides of a half."""


@njit
def _transpose(out, w, stride):
    """out [64, 16] = the sixteen groups that are `stride` bytes apart."""
    for lane in range(LANES):
        for i in range(GROUP):
            put_f32(out + i * VECTOR + lane * FLOAT, get_f32(w + lane * stride + i * FLOAT))


@njit
def _extreme(groups):
    """[16], the first value of largest magnitude of each group."""
    found, top = splat(_f(0)), splat(_f(-1))
    for i in range(0, GROUP * VECTOR, VECTOR):
        value = load(groups + i)
        size = absolute(value)
        found, top = where_less(top, size, value, found), maximum(size, top)
    return found


@njit
def _or_infinity(a):
    """A divisor: lanes of zero become infinity, by which every number becomes zero."""
    return where_less(splat(_f(0)), absolute(a), a, splat(_INFINITY))


@njit
def _clipped(a):
    return minimum(maximum(a, splat(_f(-OFFSET))), splat(_f(OFFSET - 1)))


@njit
def _square_by_quotient(parts, step, divisor):
    """The squared error of sixteen values that are rounded with these steps."""
    part = load(parts)
    off = _clipped(round_f32(part / divisor)) * step - part
    return off * off


@njit
def _square_by_product(parts, step, reciprocal, worst):
    """The same with reciprocals; and the larger of `worst` and the distance to an integer before rounding."""
    part = load(parts)
    quotient = part * reciprocal
    whole = round_f32(quotient)
    off = _clipped(whole) * step - part
    return off * off, maximum(worst, absolute(quotient - whole))


@njit
def _error(parts, step):
    """[16], the squared error of each group: as if each value were divided by its step."""
    divisor = _or_infinity(step)
    reciprocal, size = splat(_f(1)) / divisor, absolute(step)
    zero, one = splat(_f(0)), splat(_f(1))
    worst = where_less(size, splat(_SAFE_STEP), where_less(zero, size, one, zero), zero)
    e0 = e1 = e2 = e3 = e4 = e5 = e6 = e7 = zero
    for i in range(parts, parts + GROUP * VECTOR, _ACCUMULATORS * VECTOR):
        s, worst = _square_by_product(i, step, reciprocal, worst)
        e0 = e0 + s
        s, worst = _square_by_product(i + VECTOR, step, reciprocal, worst)
        e1 = e1 + s
        s, worst = _square_by_product(i + 2 * VECTOR, step, reciprocal, worst)
        e2 = e2 + s
        s, worst = _square_by_product(i + 3 * VECTOR, step, reciprocal, worst)
        e3 = e3 + s
        s, worst = _square_by_product(i + 4 * VECTOR, step, reciprocal, worst)
        e4 = e4 + s
        s, worst = _square_by_product(i + 5 * VECTOR, step, reciprocal, worst)
        e5 = e5 + s
        s, worst = _square_by_product(i + 6 * VECTOR, step, reciprocal, worst)
        e6 = e6 + s
        s, worst = _square_by_product(i + 7 * VECTOR, step, reciprocal, worst)
        e7 = e7 + s
    if max_lanes(worst) < _DOUBTFUL:
        return ((e0 + e1) + (e2 + e3)) + ((e4 + e5) + (e6 + e7))
    return _exact_error(parts, step, divisor)


@njit
def _exact_error(parts, step, divisor):
    """The same by division, for any step."""
    e0 = e1 = e2 = e3 = e4 = e5 = e6 = e7 = splat(_f(0))
    for i in range(parts, parts + GROUP * VECTOR, _ACCUMULATORS * VECTOR):
        e0 = e0 + _square_by_quotient(i, step, divisor)
        e1 = e1 + _square_by_quotient(i + VECTOR, step, divisor)
        e2 = e2 + _square_by_quotient(i + 2 * VECTOR, step, divisor)
        e3 = e3 + _square_by_quotient(i + 3 * VECTOR, step, divisor)
        e4 = e4 + _square_by_quotient(i + 4 * VECTOR, step, divisor)
        e5 = e5 + _square_by_quotient(i + 5 * VECTOR, step, divisor)
        e6 = e6 + _square_by_quotient(i + 6 * VECTOR, step, divisor)
        e7 = e7 + _square_by_quotient(i + 7 * VECTOR, step, divisor)
    return ((e0 + e1) + (e2 + e3)) + ((e4 + e5) + (e6 + e7))


@njit
def _search(parts, factors, n_factors):
    """The best scales [16] of the groups at `parts` [64, 16], which become relative to their extremes."""
    extreme = _extreme(parts)
    divisor = _or_infinity(extreme)
    for i in range(parts, parts + GROUP * VECTOR, VECTOR):
        store(i, load(i) / divisor)
    best = splat(_f(0))
    least = _exact_error(parts, best, splat(_INFINITY))  # of zeros
    for i in range(n_factors):
        candidate = round_to_bf16(extreme * splat(get_f32(factors + i * FLOAT)))
        error = _error(parts, candidate / divisor)
        best, least = where_less(error, least, candidate, best), minimum(error, least)
    return best


def int4(q, scales, w, stride, n, factors, n_factors, scratch):
    """Round n groups, a multiple of sixteen, to integers from 0 to 15 with the scales that leave the least error.

    q: uint8 [n, 64]. scales: bfloat16 [n]. w: float32, the groups [64], `stride` bytes apart. factors: float32
    [n_factors], the scales to try, in parts of a group's extreme. scratch: float32 [65, 16]. An entry point, see
    `cpu_kernels.runtime.aot`.
    """
    found = scratch + GROUP * VECTOR
    for group in range(0, n, LANES):
        groups = w + group * stride
        _transpose(scratch, groups, stride)
        best = _search(scratch, factors, n_factors)
        store_bf16(scales + group * 2, best)
        store(found, _or_infinity(best))
        for lane in range(LANES):
            divisor = splat(get_f32(found + lane * FLOAT))
            for i in range(0, GROUP, LANES):
                rounded = _clipped(round_f32(load(groups + lane * stride + i * FLOAT) / divisor))
                store_f32_as_i8(q + (group + lane) * GROUP + i, rounded + splat(_f(OFFSET)))
