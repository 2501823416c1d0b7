"""The recurrence of one head against the reference's formulas, in float64."""

import math

import numpy as np
import pytest
from helpers.kernel_check import address, assert_same_bits
from numba import njit

from cpu_kernels import wkv7
from cpu_kernels.simd import stack_memory
from cpu_kernels.wkv7 import N
from rwkv_cli.engine.backends import reference

EPS = 2.0**-23
SUMS = 16 * EPS
"""Of the scale. Sums of 64 products in float32, added one after another: measured up to 4 EPS."""


@njit
def _decay(w, w0):
    wkv7.decay(w, w0)


@njit
def _value_residual(v, v_first, gate, v0):
    wkv7.value_residual(v, v_first, gate, v0)


@njit
def _keys(kk, a, k, k_k, k_a, a0):
    wkv7.keys(kk, a, k, k_k, k_a, a0)


_removed = stack_memory(N * 4)


@njit
def _step(y, S, r, w, k, v, kk, b):
    m = _removed(0)
    wkv7.removal(m, S, kk)
    wkv7.step(y, S, S, r, w, k, v, b, m, kk)


@njit
def _step_and_removal(y, target, S, r, w, k, v, kk, b, m, next_kk):
    wkv7.removal(m, S, kk)
    wkv7.step(y, target, S, r, w, k, v, b, m, next_kk)


@njit
def _removal(m, S, kk):
    wkv7.removal(m, S, kk)


@njit
def _finish(y, r, k, v, g, r_k, weight, bias):
    wkv7.finish(y, r, k, v, g, r_k, weight, bias)


def call(kernel, *arrays: np.ndarray) -> None:
    """Call a kernel with the addresses of float32 arrays."""
    assert all(array.dtype == np.float32 for array in arrays)
    kernel(*(address(array) for array in arrays))


def normal(seed: int, *shape: int) -> np.ndarray:
    """Random numbers as float32."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def wide(*arrays: np.ndarray) -> list[np.ndarray]:
    """Copies in float64."""
    return [array.astype(np.float64) for array in arrays]


def sigmoid(x: np.ndarray) -> np.ndarray:
    """In float64; at both ends exp overflows or vanishes, as it should."""
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x))


def assert_near(found: np.ndarray, expected: np.ndarray, error: float) -> None:
    """At most `error` of the largest magnitude."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=error * np.abs(expected).max())


@pytest.mark.parametrize("size", [0, 1, 10, 1e4])
def test_decay(size):
    w, w0 = normal(0, 2, N) * np.float32(size)
    w_, w0_ = wide(w, w0)
    call(_decay, w, w0)
    # The argument of exp is at most 0.61: an error of sigmoid, in parts of its result, is less of exp's. The sum
    # w0 + w is rounded as well, and the slope of sigmoid(z) is at most |z| / (1 + cosh(z)) < 0.4 of that error.
    np.testing.assert_allclose(w, np.exp(-math.exp(-0.5) * sigmoid(w0_ + w_)), rtol=4 * EPS, atol=0)
    assert w.max() <= 1
    assert w.min() >= np.float32(np.exp(-math.exp(-0.5)))


@pytest.mark.parametrize("size", [0, 1, 10, 1e4])
def test_value_residual(size):
    v, v_first, gate, v0 = normal(0, 4, N)
    gate, v0 = gate * np.float32(size), v0 * np.float32(size)
    v_, first, gate_, v0_ = wide(v, v_first, gate, v0)
    call(_value_residual, v, v_first, gate, v0)
    assert_near(v, v_ + (first - v_) * sigmoid(v0_ + gate_), 4 * EPS)


@pytest.mark.parametrize("size", [1e-10, 1e-3, 1, 1e15])
def test_keys(size):
    a, k, k_k, k_a, a0 = normal(0, 5, N)
    k = k * np.float32(size)
    kk = np.full(N, np.nan, np.float32)
    a_, k_, k_k_, k_a_, a0_ = wide(a, k, k_k, k_a, a0)
    call(_keys, kk, a, k, k_k, k_a, a0)
    rate = sigmoid(a0_ + a_)
    expected = k_ * k_k_ / np.linalg.norm(k_ * k_k_)
    assert_near(kk, expected, SUMS)
    assert_near(a, expected * rate, SUMS)
    assert_near(k, k_ * (1 + (rate - 1) * k_a_), 4 * EPS)


@pytest.mark.parametrize("which", ["k", "k_k"])
def test_a_key_without_a_length_removes_nothing(which):
    a, k, k_k, k_a, a0 = normal(0, 5, N)
    (k if which == "k" else k_k)[:] = 0
    kk = np.full(N, np.nan, np.float32)
    call(_keys, kk, a, k, k_k, k_a, a0)
    assert not kk.any()
    assert not a.any()
    assert np.isfinite(k).all()


def test_a_key_below_the_least_length_is_not_made_longer():
    a, k, k_k, k_a, a0 = normal(0, 5, N)
    k *= np.float32(1e-14)
    kk, expected = np.full(N, np.nan, np.float32), k * k_k / np.float32(reference.NORMALISE_FLOOR)
    call(_keys, kk, a, k, k_k, k_a, a0)
    assert_near(kk, expected, 4 * EPS)
    assert np.linalg.norm(kk) < 0.5


def head(seed: int) -> tuple[np.ndarray, ...]:
    """S, r, w, k, v, kk and a, in the ranges that they have in a model."""
    S, (r, k, v, kk) = normal(seed, N, N), normal(seed + 1, 4, N)
    w, a = np.random.default_rng(seed + 2).uniform(0.545, 1, (2, N)).astype(np.float32)
    return S, r, w, k, v, kk / np.linalg.norm(kk), a


def reference_step(S, r, w, k, v, kk, a) -> np.ndarray:
    """y, in the precision of the arguments; changes S."""
    return reference.wkv7(S[None], *(x[None] for x in (r, w, k, v, kk, a)))[0]


def step(y, S, *inputs) -> None:
    """Change S [value, key], which the kernel wants key by key."""
    by_key = S.T.copy()
    call(_step, y, by_key, *inputs)
    S[:] = by_key.T


def test_a_step():
    S, r, w, k, v, kk, a = head(0)
    inputs = [r, w, k, v, kk, kk * a]
    before, S_, y = [x.copy() for x in inputs], S.astype(np.float64), np.full(N, np.nan, np.float32)
    expected = reference_step(S_, *wide(r, w, k, v, kk, a))
    step(y, S, *inputs)
    assert_near(S, S_, SUMS)
    assert_near(y, expected, SUMS)
    np.testing.assert_array_equal(inputs, before)


@pytest.mark.parametrize("part", ["decay", "removal", "insertion"])
def test_a_part_of_a_step_alone(part):
    """With whole numbers, so that nothing is rounded: the roles of rows and columns, to the bit."""
    rng = np.random.default_rng(0)
    S = rng.integers(-9, 10, (N, N)).astype(np.float32)
    r, w, k, v, kk, b = rng.integers(-9, 10, (6, N)).astype(np.float32)
    w = w if part == "decay" else np.ones_like(w)
    kk = kk if part == "removal" else np.zeros_like(kk)
    k = k if part == "insertion" else np.zeros_like(k)
    expected = S * w - np.outer(S @ kk, b) + np.outer(v, k)
    y = np.zeros(N, np.float32)
    step(y, S, r, w, k, v, kk, b)
    np.testing.assert_array_equal(S, expected)
    np.testing.assert_array_equal(y, expected @ r)


def test_a_step_and_the_next_removal_are_those_of_two_calls_to_the_bit():
    S, r, w, k, v, kk, a = head(0)
    next_kk, expected_S = normal(9, N), S.copy()
    target, (y, m, expected_y, expected_m) = np.zeros_like(S), np.zeros((4, N), np.float32)
    call(_step, expected_y, expected_S, r, w, k, v, kk, kk * a)
    call(_removal, expected_m, expected_S, next_kk)
    before = S.copy()
    call(_step_and_removal, y, target, S, r, w, k, v, kk, kk * a, m, next_kk)
    for found, expected in ((y, expected_y), (target, expected_S), (m, expected_m), (S, before)):
        assert_same_bits(found, expected)


def test_many_steps_do_not_drift():
    S = np.zeros((N, N), np.float32)
    S_ = S.astype(np.float64)
    y = np.zeros(N, np.float32)
    for seed in range(300):
        _, r, w, k, v, kk, a = head(seed)
        expected = reference_step(S_, *wide(r, w, k, v, kk, a))
        step(y, S, r, w, k, v, kk, kk * a)
    # Each step forgets some of the state and with it of the errors, which add up over a few steps only.
    assert_near(S, S_, 2 * SUMS)
    assert_near(y, expected, 2 * SUMS)


@pytest.mark.parametrize("size", [0, 1e-3, 1, 1e3])
def test_finish(size):
    y, r, k, v, g, r_k, weight, bias = normal(0, 8, N)
    y = y * np.float32(size)
    y_, r_, k_, v_, g_, r_k_, weight_, bias_ = wide(y, r, k, v, g, r_k, weight, bias)
    normed = reference.layer_norm(y_, weight_, bias_, reference.GROUP_NORM_EPS)
    expected = (normed + (r_ * k_ * r_k_).sum() * v_) * g_
    call(_finish, y, r, k, v, g, r_k, weight, bias)
    assert_near(y, expected, SUMS)


def test_the_bonus_is_of_the_current_token_and_the_gate_of_all():
    """No output of the state and no norm's bias: what is left is whole numbers."""
    rng = np.random.default_rng(0)
    r, k, v, g, r_k = rng.integers(-9, 10, (5, N)).astype(np.float32)
    y, zero = np.zeros((2, N), np.float32)
    call(_finish, y, r, k, v, g, r_k, normal(0, N), zero)
    np.testing.assert_array_equal(y, (r * k * r_k).sum() * v * g)
