"""A matrix times the activations of some tokens, in tiles of 16 output rows.

A tile stores its rows interleaved, so that one vector holds 16 rows and no sum over lanes is ever needed:

    int8      [K/4, 16, 4] bytes, see `cpu_kernels.products.dot_int`; bfloat16 scales [K/64, 16]
    int4      [K/8, 16, 4] bytes of two weights; the same scales
    float16   [K, 16]
    float32   [K, 16]
    small     [K, 16] int8; bfloat16 scales [ceil(K/64), 16]; activations are floats, which costs nothing where the
              rank is low, and keeps them exact

Each kernel has a variant for one token (decode) and one for four (prefill), which reads a weight once for all of them.
ffn.value is stored by input instead: see `cpu_kernels.products.sparse_ffn`.

Throughout the kernels, `m` is a record MATRIX and `act` a record ACTIVATION, see `cpu_kernels.abi`; parameters without
a type are int64: addresses, distances in bytes, and numbers of tiles and tokens.
"""

from __future__ import annotations

from numba import njit

from cpu_kernels.abi import ACTIVATION, FLOAT16, FLOAT32, INT4, INT8, MATRIX, SMALL
from cpu_kernels.elementwise import VECTOR
from cpu_kernels.products import amx, dot_float, dot_int
from cpu_kernels.products.dot import HAS_TILES
from cpu_kernels.products.dot_float import small_pair

LEAST_PAIRED = 8
"""With fewer tokens, weights of low-rank maps are not worth converting to floats beforehand."""

_int8, _int4, _float16, _float32 = dot_int.int8, dot_int.int4, dot_float.float16, dot_float.float32
_small_x1, _small_x4 = dot_float.small.x1, dot_float.small.x4
_int8_x1, _int8_x4 = _int8.x1, _int8.x4
_int4_x1, _int4_x4 = _int4.x1, _int4.x4
_float16_x1, _float16_x4 = _float16.x1, _float16.x4
_float32_x1, _float32_x4 = _float32.x1, _float32.x4


@njit
def is_integer(m: MATRIX):
    """Whether a matrix is multiplied with activations in int8."""
    return m.kind == INT8 or m.kind == INT4


@njit
def weight_bytes(m: MATRIX, n):
    """The size of n weights of a matrix, in bytes."""
    if m.kind == INT4:
        return n // 2
    return 2 * n if m.kind == FLOAT16 else 4 * n if m.kind == FLOAT32 else n


@njit
def _by_vectors(out, stride, m: MATRIX, tile, n_tiles, act: ACTIVATION, T):
    """out[t, 0 : 16 * n_tiles] = n_tiles tiles of the matrix m, from `tile` on, times the activation of token t, t < T.

    `stride` is the distance in bytes between two tokens' outputs. The bits of the result do not depend on T.
    """
    end = tile + n_tiles
    while tile < end:
        # Integer weights, those of low-rank maps for many tokens only, are multiplied two tiles at a time.
        has_pair = tile + 2 <= end and (is_integer(m) or (m.kind == SMALL and T >= LEAST_PAIRED))
        n = 2 if has_pair else 1
        if has_pair and m.kind == SMALL:
            together = T // 2 * 2
            small_pair(out, stride, m, tile, act, together)
        else:
            together = T // 4 * 4 if has_pair or not is_integer(m) else 0
            for t in range(0, together, 4):
                _x4(out + t * stride, stride, m, tile, act, t)
        for t in range(together, T):
            for i in range(n):
                _x1(out + t * stride + i * VECTOR, m, tile + i, act, t)
        tile += n
        out += n * VECTOR


@njit
def _by_tile_registers(out, stride, m: MATRIX, tile, n_tiles, act: ACTIVATION, T):
    """The same, with AMX where that is faster."""
    if is_integer(m) and T >= amx.LEAST:
        amx.rows_times_tokens(out, stride, m, tile, n_tiles, act, T)
    else:
        _by_vectors(out, stride, m, tile, n_tiles, act, T)


rows_times_tokens = _by_tile_registers if HAS_TILES else _by_vectors


@njit
def _x1(out, m: MATRIX, tile, act: ACTIVATION, t):
    if m.kind == INT8:
        _int8_x1(out, m, tile, act, t)
    elif m.kind == INT4:
        _int4_x1(out, m, tile, act, t)
    elif m.kind == FLOAT16:
        _float16_x1(out, m, tile, act, t)
    elif m.kind == FLOAT32:
        _float32_x1(out, m, tile, act, t)
    else:
        _small_x1(out, m, tile, act, t)


@njit
def _x4(out, stride, m: MATRIX, tile, act: ACTIVATION, t):
    if m.kind == INT8:
        _int8_x4(out, stride, m, tile, act, t)
    elif m.kind == INT4:
        _int4_x4(out, stride, m, tile, act, t)
    elif m.kind == FLOAT16:
        _float16_x4(out, stride, m, tile, act, t)
    elif m.kind == FLOAT32:
        _float32_x4(out, stride, m, tile, act, t)
    else:
        _small_x4(out, stride, m, tile, act, t)
