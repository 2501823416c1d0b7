"""Layouts against formulas that can be checked by reading them: what is stored, where, and that it comes back."""

import numpy as np
import pytest
from helpers.models import SHAPES, SMALLEST, fine_weights
from helpers.naive import position_by_input, position_in_tiles

from rwkv_cli.errors import UnsupportedModelError
from rwkv_cli.files.quantization import bf16_to_f32
from rwkv_cli.files.safetensors import DTYPES
from rwkv_cli.files.weight_layouts import (
    GROUP,
    INTEGERS,
    SCALE,
    WEIGHT_TYPES,
    layout_of,
    restore,
    store,
    stored_form,
    type_of,
)


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
    with pytest.raises(UnsupportedModelError, match=f"{name} has values too large for fp16; use type=.fp32."):
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
