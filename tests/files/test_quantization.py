"""Rounding against loops that can be checked by reading them, and its bounds on any numbers."""

import sys

import numpy as np
import pytest
from helpers import naive
from helpers.naive import bf16_not_below, quantize_group
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rwkv_cli.errors import DeviceError
from rwkv_cli.files import quantization
from rwkv_cli.files.quantization import (
    GROUP,
    bf16_to_f32,
    f32_to_bf16,
    f32_to_bf16_up,
    quantize_int4,
    quantize_int8,
    search_int4,
)

TINIEST = np.float32(np.finfo(np.float32).smallest_subnormal)
HUGE = np.float32(np.finfo(np.float32).max)

any_float = st.floats(width=32, allow_nan=False, allow_infinity=False)
ordinary = st.floats(-100, 100, width=32)
any_group = st.one_of(
    arrays(np.float32, GROUP, elements=any_float), arrays(np.float32, GROUP, elements=ordinary)
)


def round_trip(groups: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """q, the scales in float32 and q * scale of a matrix."""
    q, bits = quantize_int8(groups)
    scale = bf16_to_f32(bits)
    return q, scale, q * np.repeat(scale, GROUP, axis=1)


def assert_within_half_a_step(w: np.ndarray) -> None:
    """Also that no integer is -128, which no kernel expects."""
    q, scale, restored = round_trip(w)
    assert np.abs(q.astype(int)).max() <= 127
    # Half a step, and the rounding of the quotient and of the product, each a part in 2**24 of at most 127 steps.
    bound = np.repeat(scale.astype(np.float64), GROUP, axis=1) * (0.5 + 2 * 127 * 2.0**-24)
    no_scale = 64 * np.float64(TINIEST)  # below this, a 127th is no float any more and the group becomes zero
    assert (np.abs(w.astype(np.float64) - restored) <= bound + no_scale).all()


@settings(max_examples=300, deadline=None)
@given(any_group)
def test_the_error_is_at_most_half_a_step(group):
    assert_within_half_a_step(group.reshape(1, GROUP))


@settings(max_examples=300, deadline=None)
@given(any_group)
def test_the_naive_quantizer_gives_the_same(group):
    q, scale = quantize_group(group.tolist())
    found_q, found_scale, _ = round_trip(group.reshape(1, GROUP))
    assert found_scale.item() == scale
    assert found_q[0].tolist() == q


@pytest.mark.parametrize("largest", [TINIEST, 100 * TINIEST, 1e-38, 1e-30, 1e-4, 1, 1e4, 3e38, HUGE])
def test_groups_of_any_magnitude(largest):
    rng = np.random.default_rng(0)
    w = (rng.uniform(-1, 1, (20, 3 * GROUP)).astype(np.float32) * np.float32(largest)).astype(np.float32)
    w[:, ::GROUP] = largest
    assert_within_half_a_step(w)
    _, scale, _ = round_trip(w)
    if largest > 1e-36:  # a scale of full precision: seven bits and the next number up
        assert (scale <= w[:, ::GROUP] / np.float32(127) * np.float32(1 + 2.0**-7)).all()


def test_a_group_of_zeros_has_no_scale():
    w = np.zeros((2, 2 * GROUP), np.float32)
    w[1, GROUP:] = 1
    q, scale, restored = round_trip(w)
    assert scale[0].tolist() == [0, 0]
    assert not q[0].any()
    np.testing.assert_allclose(restored, w, rtol=2.0**-7)


def test_an_outlier_coarsens_its_own_group_only():
    w = np.random.default_rng(0).standard_normal((1, 2 * GROUP)).astype(np.float32)
    alone = round_trip(w)[2]
    w[0, 5] = 1e6
    q, _, restored = round_trip(w)
    np.testing.assert_array_equal(restored[0, GROUP:], alone[0, GROUP:])
    assert q[0, 5] == 127 or q[0, 5] == 126  # the scale was rounded up
    assert np.count_nonzero(q[0, :GROUP]) == 1


def test_many_rows_are_quantized_like_one(monkeypatch):
    w = np.random.default_rng(0).standard_normal((70, 2 * GROUP)).astype(np.float32)
    expected = quantize_int8(w)
    monkeypatch.setattr(quantization, "_VALUES_AT_ONCE", 32 * 2 * GROUP)  # and on several threads
    for found, wanted in zip(quantize_int8(w), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


@given(st.floats(0, float(HUGE / np.float32(127)), width=32), st.sampled_from([0, 4]))
def test_a_scale_is_the_next_bf16(x, zeros):
    assert bf16_to_f32(f32_to_bf16_up(np.array([x], np.float32), zeros))[0] == bf16_not_below(x, zeros)


def whole_numbers(R: int, K: int) -> np.ndarray:
    """A matrix that int4 holds exactly, with the scale 1."""
    matrix = np.random.default_rng(0).integers(-8, 8, (R, K)).astype(np.float32)
    matrix[:, ::GROUP] = -8
    return matrix


def test_int4_search_is_no_worse_than_rounding_by_the_largest_magnitude():
    w = np.random.default_rng(0).standard_normal((64, 8 * GROUP)).astype(np.float32)
    q, scale = quantize_int4(w)
    found = (q.astype(np.float32) - 8) * np.repeat(bf16_to_f32(scale), GROUP, axis=1)
    groups = w.reshape(64, 8, GROUP)
    step = np.take_along_axis(groups, np.abs(groups).argmax(2)[..., None], 2) / -8
    plain = np.clip(np.rint(groups / step), -8, 7) * step
    assert np.square(found - w).sum() < 0.95 * np.square(plain - groups).sum()


@given(any_group)
def test_int4_error_of_any_group_is_bounded(group):
    w = group[None] / max(np.abs(group).max(), TINIEST)  # at most 1, whose squares are floats
    q, scale = quantize_int4(w)
    found = (q.astype(np.float32) - 8) * bf16_to_f32(scale)
    assert q.max() <= 15
    assert np.square(found - w).sum() <= np.square(w).sum() * (
        1 + 1e-6
    )  # never worse than leaving the group out


def assert_int4_is_that_of_the_plain_twin(groups):
    with np.errstate(over="ignore", under="ignore"):
        expected = naive.quantize_int4(groups)
    K = GROUP * (2 if len(groups) % 2 == 0 else 1)
    q, scale = quantize_int4(groups.reshape(-1, K))
    np.testing.assert_array_equal(q.reshape(-1, GROUP), expected[0])
    np.testing.assert_array_equal(scale.reshape(-1), expected[1])
    np.testing.assert_array_equal(search_int4(groups)[:, 0], bf16_to_f32(expected[1]))


@given(any_group)
def test_int4_of_any_group_is_that_of_the_plain_twin(group):
    assert_int4_is_that_of_the_plain_twin(group[None])


# As they are in models; with quotients that are halves, to be rounded to even; and any bits.
INT4_GROUPS = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "heavy tails": lambda rng, shape: rng.standard_normal(shape) ** 9,
    "whole numbers": lambda rng, shape: rng.integers(-8, 9, shape),
    "halves": lambda rng, shape: rng.integers(-16, 17, shape) / 2,
    "tenths of a step": lambda rng, shape: (
        np.where(rng.random(shape) < 0.02, 80, rng.integers(-80, 81, shape)) / 10
    ),
    "subnormal": lambda rng, shape: rng.standard_normal(shape) * 1e-41,
    "huge": lambda rng, shape: rng.standard_normal(shape).clip(-4, 4) * 8e37,
    "mostly zero": lambda rng, shape: rng.standard_normal(shape) * (rng.random(shape) < 0.02),
    "bfloat16": lambda rng, shape: bf16_to_f32(f32_to_bf16(rng.standard_normal(shape).astype(np.float32))),
}


@pytest.mark.parametrize("n", [1, 15, 16, 17, 4000])
@pytest.mark.parametrize("kind", INT4_GROUPS)
def test_int4_is_that_of_the_plain_twin_to_the_bit(kind, n):
    groups = INT4_GROUPS[kind](np.random.default_rng(n), (n, GROUP)).astype(np.float32)
    assert_int4_is_that_of_the_plain_twin(groups)


def test_int4_of_columns_of_a_matrix():
    """GPTQ searches in a part of each row."""
    w = np.random.default_rng(0).standard_normal((33, 4 * GROUP)).astype(np.float32)
    part = w[:, GROUP : 2 * GROUP]
    np.testing.assert_array_equal(search_int4(part)[:, 0], bf16_to_f32(naive.quantize_int4(part)[1]))


def test_without_kernels_int4_ends_in_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "cpu_kernels.runtime.aot", None)
    with pytest.raises(DeviceError, match=r"^the CPU kernels cannot run: "):
        quantize_int4(np.zeros((16, GROUP), np.float32))


@pytest.mark.parametrize("magnitude", [HUGE, np.float32(1e-30)])
def test_int4_of_huge_and_tiny_weights_is_that_of_ordinary_ones(magnitude):
    w = whole_numbers(16, GROUP) / np.float32(8)
    q, scale = quantize_int4(w * magnitude)
    np.testing.assert_array_equal(q, quantize_int4(w)[0])
    assert np.isfinite(bf16_to_f32(scale)).all()


def test_an_all_zero_group_of_int4_is_zero():
    q, scale = quantize_int4(np.zeros((16, GROUP), np.float32))
    assert (q == 8).all()
    assert not scale.any()
