"""Vectors against NumPy: what is loaded, stored, converted and computed, to the bit."""

import operator
from fractions import Fraction

import numpy as np
import pytest
from helpers.kernel_check import address, assert_same_bits, floats, lanewise, loading, misaligned
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numba import njit

from cpu_kernels import simd
from cpu_kernels.simd import F32, LANES, intrinsic_of

LARGEST = np.finfo(np.float32).max
SUBNORMAL = np.finfo(np.float32).smallest_subnormal

_binary = {
    operator.add: lanewise(njit(lambda a, b: a + b), 2),
    operator.sub: lanewise(njit(lambda a, b: a - b), 2),
    operator.mul: lanewise(njit(lambda a, b: a * b), 2),
    operator.truediv: lanewise(njit(lambda a, b: a / b), 2),
}
_fma = lanewise(simd.fma, 3)
_maximum, _minimum = lanewise(simd.maximum, 2), lanewise(simd.minimum, 2)
_absolute, _round = lanewise(simd.absolute), lanewise(simd.round_f32)
_scale_by_power = lanewise(simd.scale_by_power, 2)

any_floats = arrays(np.float32, LANES, elements=st.floats(width=32, allow_nan=False))


def halves() -> np.ndarray:
    """All finite half floats, in the order of their bits."""
    bits = np.arange(2**16, dtype=np.uint16)
    return bits[np.isfinite(bits.view(np.float16))].view(np.float16)


# --- loads and conversions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [np.copy, misaligned], ids=["aligned", "misaligned"])
class TestLoads:
    """Each at any address: a model file may have a header of any length."""

    def test_f32(self, place):
        x = np.arange(64, dtype=np.uint32).view(np.float32) + np.float32(0.1)
        assert_same_bits(loading(simd.load, 4)(place(x)), x)

    def test_every_bf16(self, place):
        bits = np.arange(2**16, dtype=np.uint16)
        expected = (bits.astype(np.uint32) << 16).view(np.float32)
        assert_same_bits(loading(simd.load_bf16, 2)(place(bits)), expected)

    def test_every_finite_f16(self, place):
        assert_same_bits(loading(simd.load_f16, 2)(place(halves())), halves().astype(np.float32))

    def test_every_i8(self, place):
        x = np.arange(-128, 128).astype(np.int8)
        assert_same_bits(loading(simd.load_i8_as_f32, 1)(place(x)), x.astype(np.float32))

    def test_both_halves_of_every_byte(self, place):
        x = np.arange(256).astype(np.uint8)
        low, high = loading(simd.load_low_halves_as_f32, 1), loading(simd.load_high_halves_as_f32, 1)
        assert_same_bits(low(place(x)), (x & 15).astype(np.float32))
        assert_same_bits(high(place(x)), (x >> 4).astype(np.float32))


def test_every_finite_f16_by_shifting_its_bits(monkeypatch):
    """As on a CPU that has no instruction for it."""
    monkeypatch.setattr(simd, "HAS_HALF_FLOATS", False)
    load = loading(simd.load_f16, 2)
    assert_same_bits(load(halves()), halves().astype(np.float32))
    (text,) = load.kernel.inspect_llvm().values()
    assert "half" not in text


@njit
def _put_i8_of(out, x, n):
    for i in range(0, n, LANES):
        simd.store_f32_as_i8(out + i, simd.load(x + 4 * i))


def test_floats_are_stored_as_the_nearest_bytes():
    x = np.concatenate([np.arange(-127, 127.25, 0.25), np.nextafter(floats(0.5, -0.5, 126.5), 200)])
    x = np.pad(x, (0, -len(x) % LANES)).astype(np.float32)
    out = np.full(len(x) + 2, 99, np.int8)
    _put_i8_of(address(out) + 1, address(x), len(x))
    np.testing.assert_array_equal(out[1:-1], np.rint(x))  # NumPy's ties go to even as well
    assert out[0] == out[-1] == 99


# --- one number -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("get", "dtype", "values"),
    [
        (simd.get_f32, np.float32, [-0.0, 1.5, LARGEST, SUBNORMAL]),
        (simd.get_i32, np.int32, [-(2**31), -1, 0, 2**31 - 1]),
        (simd.get_i64, np.int64, [-(2**63), -1, 0, 2**63 - 1]),
        (simd.get_u8, np.uint8, [0, 127, 128, 255]),
        (simd.get_i8, np.int8, [-128, -1, 0, 127]),
    ],
)
def test_a_number_is_read(get, dtype, values):
    read, stored = njit(lambda place: get(place)), np.array(values, dtype)
    found = [read(address(stored) + i * stored.itemsize) for i in range(len(values))]
    np.testing.assert_array_equal(np.array(found, dtype), stored)
    assert [float(x) for x in found] == [float(x) for x in stored]  # nothing was cut off by `dtype`


def test_a_bf16_is_read():
    read, stored = njit(lambda place: simd.get_bf16(place)), np.array([0x3F80, 0xC0A0, 0x0001], np.uint16)
    found = [read(address(stored) + 2 * i) for i in range(3)]
    assert found == [1.0, -5.0, 2.0**-133]


@njit
def _put(floats_, integers, bytes_, x, i, b):
    simd.put_f32(floats_ + 4, x)
    simd.put_i32(integers + 4, i)
    simd.put_u8(bytes_ + 1, b)


def test_a_number_is_written_and_nothing_beside_it():
    numbers, integers, bytes_ = floats(7, 7, 7), np.full(3, 7, np.int32), np.full(3, 7, np.uint8)
    _put(address(numbers), address(integers), address(bytes_), np.float32(-1.5), np.int32(-(2**31)), 0x1FE)
    assert numbers.tolist() == [7, -1.5, 7]
    assert integers.tolist() == [7, -(2**31), 7]
    assert bytes_.tolist() == [7, 0xFE, 7]


# --- arithmetic -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compute", _binary)
@given(a=any_floats, b=any_floats)
def test_operators(compute, a, b):
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(_binary[compute](a, b), compute(a, b))


def test_fma_rounds_once():
    a = np.float32(1 + 2.0**-23)
    assert _fma([a], [a], [-np.float32(1 + 2.0**-22)]).tolist() == [2.0**-46]


_emulated_fma = lanewise(intrinsic_of(F32, F32, F32, F32)(simd._emulated_fma), 3)


def fma_of(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a * b + c, rounded once from fractions: the definition."""

    def one(a, b, c):
        exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
        near = np.float32(float(exact))  # rounded twice, so that a neighbour may be nearer
        candidates = {near, np.nextafter(near, np.float32(-np.inf)), np.nextafter(near, np.float32(np.inf))}
        return min(
            (x for x in candidates if np.isfinite(x)),
            key=lambda x: (abs(Fraction(float(x)) - exact), x.view(np.uint32) & 1),
        )

    return np.array([one(*numbers) for numbers in zip(a, b, c, strict=True)], np.float32)


@given(*[arrays(np.float32, LANES, elements=st.floats(-(2.0**60), 2.0**60, width=32))] * 3)
def test_fma_without_an_instruction_is_exact(a, b, c):
    found = _emulated_fma(a, b, c)
    assert_same_bits(found + np.float32(0), fma_of(a, b, c) + np.float32(0))  # without the sign of zero
    if simd.HAS_FMA:
        assert_same_bits(found, _fma(a, b, c))


@pytest.mark.skipif(not simd.HAS_FMA, reason="this CPU has no such instruction")
def test_fma_without_an_instruction_is_that_of_the_instruction():
    """Any bits, with infinities and subnormals; and sums next to a half of the last bit, which round to even."""
    rng = np.random.default_rng(0)
    a, b, c = rng.integers(0, 2**32, (3, 160_000), dtype=np.uint32).view(np.float32)
    a, b, c = (np.where(np.isnan(x), np.float32(1), x) for x in (a, b, c))
    ties = rng.integers(1, 2**12, (2, 160_000)).astype(np.float32)
    tiny = np.float32(2.0) ** rng.integers(-40, -20, 160_000).astype(np.float32)
    near = (rng.integers(2**23, 2**24, 160_000) * 2).astype(np.float32)
    with np.errstate(all="ignore"):
        for x, y, z in [
            (a, b, c),
            (a, b, -a * b),
            (ties[0], ties[1] * tiny, near),
            (a, np.float32(1) + 0 * b, c),
        ]:
            y = np.where(np.isnan(y), np.float32(1), y)
            found, expected = _emulated_fma(x, y, z), _fma(x, y, z)
            np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
            assert_same_bits(found[~np.isnan(found)], expected[~np.isnan(expected)])


@given(a=any_floats, b=any_floats)
def test_larger_smaller_and_absolute(a, b):
    np.testing.assert_array_equal(_maximum(a, b), np.maximum(a, b))
    np.testing.assert_array_equal(_minimum(a, b), np.minimum(a, b))
    assert_same_bits(_absolute(a), np.abs(a))


def test_rounding_takes_ties_to_even():
    x = np.concatenate([np.arange(-4, 4.25, 0.25), floats(2**22 + 0.5, 2**23 + 1, -(2**24) - 2, 1e30)])
    assert_same_bits(_round(x), np.rint(x.astype(np.float32)))


def test_every_power_of_two():
    n = np.arange(-126, 128)
    assert_same_bits(_scale_by_power(np.full(len(n), -1.5), n), -np.ldexp(np.float32(1.5), n))


@njit
def _fold(x):
    return simd.sum_lanes(simd.load(x)), simd.max_lanes(simd.load(x))


def test_each_lane_counts_once_in_a_sum():
    """Every lane another power of two: one that is lost or counted twice changes the sum."""
    x = 2.0 ** np.random.default_rng(0).permutation(LANES).astype(np.float32)
    assert _fold(address(x))[0] == 2.0**LANES - 1


@pytest.mark.parametrize("others", [-3, -np.inf])
@pytest.mark.parametrize("lane", range(LANES))
def test_the_largest_may_be_in_any_lane(lane, others):
    x = np.full(LANES, others, np.float32)
    x[lane] = -2
    assert _fold(address(x))[1] == -2


@njit
def _splats(out, x, i):
    simd.store(out, simd.splat(x))
    simd.store(out + 4 * LANES, simd.to_f32(simd.splat_i32(i)))


def test_a_number_in_every_lane():
    out = np.zeros(2 * LANES, np.float32)
    _splats(address(out), np.float32(-0.1), np.int32(-(2**31)))
    assert_same_bits(out, np.repeat(floats(-0.1, -(2.0**31)), LANES))


# --- bytes ----------------------------------------------------------------------------------------------------------


@njit
def _bytes(out, x):
    simd.store_i8(out, simd.load_i8(x))
    simd.store_i8(out + 64, simd.low_halves(simd.load_i8(x)))
    simd.store_i8(out + 128, simd.high_halves(simd.load_i8(x)))
    simd.store_i8(out + 192, simd.splat_4i8(x))


@pytest.mark.parametrize("first", range(0, 256, 64))
def test_bytes_and_their_halves(first):
    x = misaligned(np.arange(first, first + 64).astype(np.uint8))
    out = np.zeros((4, 64), np.uint8)
    _bytes(address(out), address(x))
    np.testing.assert_array_equal(out, [x, x & 15, x >> 4, np.tile(x[:4], 16)])


@njit
def _interleave(out, x, stride):
    simd.store_i8(out, simd.interleave(x, stride))


@pytest.mark.parametrize("stride", [16, 32, 64, 67])
def test_four_rows_are_interleaved(stride):
    x = np.random.default_rng(0).integers(0, 256, 3 * stride + 16).astype(np.uint8)
    out = np.zeros((16, 4), np.uint8)
    _interleave(address(out), address(x), stride)
    np.testing.assert_array_equal(out.T, [x[i * stride : i * stride + 16] for i in range(4)])
