"""Quantization against loops that can be checked by reading them, and its bounds on any numbers."""

import numpy as np
import pytest
from helpers.models import SHAPES, SMALLEST, fine_weights
from helpers.naive import bf16_not_below, position_by_input, position_in_tiles, quantize_group
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rwkv_cli.errors import UnsupportedModelError
from rwkv_cli.files import weight_layouts
from rwkv_cli.files.safetensors import DTYPES
from rwkv_cli.files.weight_layouts import (
    GROUP,
    INTEGERS,
    SCALE,
    WEIGHT_TYPES,
    bf16_to_f32,
    f32_to_bf16_up,
    layout_of,
    quantize_int4,
    quantize_int8,
    restore,
    store,
    stored_form,
    type_of,
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
    monkeypatch.setattr(weight_layouts, "_VALUES_AT_ONCE", 32 * 2 * GROUP)  # and on several threads
    for found, wanted in zip(quantize_int8(w), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


@given(st.floats(0, float(HUGE / np.float32(127)), width=32), st.sampled_from([0, 4]))
def test_a_scale_is_the_next_bf16(x, zeros):
    assert bf16_to_f32(f32_to_bf16_up(np.array([x], np.float32), zeros))[0] == bf16_not_below(x, zeros)


def test_quantizing_changes_nothing_in_the_weights():
    w = np.random.default_rng(0).standard_normal((16, GROUP)).astype(np.float32)
    before = w.copy()
    store("head.weight", w, "int8")
    np.testing.assert_array_equal(w, before)


@pytest.mark.parametrize("weight_type", WEIGHT_TYPES)
@pytest.mark.parametrize("config", [*SHAPES.values(), SMALLEST], ids=[*SHAPES, "smallest"])
def test_what_is_stored_is_as_announced_and_comes_back(config, weight_type):
    # Relative to the largest magnitude of a tensor; half a step of 1/127, and bf16's rounding up of the step, or to
    # four bits. For int4 half a step of 1/8, and what the search cuts off: the least of its factors is 0.7.
    error = {"fp32": 0, "fp16": 2.0**-11, "int8": (0.5 + 2.0**-7) / 127, "int4": 0.31}
    error["low_rank"] = 0.5 * (1 + 2.0**-3) / 127
    for name, tensor in fine_weights(config).items():
        stored = store(name, tensor, weight_type)
        form = stored_form(name, tensor.shape, weight_type)
        assert {part: array.shape for part, array in stored.items()} == {
            part: s for part, (_, s) in form.items()
        }
        for part, (dtype, _) in form.items():
            assert stored[part].dtype == DTYPES[dtype], part
            assert stored[part].flags.c_contiguous or layout_of(name) == "vector", part
        found = restore(name, tensor.shape, stored)
        assert (found.dtype, found.shape) == (np.float32, tensor.shape)
        kind = type_of(name, weight_type)
        allowed = error["low_rank" if layout_of(name) == "low_rank" and kind == "int8" else kind]
        np.testing.assert_allclose(found, tensor, rtol=0, atol=allowed * np.abs(tensor).max(), err_msg=name)


@pytest.mark.parametrize(
    ("name", "layout", "kinds"),
    [
        ("emb.weight", "rows", "int8 fp16 fp32"),
        ("head.weight", "tiles", "int8 fp16 fp32"),
        ("blocks.11.att.output.weight", "tiles", "int8 fp16 fp32"),
        ("blocks.3.att.value.weight", "tiles", "int8 fp16 fp32"),
        ("blocks.3.ffn.key.weight", "tiles", "int8 fp16 fp32"),
        ("blocks.3.ffn.value.weight", "by_input", "int8 fp16 fp32"),
        ("blocks.3.att.w2", "low_rank", "int8 fp16 fp32"),
        ("blocks.3.att.g1", "low_rank", "int8 fp16 fp32"),
        ("blocks.3.att.w0", "vector", "fp32 fp32 fp32"),
        ("blocks.3.att.r_k", "vector", "fp32 fp32 fp32"),
        ("blocks.3.att.ln_x.weight", "vector", "fp32 fp32 fp32"),
        ("blocks.3.att.x_w", "vector", "fp32 fp32 fp32"),
    ],
)
def test_what_is_small_or_sensitive_stays_a_float(name, layout, kinds):
    assert layout_of(name) == layout
    assert [type_of(name, weight_type) for weight_type in ("int8", "fp16", "fp32")] == kinds.split()


@pytest.mark.parametrize(("weight_type", "c"), [("int8", 4), ("fp16", 1), ("fp32", 1)])
def test_tiles_interleave_sixteen_rows(weight_type, c):
    R, K = 40, 2 * GROUP  # the last tile is half empty
    matrix = np.random.default_rng(0).integers(-126, 127, (R, K)).astype(np.float32)
    matrix[:, ::GROUP] = 127  # so that every scale is 1
    stored = store("head.weight", matrix, weight_type)["head.weight"].reshape(-1)
    expected = np.zeros(48 * K)
    for r in range(R):
        for k in range(K):
            expected[position_in_tiles(r, k, K, c)] = matrix[r, k]
    np.testing.assert_array_equal(stored, expected)


@pytest.mark.parametrize("weight_type", [kind for kind in WEIGHT_TYPES if kind != "int4"])
def test_the_value_matrix_lies_by_hidden_unit(weight_type):
    R, K = 128, GROUP
    matrix = np.random.default_rng(0).integers(-126, 127, (R, K)).astype(np.float32)
    matrix[:, ::GROUP] = 127
    stored = store("blocks.0.ffn.value.weight", matrix, weight_type)["blocks.0.ffn.value.weight"].reshape(-1)
    for r in range(R):
        for k in range(K):
            assert stored[position_by_input(r, k, K)] == matrix[r, k]


def whole_numbers(R: int, K: int) -> np.ndarray:
    """A matrix that int4 holds exactly, with the scale 1."""
    matrix = np.random.default_rng(0).integers(-8, 8, (R, K)).astype(np.float32)
    matrix[:, ::GROUP] = -8
    return matrix


def test_int4_tiles_hold_column_k_and_k_plus_32_in_a_byte():
    R, K = 16, 2 * GROUP
    matrix = whole_numbers(R, K)
    stored = store("head.weight", matrix, "int4")["head.weight"].reshape(-1)
    for r in range(R):
        for k in range(K):
            group, column = divmod(k, GROUP)
            byte = stored[group * 512 + position_in_tiles(r, column % 32, GROUP, 4)]
            assert int(byte >> 4 if column >= 32 else byte & 15) - 8 == matrix[r, k]


def test_the_int4_value_matrix_holds_channel_c_and_c_plus_32_in_a_byte():
    R, K = 128, GROUP
    matrix = whole_numbers(R, K)
    stored = store("blocks.0.ffn.value.weight", matrix, "int4")["blocks.0.ffn.value.weight"]
    for r in range(R):
        for k in range(K):
            byte = stored[r // 64, k, r % 32]
            assert int(byte >> 4 if r % 64 >= 32 else byte & 15) - 8 == matrix[r, k]


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


def test_scales_follow_the_layout_of_their_weights():
    R, groups = 64, 3
    scales = 2.0 ** np.random.default_rng(0).integers(-9, 9, (R, groups))  # exact in bf16
    matrix = np.repeat(scales, GROUP, axis=1).astype(np.float32) * 127
    for name, position in (
        ("head.weight", lambda r, g: position_in_tiles(r, g, groups, 1)),
        ("blocks.0.ffn.value.weight", lambda r, g: position_by_input(r, g, groups)),
        ("emb.weight", lambda r, g: r * groups + g),
    ):
        stored = bf16_to_f32(store(name, matrix, "int8")[name + SCALE].reshape(-1))
        for r in range(R):
            for g in range(groups):
                assert stored[position(r, g)] == scales[r, g], name


def test_low_rank_matrices_are_transposed_and_padded_with_zeros():
    w1 = np.random.default_rng(0).standard_normal((GROUP, 17)).astype(np.float32)
    stored = store("blocks.0.att.w1", w1, "fp32")["blocks.0.att.w1"]
    assert stored.shape == (2, GROUP, 16, 1)
    flat = stored.transpose(0, 2, 1, 3).reshape(32, GROUP)
    np.testing.assert_array_equal(flat[:17], w1.T)
    assert not flat[17:].any()


@pytest.mark.parametrize("weight_type", INTEGERS)
@pytest.mark.parametrize("shape", [(GROUP, 17), (17, GROUP), (2 * GROUP, 80), (96, 2 * GROUP)])
def test_low_rank_matrices_of_integers_have_scales_for_what_is_there(weight_type, shape):
    """[in, out]: the last group of a row has as many inputs as are left, and nothing else counts."""
    name, tensor = "blocks.0.att.w1", np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    stored = store(name, tensor, weight_type)
    K, R = (n + -n % 16 for n in shape)
    assert stored[name].dtype == np.int8
    assert stored[name].shape == (R // 16, K, 16, 1)
    assert stored[name + SCALE].shape == (R // 16, -(-K // GROUP), 16, 1)
    found = restore(name, shape, stored)
    for first in range(0, shape[0], GROUP):
        rows = slice(first, first + GROUP)
        step = np.abs(tensor[rows]).max(axis=0) / 127 * (1 + 2**-3)  # the scale is rounded up
        assert (np.abs(found[rows] - tensor[rows]) <= step / 2 * (1 + 1e-6)).all()
    np.testing.assert_array_equal(found.astype(np.float16), found)


@pytest.mark.parametrize(
    "name", ["head.weight", "emb.weight", "blocks.0.att.w1", "blocks.0.ffn.value.weight"]
)
@pytest.mark.parametrize("value", [65520, -65520, 1e30, -1e30])
def test_what_fp16_cannot_hold_is_refused(name, value):
    matrix = np.zeros((GROUP, GROUP), np.float32)
    matrix[3, 5] = value
    with pytest.raises(
        UnsupportedModelError, match=f"{name} holds values too large for fp16; use --type fp32"
    ):
        store(name, matrix, "fp16")
    assert restore(name, matrix.shape, store(name, matrix, "fp32"))[3, 5] == np.float32(value)


def test_the_largest_fp16_is_kept():
    matrix = np.full((GROUP, GROUP), 65504, np.float32)
    np.testing.assert_array_equal(
        restore("head.weight", matrix.shape, store("head.weight", matrix, "fp16")), matrix
    )


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("head.weight", (10, 65)),
        ("emb.weight", (10, 32)),
        ("blocks.0.ffn.value.weight", (64, 100)),
        ("blocks.0.ffn.value.weight", (32, 64)),
        ("blocks.0.att.r_k", (4, 32)),  # heads of 32, whose state is smaller than the kernels believe
    ],
)
def test_sizes_without_a_kernel_are_refused(name, shape):
    with pytest.raises(UnsupportedModelError, match=f"{name} .* should be"):
        stored_form(name, shape, "int8")
