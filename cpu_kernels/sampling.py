"""The choice of the next token from the logits, by the rules of `engine.sampling.Sampler`; each of some texts' own.

A thread chooses a token alone, so that the sums have one order. The names that all functions share:

    c          CHOICE: what is asked; the result goes there too
    x          the address of float32 [padded]: the logits, with penalties, bias, bans and masks; then minus infinity
    gaps       of float32 [n, padded]: the logits of the candidates less the highest one, by ascending id
    ids        of int32 [n]: the candidates; 0 if they are all tokens
"""

from __future__ import annotations

import numpy as np
from numba import njit

from cpu_kernels.abi import CHOICE, LANES, N_SCRATCH, NOT_A_NUMBER, NOTHING_LEFT, SAMPLING
from cpu_kernels.elementwise import FLOAT, VECTOR, exp
from cpu_kernels.records import table
from cpu_kernels.simd import (
    get_f32,
    get_f64,
    get_i32,
    get_i64,
    load,
    max_lanes,
    maximum,
    put_f32,
    put_i32,
    splat,
    store,
    sum_lanes,
    where_at_least,
)
from cpu_kernels.work_queue import SHARES, team_loop

_f = np.float32
_LOWEST = _f(-3.4028235e38)  # tokens below it, at minus infinity, are never chosen
_INFINITY = _f(np.inf)

DEPTHS = 5
DEPTH = _f(3)
"""Tokens that top-p, top-k and min-p leave are looked for at most so far below the highest logit, then twice as far,
and so on; where five times that is not enough, everywhere."""

FEW = 4
"""At most one token in so many is looked for; of more than that, it is faster to take all."""

STEPS = 13
"""Steps of a bisection, which find the exponent and some bits; then only the candidates in doubt are looked at."""

_choices_at, _samplings_at = table(CHOICE), table(SAMPLING)


@njit
def choose(s: SAMPLING, c: CHOICE, thread):
    """Choose one token."""
    x = s.scratch + thread * N_SCRATCH * s.padded * FLOAT
    c.token = NOT_A_NUMBER
    if not _copy(s, c, x):
        return
    c.total = _total(x, c.peak, s.padded)
    peak = c.peak
    if c.n_changes or c.mask:
        _change(c, x)
        if c.mask:
            _apply_mask(c.mask, x, s.V)
        peak = _peak(x, s.padded)
    if not (peak >= _LOWEST and peak < _INFINITY):
        c.token = NOTHING_LEFT
    elif c.is_greedy:
        c.token = _first(x, peak)
    else:
        c.token = _sample(s, c, x, peak)


@njit
def _sample(s: SAMPLING, c: CHOICE, x, peak):
    """A token by chance."""
    size = s.padded * FLOAT
    gaps, ids, weights = x + size, x + 2 * size, x + 3 * size
    if c.top_p == 1 and c.top_k == 0 and c.log_min_p == -np.inf:
        n = _gather_all(gaps, x, peak, s.padded)
        return _draw(c, gaps, 0, weights, n, _LOWEST, n)
    total = c.total
    if c.top_p < 1 and (c.n_changes or c.mask):
        total = _total(x, peak, s.padded)
    n, ids = _gather(c, gaps, ids, weights, x, peak, total, s.padded)
    cutoff = _cutoff(c, gaps, weights, x, n, total)  # x is spare by now
    return _draw(c, gaps, ids, weights, n, cutoff, _ties(c, gaps, n, cutoff))


@njit
def _copy(s: SAMPLING, c: CHOICE, x):
    """Copy the logits, and set `c.peak`. Whether they are numbers, of which the highest one is finite."""
    whole = s.V // LANES * VECTOR
    peak, total = splat(-_INFINITY), splat(_f(0))
    for i in range(0, whole, VECTOR):
        v = load(c.logits + i)
        store(x + i, v)
        peak, total = maximum(peak, v), total + v
    highest, check = max_lanes(peak), sum_lanes(total)  # which is NaN if any logit is
    for i in range(s.V // LANES * LANES, s.V):
        v = get_f32(c.logits + i * FLOAT)
        put_f32(x + i * FLOAT, v)
        highest, check = max(highest, v), check + v
    for i in range(s.V, s.padded):
        put_f32(x + i * FLOAT, -_INFINITY)
    c.peak = highest
    return check == check and highest >= _LOWEST and highest < _INFINITY


@njit
def _peak(x, padded):
    """The highest of the logits, as they are after the changes."""
    peak = splat(-_INFINITY)
    for i in range(0, padded * FLOAT, VECTOR):
        peak = maximum(peak, load(x + i))
    return max_lanes(peak)


@njit
def _total(x, peak, padded):
    """The sum of exp(x - peak), in four sums of vectors."""
    top = splat(_f(peak))
    t0 = t1 = t2 = t3 = splat(_f(0))
    end = padded * FLOAT
    for i in range(0, end - 3 * VECTOR, 4 * VECTOR):
        t0, t1 = t0 + exp(load(x + i) - top), t1 + exp(load(x + i + VECTOR) - top)
        t2, t3 = t2 + exp(load(x + i + 2 * VECTOR) - top), t3 + exp(load(x + i + 3 * VECTOR) - top)
    for i in range(end // (4 * VECTOR) * 4 * VECTOR, end, VECTOR):
        t0 = t0 + exp(load(x + i) - top)
    return np.float64(sum_lanes((t0 + t1) + (t2 + t3)))


@njit
def _change(c: CHOICE, x):
    """Add to the logits of some tokens."""
    for i in range(c.n_changes):
        logit = x + get_i64(c.changed + 8 * i) * FLOAT
        put_f32(logit, _f(np.float64(get_f32(logit)) + get_f64(c.amounts + 8 * i)))


@njit
def _apply_mask(mask, x, V):
    """Take away the tokens whose bits are 0."""
    for word in range((V + 31) // 32):
        bits = np.uint32(get_i32(mask + word * 4))
        if bits == np.uint32(0xFFFFFFFF):
            continue
        for i in range(32 * word, min(32 * word + 32, V)):
            if not bits >> np.uint32(i % 32) & np.uint32(1):
                put_f32(x + i * FLOAT, -_INFINITY)


@njit
def _first(x, peak):
    """The first token with this logit."""
    i = 0
    while max_lanes(load(x + i * FLOAT)) < peak:
        i += LANES
    while get_f32(x + i * FLOAT) != peak:
        i += 1
    return i


@njit
def _gather_all(gaps, x, peak, padded):
    """Make all tokens candidates; returns how many."""
    top = splat(_f(peak))
    for i in range(0, padded * FLOAT, VECTOR):
        store(gaps + i, load(x + i) - top)
    return padded


@njit
def _gather(c: CHOICE, gaps, ids, weights, x, peak, total, padded):
    """Make those tokens candidates among which are surely all that the cuts leave: how many, and `ids`, 0 if all are.

    `weights` [n] are set to exp(gap) if top-p is to cut.
    """
    for i in range(1, DEPTHS + 1):
        depth = DEPTH * _f(i)
        floor = _f(peak) - depth
        if _sum_above(x, padded, floor, False) > padded // FEW:
            break
        n = _gather_above(gaps, ids, x, peak, floor, padded)
        reached = _weigh(gaps, weights, n) if c.top_p < 1 else np.float64(0)
        if 0 < c.top_k <= n or -depth < c.log_min_p or (c.top_p < 1 and reached >= c.top_p * total):
            return n, ids
    n = _gather_all(gaps, x, peak, padded)
    if c.top_p < 1:
        _weigh(gaps, weights, n)
    return n, 0


@njit
def _weigh(gaps, weights, n):
    """Set the weights exp(gap) of the candidates; returns their sum."""
    total = splat(_f(0))
    for i in range(0, n * FLOAT, VECTOR):
        weight = exp(load(gaps + i))
        store(weights + i, weight)
        total = total + weight
    return np.float64(sum_lanes(total))


@njit
def _gather_above(gaps, ids, x, peak, floor, padded):
    """Make the tokens whose logits are not below `floor` candidates; returns how many.

    The gaps are filled up to a whole vector with minus infinity.
    """
    n = 0
    for i in range(0, padded, LANES):
        if max_lanes(load(x + i * FLOAT)) >= floor:
            for j in range(i, i + LANES):
                v = get_f32(x + j * FLOAT)
                if v >= floor:
                    put_f32(gaps + n * FLOAT, v - _f(peak))
                    put_i32(ids + n * FLOAT, np.int32(j))
                    n += 1
    for i in range(n, (n + LANES - 1) // LANES * LANES):
        put_f32(gaps + i * FLOAT, -_INFINITY)
    return n


@njit
def _sum_above(values, n, cutoff, is_weight):
    """Over the values that are not below the cutoff: their sum if they are weights, or else their number."""
    bound, total = splat(_f(cutoff)), splat(_f(0))
    for i in range(0, n * FLOAT, VECTOR):
        value = load(values + i)
        total = total + where_at_least(value, bound, value if is_weight else splat(_f(1)))
    return np.float64(sum_lanes(total))


@njit
def _least_cutoff(values, spare, n, wanted, is_weight):
    """The highest cutoff that leaves at least `wanted`, see `_sum_above`; by bisection, to the last bit.

    `values` are gaps or weights. `spare` [n] is for those that are still in doubt after some steps.
    """
    low, high = np.int64(0), _bits(1) if is_weight else _bits(-_LOWEST)
    if _sum_above(values, n, _bound(low, is_weight), is_weight) >= wanted:
        return _bound(low, is_weight)
    certain, step = np.float64(0), 0
    while high - low > 1:
        if step == STEPS:
            certain = _sum_above(values, n, _bound(low, is_weight), is_weight)
            n = _in_doubt(spare, values, n, _bound(low, is_weight), _bound(high, is_weight))
            values = spare
        step += 1
        middle = low + (high - low) // 2
        if certain + _sum_above(values, n, _bound(middle, is_weight), is_weight) >= wanted:
            high = middle
        else:
            low = middle
    return _bound(high, is_weight)


@njit
def _bits(value):
    """The bits of a float, as an integer: the order of floats that are not negative is that of their bits."""
    return np.int64(_f(value).view(np.int32))


@njit
def _bound(bits, is_weight):
    """A cutoff, the lower the more bits: of weights from 1 on, of gaps from 0 on."""
    if is_weight:
        return np.int32(_bits(1) - bits).view(np.float32)
    return -np.int32(bits).view(np.float32)


@njit
def _in_doubt(spare, values, n, low, high):
    """Copy the values from the cutoff `high` to below `low`; returns how many."""
    above, below, one = splat(_f(high)), splat(_f(low)), splat(_f(1))
    k = 0
    for i in range(0, n, LANES):
        some = load(values + i * FLOAT)
        if sum_lanes(where_at_least(some, above, one) - where_at_least(some, below, one)) > 0:
            for j in range(i, min(i + LANES, n)):
                value = get_f32(values + j * FLOAT)
                if value < low and value >= high:
                    put_f32(spare + k * FLOAT, value)
                    k += 1
    for i in range(k, (k + LANES - 1) // LANES * LANES):
        put_f32(spare + i * FLOAT, -_INFINITY)
    return k


@njit
def _lowest_gap(gaps, weights, n, cutoff):
    """The lowest gap of the candidates whose weights are not below the cutoff."""
    bound, zero, deepest = splat(_f(cutoff)), splat(_f(0)), splat(_f(0))
    for i in range(0, n * FLOAT, VECTOR):
        deepest = maximum(deepest, where_at_least(load(weights + i), bound, zero - load(gaps + i)))
    return -max_lanes(deepest)


@njit
def _cutoff(c: CHOICE, gaps, weights, spare, n, total):
    """The gap below which the cuts leave no candidate."""
    cutoff = _LOWEST
    if c.top_p < 1:
        cutoff = _lowest_gap(gaps, weights, n, _least_cutoff(weights, spare, n, c.top_p * total, True))
    if c.top_k:
        cutoff = max(cutoff, _least_cutoff(gaps, spare, n, np.float64(min(c.top_k, n)), False))
    return max(cutoff, max(_f(c.log_min_p), _LOWEST))


@njit
def _ties(c: CHOICE, gaps, n, cutoff):
    """How many candidates at the cutoff itself stay: top-k counts, and keeps the lower ids of those as likely."""
    if not c.top_k or _sum_above(gaps, n, cutoff, False) <= c.top_k:
        return n
    above = 0
    for i in range(n):
        above += get_f32(gaps + i * FLOAT) > cutoff
    return c.top_k - above


@njit
def _draw(c: CHOICE, gaps, ids, weights, n, cutoff, ties):
    """One of the candidates that are left, by the inverse of the distribution function in the order of their ids."""
    scale, bound, total = splat(_f(c.temperature)), splat(cutoff), np.float64(0)
    for i in range(0, n * FLOAT, VECTOR):
        gap = load(gaps + i)
        store(weights + i, where_at_least(gap, bound, exp(gap / scale)))
    _drop_ties(gaps, weights, n, cutoff, ties)
    for i in range(0, n * FLOAT, VECTOR):
        total += np.float64(sum_lanes(load(weights + i)))
    place, found = c.random * total, 0
    for i in range(0, n, LANES):
        part = np.float64(sum_lanes(load(weights + i * FLOAT)))
        if place < part:
            found = _within(weights, i, place)
            break
        place -= part
        if part > 0:
            found = _within(weights, i, part)  # in case that rounding carries `place` beyond the end
    return np.int64(get_i32(ids + found * FLOAT)) if ids else found


@njit
def _drop_ties(gaps, weights, n, cutoff, ties):
    """Take away the candidates at the cutoff but for the first `ties`."""
    if ties >= n:
        return
    for i in range(n):
        if get_f32(gaps + i * FLOAT) == cutoff:
            ties -= 1
            if ties < 0:
                put_f32(weights + i * FLOAT, _f(0))


@njit
def _within(weights, i, place):
    """The one of sixteen candidates whose interval contains `place`; the last one that has any weight if none does."""
    found = i
    for j in range(i, i + LANES):
        weight = np.float64(get_f32(weights + j * FLOAT))
        if weight > 0:
            found = j
            if place < weight:
                break
        place -= weight
    return found


@njit
def _n_items(_phase, s: SAMPLING):
    return s.n


@njit
def _do_item(_phase, item, thread, s: SAMPLING):
    choose(s, _choices_at(s.choices)[item], thread)


_loop = team_loop(_n_items, _do_item)


def passes(samplings, team, job, thread):
    """Choose the tokens that a record SAMPLING describes, one at least; a kernel for `thread_team.Team.run`.

    samplings: the address of SAMPLING [1]. An entry point, see `cpu_kernels.runtime.aot`.
    """
    s = _samplings_at(samplings)[0]
    _loop(1, SHARES * s.threads, team, job, thread, s)
