"""Norms, token shift, activation functions and rounding to int8, against NumPy in float64 and plain loops."""

import numpy as np
import pytest
from helpers.kernel_check import address, floats, lanewise
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numba import njit

from cpu_kernels import elementwise as el
from cpu_kernels.elementwise import GROUP

EPS = 2.0**-23
HUGE = np.finfo(np.float32).max
LEAST_SCALED = np.float32(127) / HUGE
"""Below it, the reciprocal of a group's scale overflows."""

_exp, _sigmoid, _tanh = (lanewise(function) for function in (el.exp, el.sigmoid, el.tanh))


@njit
def _layer_norm(out, x, weight, bias, n):
    el.layer_norm(out, x, weight, bias, n)


@njit
def _token_shift(out, u, last, mix, n):
    el.token_shift(out, u, last, mix, n)


@njit
def _quantize(xq, scale, sums, x, n):
    el.quantize(xq, scale, sums, x, n)


@njit
def _copy_add_square(out, added, squared, x, n):
    el.copy(out, x, n)
    el.add(added, x, n)
    el.square_relu(squared, n)


@njit
def _dot(a, b, c, n):
    return el.dot(a, b, c, n)


def normal(seed: int, *shape: int) -> np.ndarray:
    """Random numbers as float32."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# --- activation functions -------------------------------------------------------------------------------------------


def test_exp_is_right_to_two_units_in_the_last_place():
    x = np.concatenate(
        [np.linspace(-87, 88, 200_001), np.linspace(-1, 1, 20_001), [0.0, -0.0, 1e-30, -1e-30, 1e-45]]
    ).astype(np.float32)
    exact = np.exp(x.astype(np.float64))
    units = np.abs(_exp(x) - exact) / np.spacing(exact.astype(np.float32)).astype(np.float64)
    assert units.max() <= 2


def test_exp_of_zero_is_one():
    assert _exp(floats(0, -0.0)).tolist() == [1, 1]


def test_exp_stops_where_floats_end():
    x = floats(-87, -87.01, -104, -1e30, -np.inf)
    np.testing.assert_array_equal(_exp(x), _exp(x[:1]).repeat(5))
    np.testing.assert_array_equal(_exp(-x + 1)[1:], _exp(floats(88)).repeat(4))
    assert _exp(x[:1]) > np.finfo(np.float32).tiny  # normal, so that all its bits count


def test_sigmoid_and_tanh():
    x = np.linspace(-30, 30, 100_001).astype(np.float32)
    wide = x.astype(np.float64)
    # One unit of exp, and half a unit each of a sum and a quotient: measured 1.2.
    np.testing.assert_allclose(_sigmoid(x), 1 / (1 + np.exp(-wide)), rtol=2 * EPS, atol=0)
    # The same of 2 / (1 + e**2x), which is subtracted from 1: an error in parts of 1, not of the result; measured 1.5.
    np.testing.assert_allclose(_tanh(x), np.tanh(wide), rtol=0, atol=2 * EPS)


@pytest.mark.parametrize("x", [50, 87, 88, 89, 1e4, 1e30, HUGE, np.inf])
def test_sigmoid_and_tanh_saturate(x):
    np.testing.assert_array_equal(_sigmoid(floats(x)), [1])
    np.testing.assert_allclose(_sigmoid(floats(-x)), [0], atol=2e-22)  # e**-50
    np.testing.assert_array_equal(_tanh(floats(x, -x)), [1, -1])


# --- norms and mixes ------------------------------------------------------------------------------------------------


def layer_norm(x, weight, bias) -> np.ndarray:
    """In float64."""
    x = x.astype(np.float64)
    return (x - x.mean()) / np.sqrt(x.var() + 1e-5) * weight + bias


def run_layer_norm(x, weight, bias, in_place=False) -> np.ndarray:
    """The kernel's result."""
    x = np.array(x)
    out = x if in_place else np.full_like(x, np.nan)
    _layer_norm(address(out), address(x), address(weight), address(bias), len(x))
    return out


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("n", [64, 192, 4096])
@pytest.mark.parametrize(("mean", "size"), [(0, 1), (0, 1e-3), (0, 1e4), (30, 1), (-1000, 10)])
def test_layer_norm(n, mean, size, in_place):
    x, weight, bias = normal(0, 3, n)
    x = x * np.float32(size) + np.float32(mean)
    # x minus its mean loses the bits that both share; the rest is a few roundings, of numbers up to about 16.
    lost = EPS * abs(mean) / size
    found = run_layer_norm(x, weight, bias, in_place)
    np.testing.assert_allclose(found, layer_norm(x, weight, bias), rtol=0, atol=16 * (8 * EPS + lost))


@pytest.mark.parametrize("value", [0, 1, -3, 1024])
def test_the_norm_of_equal_numbers_is_the_bias(value):
    weight, bias = normal(0, 2, 64)
    np.testing.assert_array_equal(run_layer_norm(np.full(64, value, np.float32), weight, bias), bias)


def test_token_shift():
    u, last, mix = normal(0, 3, 192)
    mix[:64], mix[64:128] = 0, 1
    out = np.full_like(u, np.nan)
    _token_shift(*(address(x) for x in (out, u, last, mix)), len(u))
    np.testing.assert_array_equal(out[:64], u[:64])
    # Two roundings, of numbers up to about 8.
    wide = u.astype(np.float64)
    np.testing.assert_allclose(out, wide + (last - wide) * mix, rtol=0, atol=8 * EPS)


def test_copy_add_and_square_relu():
    x, added, squared = normal(0, 3, 192)
    out, sums, squares = np.full_like(x, np.nan), added.copy(), squared.copy()
    squares[:3] = floats(-0.0, 0, -5)
    expected = np.square(np.maximum(squares, np.float32(0)))
    _copy_add_square(*(address(a) for a in (out, sums, squares, x)), len(x))
    np.testing.assert_array_equal(out, x)
    np.testing.assert_array_equal(sums, added + x)
    np.testing.assert_array_equal(squares, expected)


def test_the_dot_product_of_three():
    a, b, c = np.random.default_rng(0).integers(-9, 10, (3, 128)).astype(np.float32)  # whole: sums are exact
    assert _dot(address(a), address(b), address(c), 128) == (a * b * c).sum()


# --- rounding to int8 -----------------------------------------------------------------------------------------------


def quantize_activation(group: np.ndarray) -> tuple[list[int], np.float32, int]:
    """One group of an activation: its integers, the scale and the sum of the integers."""
    largest = np.abs(group).max()
    if largest == 0:
        return [0] * len(group), np.float32(0), 0
    inverse = np.float32(127) / largest
    integers = [round(float(x * inverse)) for x in group]  # round() takes ties to even
    return integers, largest / np.float32(127), sum(integers)


def run_quantize(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The kernel's bytes [n], scales and sums [n / 64]."""
    groups = len(x) // GROUP
    xq, scale = np.full(len(x), 99, np.int8), np.full(groups, np.nan, np.float32)
    sums = np.full(groups, 99, np.int32)
    _quantize(address(xq), address(scale), address(sums), address(x), len(x))
    return xq, scale, sums


def assert_as_naive(x: np.ndarray) -> None:
    """To the bit."""
    found = run_quantize(x)
    groups = [quantize_activation(group) for group in x.reshape(-1, GROUP)]
    for part, expected in zip(found, zip(*groups, strict=True), strict=True):
        np.testing.assert_array_equal(part, np.ravel(expected))


any_group = st.one_of(
    arrays(np.float32, GROUP, elements=st.floats(width=32, allow_nan=False, allow_infinity=False)),
    arrays(np.float32, GROUP, elements=st.floats(-100, 100, width=32)),
    arrays(np.float32, GROUP, elements=st.integers(-127, 127)),
)


@given(any_group)
def test_the_naive_loop_gives_the_same(group):
    assume(not 0 < np.abs(group).max() <= LEAST_SCALED)
    assert_as_naive(group)


@given(any_group)
def test_the_error_of_any_group_is_at_most_half_a_step(group):
    assume(not 0 < np.abs(group).max() <= LEAST_SCALED)
    xq, scale, sums = run_quantize(group)
    assert np.abs(xq.astype(int)).max() <= 127
    assert sums[0] == xq.sum(dtype=int)
    step = scale.astype(np.float64)
    # The reciprocal, the product and the scale are rounded; a scale below 1e-38 has fewer bits.
    slack = 127 * (3 * EPS * step + np.finfo(np.float32).smallest_subnormal)
    assert (np.abs(group - xq * step) <= step / 2 + slack).all()


def test_ties_go_to_even():
    x = np.zeros(GROUP, np.float32)
    x[:6] = 127, 0.5, 1.5, -0.5, -2.5, 126.5
    xq, scale, sums = run_quantize(x)
    assert xq[:6].tolist() == [127, 0, 2, 0, -2, 126]
    assert scale[0] == 1
    assert sums[0] == 253


def test_groups_are_rounded_on_their_own():
    x = normal(0, 4 * GROUP) * np.repeat(floats(1e-20, 0, 1e20, 1), GROUP)
    assert_as_naive(x)
    for i in range(4):
        for whole, part in zip(run_quantize(x), run_quantize(x[i * GROUP : (i + 1) * GROUP]), strict=True):
            np.testing.assert_array_equal(whole.reshape(4, -1)[i], part)


def test_a_group_of_zeros_has_no_scale():
    xq, scale, sums = run_quantize(np.zeros(2 * GROUP, np.float32))
    assert not xq.any()
    assert not scale.any()
    assert not sums.any()


@pytest.mark.parametrize("place", [0, 15, 16, 63])
@pytest.mark.parametrize("outlier", [1000, -1000])
def test_an_outlier_takes_the_whole_scale(place, outlier):
    x = np.full(GROUP, 0.1, np.float32)
    x[place] = outlier
    xq, scale, sums = run_quantize(x)
    assert xq[place] == sums[0] == np.sign(outlier) * 127
    assert np.count_nonzero(xq) == 1
    assert scale[0] == np.float32(1000) / np.float32(127)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_sums(sign):
    xq, scale, sums = run_quantize(np.full(GROUP, sign * 3.3, np.float32))
    assert (xq == sign * 127).all()
    assert sums[0] == sign * 127 * GROUP
    assert scale[0] == np.float32(3.3) / np.float32(127)


@pytest.mark.parametrize("largest", [LEAST_SCALED * 2, 1e-30, 1e-10, 1, 1e10, 1e38, HUGE])
def test_groups_of_any_magnitude(largest):
    x = np.random.default_rng(0).uniform(-1, 1, GROUP).astype(np.float32) * np.float32(largest)
    x[5] = -largest
    assert_as_naive(x)
    assert run_quantize(x)[0][5] == -127


@pytest.mark.parametrize("largest", [1e-45, 1e-40, LEAST_SCALED / 2])
def test_groups_of_next_to_nothing_are_no_more_than_that(largest):
    """Too small for a reciprocal: whatever the bytes are, they say so themselves and their sum is right."""
    x = np.random.default_rng(0).uniform(-1, 1, GROUP).astype(np.float32) * np.float32(largest)
    x[5], x[6] = largest, 0
    xq, scale, sums = run_quantize(x)
    assert (np.abs(xq * scale - x) <= np.abs(x).max()).all()
    assert sums[0] == xq.sum(dtype=int)
