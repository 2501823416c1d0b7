"""A matrix times some tokens' activations, in every weight type and layout, and the hidden units of the channel mix.

Weights are laid out by `files.weight_layouts`, from numbers that their type holds exactly. Where the scales are powers
of two as well, every sum is exact in any order, and the result is compared with NumPy to the bit.
"""

import functools
from typing import Any, NamedTuple

import numpy as np
import pytest
from helpers.kernel_check import address, assert_same_bits
from hypothesis import given
from hypothesis import strategies as st
from numba import njit

from cpu_kernels import abi
from cpu_kernels.products import matrix, sparse_ffn
from cpu_kernels.products.sparse_ffn import FEW
from rwkv_cli.files.weight_layouts import GROUP, INTEGERS, SCALE, WEIGHT_TYPES, restore, store

TILE = 16
CHANNELS = 64
KINDS = {
    "int8": abi.INT8,
    "int4": abi.INT4,
    "fp16": abi.FLOAT16,
    "fp32": abi.FLOAT32,
}
EPS = 2.0**-23
UNTOUCHED = np.float32(-1234.5)

TILES, LOW_RANK, BY_INPUT = "head.weight", "blocks.0.att.w1", "blocks.0.ffn.value.weight"
"""Names of tensors in the three layouts."""


@njit
def _rows_times_tokens(out, stride, matrices, tile, n_tiles, activations, T):
    matrix.rows_times_tokens(out, stride, matrices[0], tile, n_tiles, activations[0], T)


@njit
def _sparse_rows(out, matrices, block, activations, t, active, counts):
    sparse_ffn.sparse_rows(out, matrices[0], block, activations[0], t, active, counts)


@njit
def _dense_rows(out, stride, matrices, block, activations, T):
    sparse_ffn.dense_rows(out, stride, matrices[0], block, activations[0], T)


@njit
def _find_active(active, counts, hq, h):
    sparse_ffn.find_active_i8(active, counts, hq)
    sparse_ffn.find_active_f32(active + 64, counts + 4, h)


# --- matrices and activations ---------------------------------------------------------------------------------------


class Matrix(NamedTuple):
    """A stored matrix: its record for the kernels, the numbers that it stands for [R, K], and what holds the memory."""

    record: np.ndarray
    values: np.ndarray
    stored: dict[str, Any]


class Activation(NamedTuple):
    """Some tokens' input: its record for the kernels, what the integer and the float kernels see [T, K], and memory."""

    record: np.ndarray
    values: np.ndarray
    parts: tuple[np.ndarray, ...]


def stored_matrix(values: np.ndarray, kind: str, name: str = TILES) -> Matrix:
    """A matrix [R, K] in the layout of a tensor."""
    tensor = values.T.copy() if name == LOW_RANK else values
    stored = store(name, tensor.astype(np.float32), kind)
    restored = restore(name, tensor.shape, stored)
    record = np.zeros(1, abi.MATRIX)
    R, K = values.shape
    scales = address(stored[name + SCALE]) if kind in INTEGERS else 0
    code = abi.SMALL if name == LOW_RANK and kind in INTEGERS else KINDS[kind]
    record[0] = (code, R + -R % TILE, K + -K % TILE, address(stored[name]), scales)
    return Matrix(record, restored.T if name == LOW_RANK else restored, stored)


@functools.cache
def exact_matrix(kind: str, R: int, K: int, name: str = TILES, seed: int = 0) -> Matrix:
    """Random whole numbers with scales of 1 or 2, which each type holds without rounding."""
    rng = np.random.default_rng(seed)
    least, extreme = (-8, -8) if kind == "int4" else (-127, 127)
    values = rng.integers(least, -least, (R, K))
    values[:, ::GROUP] = extreme  # which fixes the scale
    values *= np.repeat(rng.integers(1, 3, (R, -(-K // GROUP))), GROUP, axis=1)[:, :K]
    result = stored_matrix(values, kind, name)
    np.testing.assert_array_equal(result.values, values)
    return result


def activation(xq: np.ndarray, scale: np.ndarray) -> Activation:
    """Whole numbers [T, K] times scales [T, K/64]; for K that no integer matrix has, scales are left out."""
    T, K = xq.shape
    xq = xq.astype(np.int8)
    x = xq * (np.repeat(scale, GROUP, axis=1) if K % GROUP == 0 else np.float32(1))
    sums = xq.reshape(T, -1, GROUP).sum(axis=2, dtype=np.int32) if K % GROUP == 0 else np.zeros(1, np.int32)
    parts = (x.astype(np.float32), xq, np.ascontiguousarray(scale, np.float32), sums)
    record = np.zeros(1, abi.ACTIVATION)
    record[0] = (K, *(address(part) for part in parts))
    return Activation(record, parts[0].astype(np.float64), parts)


@functools.cache
def random_activation(T: int, K: int, exact: bool = True) -> Activation:
    """Scales that are powers of two if it shall be exact."""
    rng = np.random.default_rng(1)
    shape = (T, -(-K // GROUP))
    scale = 2.0 ** rng.integers(-1, 2, shape) if exact else rng.uniform(0.01, 1, shape)
    return activation(rng.integers(-127, 128, (T, K)), scale)


def first_tokens(act: Activation, t: int, n: int) -> Activation:
    """Tokens t to t + n alone."""
    parts = tuple(np.ascontiguousarray(part[t : t + n]) for part in act.parts)
    record = act.record.copy()
    record[0] = (act.record[0]["cols"], *(address(part) for part in parts))
    return Activation(record, act.values[t : t + n], parts)


def multiply(m: Matrix, act: Activation, tile: int = 0, n_tiles: int | None = None) -> np.ndarray:
    """[T, 16 * n_tiles], from a buffer with room on all sides that must stay as it was."""
    T = len(act.values)
    n_tiles = n_tiles or m.record[0]["rows"] // TILE - tile
    out = np.full((T + 2, TILE * (n_tiles + 2)), UNTOUCHED)
    start = address(out) + out.strides[0] + TILE * 4
    _rows_times_tokens(start, out.strides[0], m.record, tile, n_tiles, act.record, T)
    inner = out[1:-1, TILE:-TILE].copy()
    out[1:-1, TILE:-TILE] = UNTOUCHED
    assert (out == UNTOUCHED).all()
    return inner


# --- tiles ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WEIGHT_TYPES)
@pytest.mark.parametrize("T", [*range(1, 10), 16, 19, 35])
@pytest.mark.parametrize("K", [64, 128, 320, 704])
@pytest.mark.parametrize(("tile", "n_tiles"), [(0, 5), (0, 1), (1, 2), (2, 3), (1, 4)])
def test_exact_products(kind, T, K, tile, n_tiles):
    m, act = exact_matrix(kind, 5 * TILE, K), random_activation(T, K)
    expected = act.values @ m.values[TILE * tile : TILE * (tile + n_tiles)].T
    np.testing.assert_array_equal(multiply(m, act, tile, n_tiles), expected)


@pytest.mark.parametrize("kind", WEIGHT_TYPES)
@pytest.mark.parametrize("w", [-1, 0, 1])
@pytest.mark.parametrize("x", [-127, 0, 127])
def test_extremes(kind, w, x):
    """All products of one sign and as large as they can be, which no partial sum may cut off."""
    largest = 127 if kind != "int4" else 8 if w < 0 else 7
    values = np.full((2 * TILE, 4 * GROUP), w * largest)
    if kind == "int4":
        values[:, ::GROUP] = -8  # 7 is the largest only next to it
    act = activation(np.full((5, 4 * GROUP), x), np.ones((5, 4)))
    np.testing.assert_array_equal(multiply(stored_matrix(values, kind), act), act.values @ values.T)


@pytest.mark.parametrize("kind", INTEGERS)
def test_each_column_meets_its_own_activation(kind):
    """One activation at a time, so that nothing can cancel out."""
    m = exact_matrix(kind, 2 * TILE, 2 * GROUP)
    for T in (1, 4):
        for k in range(0, 2 * GROUP, T):
            act = activation(np.eye(T, 2 * GROUP, k) * 100, np.ones((T, 2)))
            np.testing.assert_array_equal(multiply(m, act), 100 * m.values[:, k : k + T].T)


@pytest.mark.parametrize("kind", ["int8", "fp16", "fp32"])
@pytest.mark.parametrize("T", [1, 3, 4, 9, 10])
@pytest.mark.parametrize("K", [16, 48, 64, 80, 192])
def test_groups_of_low_rank_matrices_may_be_shorter(kind, T, K):
    m, act = exact_matrix(kind, 3 * TILE, K, LOW_RANK), random_activation(T, K)
    np.testing.assert_array_equal(multiply(m, act), act.values @ m.values.T)


@pytest.mark.parametrize("kind", WEIGHT_TYPES)
def test_rows_that_fill_up_a_tile_are_zero(kind):
    m, act = exact_matrix(kind, TILE + 1, GROUP), random_activation(5, GROUP)
    found = multiply(m, act)
    np.testing.assert_array_equal(found[:, : TILE + 1], act.values @ m.values.T)
    assert not found[:, TILE + 1 :].any()


@functools.cache
def any_matrix(kind: str, R: int, K: int, name: str = TILES) -> Matrix:
    """Numbers with all their bits, scales of any kind: sums are rounded."""
    return stored_matrix(np.random.default_rng(2).standard_normal((R, K)).astype(np.float32), kind, name)


@pytest.mark.parametrize("kind", WEIGHT_TYPES)
def test_any_product_is_near(kind):
    m, act = any_matrix(kind, 3 * TILE, 512), random_activation(6, 512, exact=False)
    # A sum is rounded at each of K/4 steps at most (each group for integers), by half a unit of what it has reached.
    bound = 512 / 4 * EPS / 2 * (np.abs(act.values) @ np.abs(m.values.T))
    assert (np.abs(multiply(m, act) - act.values @ m.values.T.astype(np.float64)) <= bound).all()


@pytest.mark.parametrize("K", [80, 128])
def test_low_rank_matrices_give_the_same_to_the_bit_for_any_number_of_tokens(K):
    m, act = any_matrix("int8", 5 * TILE, K, LOW_RANK), random_activation(17, K, exact=False)
    alone = np.concatenate([multiply(m, first_tokens(act, t, 1)) for t in range(17)])
    for T in (4, 7, 8, 16, 17):
        assert_same_bits(multiply(m, first_tokens(act, 0, T)), alone[:T])


@pytest.mark.parametrize("kind", WEIGHT_TYPES)
@pytest.mark.parametrize("n_tiles", [1, 4, 5])
def test_tokens_read_together_or_alone_give_the_same_to_the_bit(kind, n_tiles):
    m, act = any_matrix(kind, 5 * TILE, 704), random_activation(37, 704, exact=False)
    alone = np.concatenate([multiply(m, first_tokens(act, t, 1), 0, n_tiles) for t in range(37)])
    for T in (*range(2, 10), 15, 16, 17, 32, 37):
        assert_same_bits(multiply(m, first_tokens(act, 0, T), 0, n_tiles), alone[:T])


@pytest.mark.parametrize("kind", WEIGHT_TYPES)
def test_tiles_read_together_or_alone_give_the_same_to_the_bit(kind):
    """Threads share a matrix out in any way."""
    m, act = any_matrix(kind, 5 * TILE, 320), random_activation(6, 320, exact=False)
    whole = multiply(m, act)
    for n in (1, 2, 3):
        parts = [multiply(m, act, tile, min(n, 5 - tile)) for tile in range(0, 5, n)]
        assert_same_bits(np.concatenate(parts, axis=1), whole)


# --- hidden units ---------------------------------------------------------------------------------------------------

FULL = GROUP
DENSITIES = {
    "none": [0, 0, 0, 0, 0, 0, 0, 0],
    "one": [0, 0, 1, 0, 0, 0, 0, 0],
    "few": [3, 0, 5, 1, 0, 2, 7, 4],
    "as many as are few": [FEW] * 8,
    "one more": [FEW + 1] * 8,
    "all": [FULL] * 8,
    "mixed": [0, 1, FEW - 1, FEW, FEW + 1, FULL - 1, FULL, 0],
}
"""How many units of each group are not zero."""


@functools.cache
def hidden_units(density: str, T: int, exact: bool = True) -> Activation:
    """The squares of some ReLU of T tokens; each token's groups are another rotation of the same densities."""
    rng = np.random.default_rng(3)
    counts = DENSITIES[density]
    hq = np.zeros((T, len(counts), GROUP), np.int8)
    for t in range(T):
        for g, n in enumerate(np.roll(counts, t)):
            hq[t, g, rng.permutation(GROUP)[:n]] = rng.integers(1, 128, n)
    scale = 2.0 ** rng.integers(-1, 2, hq.shape[:2]) if exact else rng.uniform(0.01, 1, hq.shape[:2])
    return activation(hq.reshape(T, -1), scale)


def listed(units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The numbers and counts of the units [F] that are not zero, as the kernels list them, by a plain loop."""
    active, counts = np.full(units.shape, 255, np.uint8), np.zeros(len(units) // GROUP, np.int32)
    for g, group in enumerate(units.reshape(-1, GROUP)):
        found = np.flatnonzero(group)
        active[g * GROUP : g * GROUP + len(found)] = found
        counts[g] = len(found)
    return active, counts


def start_values(T: int, channels: int) -> np.ndarray:
    """What the residual stream holds before: whole numbers."""
    return np.random.default_rng(4).integers(-50, 50, (T, channels)).astype(np.float32)


def sparse(m: Matrix, act: Activation) -> np.ndarray:
    """[T, R], token by token."""
    T, blocks = len(act.values), m.record[0]["rows"] // CHANNELS
    out = start_values(T, blocks * CHANNELS)
    for t in range(T):
        active, counts = listed(act.values[t])
        for block in range(blocks):
            place = address(out[t]) + block * CHANNELS * 4
            _sparse_rows(place, m.record, block, act.record, t, address(active), address(counts))
    return out


def dense(m: Matrix, act: Activation) -> np.ndarray:
    """[T, R], all tokens at once."""
    T, blocks = len(act.values), m.record[0]["rows"] // CHANNELS
    out = start_values(T, blocks * CHANNELS)
    for block in range(blocks):
        place = address(out) + block * CHANNELS * 4
        _dense_rows(place, out.strides[0], m.record, block, act.record, T)
    return out


def expected_of(m: Matrix, act: Activation) -> np.ndarray:
    """In float64."""
    return start_values(len(act.values), len(m.values)) + act.values @ m.values.T


@pytest.mark.parametrize("kind", WEIGHT_TYPES)
@pytest.mark.parametrize("density", DENSITIES)
def test_sparse_rows_are_exact(kind, density):
    m, act = exact_matrix(kind, 2 * CHANNELS, 8 * GROUP, BY_INPUT), hidden_units(density, 3)
    np.testing.assert_array_equal(sparse(m, act), expected_of(m, act))


@pytest.mark.parametrize("kind", INTEGERS)
@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("T", [4, 8, 16, 20])
def test_dense_rows_are_exact(kind, density, T):
    m, act = exact_matrix(kind, 2 * CHANNELS, 8 * GROUP, BY_INPUT), hidden_units(density, T)
    np.testing.assert_array_equal(dense(m, act), expected_of(m, act))


@pytest.mark.parametrize("kind", INTEGERS)
@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("T", [4, 32, 43])
def test_dense_and_sparse_rows_are_the_same_to_the_bit(kind, density, T):
    """Also where scales are not powers of two: a prompt and generated text give the same state."""
    T = sparse_ffn.n_read_densely(T)
    m, act = any_matrix(kind, CHANNELS, 8 * GROUP, BY_INPUT), hidden_units(density, T, exact=False)
    assert_same_bits(dense(m, act), sparse(m, act))


@pytest.mark.parametrize("kind", WEIGHT_TYPES)
@pytest.mark.parametrize("n", [1, FEW, FEW + 1, GROUP])
def test_hidden_units_may_be_negative_and_as_large_as_can_be(kind, n):
    """All products of a channel of one sign: the largest sums that must be exact."""
    values = np.full((CHANNELS, GROUP), -8 if kind == "int4" else -127)
    values[1::2] *= -1  # int4 has no 8, but a scale of -1
    m = stored_matrix(values, kind, BY_INPUT)
    for x in (127, -127):
        hq = np.zeros((4, GROUP), int)
        hq[:, GROUP - n :] = x
        act = activation(hq, np.ones((4, 1)))
        np.testing.assert_array_equal(sparse(m, act), expected_of(m, act))
        if kind in INTEGERS:
            np.testing.assert_array_equal(dense(m, act), expected_of(m, act))


@pytest.mark.parametrize("kind", INTEGERS)
def test_dense_rows_of_no_token_do_nothing(kind):
    m, act = exact_matrix(kind, CHANNELS, GROUP, BY_INPUT), random_activation(4, GROUP)
    out = start_values(4, CHANNELS)
    _dense_rows(address(out), out.strides[0], m.record, 0, act.record, 0)
    np.testing.assert_array_equal(out, start_values(4, CHANNELS))


def assert_found(hq: np.ndarray, h: np.ndarray) -> None:
    """Both lists of active units are those of a plain loop."""
    active, counts = np.full((3, GROUP), 99, np.uint8), np.full(3, 99, np.int32)
    _find_active(address(active), address(counts), address(hq), address(h))
    for i, units in enumerate((hq, h)):
        expected = np.flatnonzero(units)
        assert counts[i] == len(expected)
        np.testing.assert_array_equal(active[i, : len(expected)], expected)
    assert (active[2] == 99).all()
    assert counts[2] == 99


@given(st.lists(st.sampled_from([0, 0, 0, 1, 127, -127]), min_size=GROUP, max_size=GROUP))
def test_active_units_are_found(units):
    assert_found(np.array(units, np.int8), np.array(units, np.float32))


@pytest.mark.parametrize("n", [0, 1, GROUP])
def test_active_units_are_found_at_either_end(n):
    hq, h = np.zeros(GROUP, np.int8), np.full(GROUP, -0.0, np.float32)
    hq[GROUP - n :], h[:n] = -1, 1e-45
    assert_found(hq, h)
