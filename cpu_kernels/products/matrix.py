"""A matrix times the activations of some tokens, in tiles of 16 output rows.

A tile stores its rows interleaved, so that one vector holds 16 rows and no sum over lanes is ever needed:

    int8      [K/4, 16, 4] bytes, see `cpu_kernels.products.dot_int`; bfloat16 scales [K/64, 16]
    int4      [K/8, 16, 4] bytes of two weights; the same scales
    float16   [K, 16]
    float32   [K, 16]
    small     [K, 16] int8; bfloat16 scales [ceil(K/64), 16]; activations are floats, which costs nothing where the
              rank is low, and keeps them exact

Each kernel has a variant for one token (decode) and one for four (prefill), which reads a weight once for all of them;
low-rank maps in int8 and CPUs with AMX have one for any number of tokens.
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
from cpu_kernels.products.dot_float import small_pair, small_x1

LEAST_PAIRED = 4
"""With fewer tokens, weights of low-rank maps are not worth converting to floats beforehand."""

_int8, _int4, _float16, _float32 = dot_int.int8, dot_int.int4, dot_float.float16, dot_float.float32
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
def _integers_by_vectors(out, stride, m: MATRIX, tile, n_tiles, act: ACTIVATION, T):
    """`rows_times_tokens` of integer weights: for four tokens, two tiles at once."""
    end = tile + n_tiles
    while tile < end:
        n = min(2, end - tile)
        together = T // 4 * 4 if n == 2 else 0
        for t in range(0, together, 4):
            if m.kind == INT8:
                _int8_x4(out + t * stride, stride, m, tile, act, t)
            else:
                _int4_x4(out + t * stride, stride, m, tile, act, t)
        _integers_one_by_one(out, stride, m, tile, n, act, together, T)
        tile += n
        out += n * VECTOR


@njit
def _integers_by_tile_registers(out, stride, m: MATRIX, tile, n_tiles, act: ACTIVATION, T):
    """The same with AMX, where that is faster."""
    if T >= amx.LEAST:
        amx.rows_times_tokens(out, stride, m, tile, n_tiles, act, T)
    else:
        _integers_one_by_one(out, stride, m, tile, n_tiles, act, 0, T)


@njit
def _integers_one_by_one(out, stride, m: MATRIX, tile, n_tiles, act: ACTIVATION, t, T):
    """The products with tokens t to T alone."""
    for i in range(n_tiles):
        for token in range(t, T):
            if m.kind == INT8:
                _int8_x1(out + token * stride + i * VECTOR, m, tile + i, act, token)
            else:
                _int4_x1(out + token * stride + i * VECTOR, m, tile + i, act, token)


_integers = _integers_by_tile_registers if HAS_TILES else _integers_by_vectors


@njit
def rows_times_tokens(out, stride, m: MATRIX, tile, n_tiles, act: ACTIVATION, T):
    """out[t, 0 : 16 * n_tiles] = n_tiles tiles of the matrix m, from `tile` on, times the activation of token t, t < T.

    `stride` is the distance in bytes between two tokens' outputs. The bits of the result do not depend on T.
    """
    if is_integer(m):
        _integers(out, stride, m, tile, n_tiles, act, T)
        return
    for i in range(0 if m.kind == SMALL else n_tiles):
        _floats(out + i * VECTOR, stride, m, tile + i, act, T)
    for i in range(0, n_tiles if m.kind == SMALL else 0, 2):
        _small(out + i * VECTOR, stride, m, tile + i, min(2, n_tiles - i), act, T)


@njit
def _floats(out, stride, m: MATRIX, tile, act: ACTIVATION, T):
    """One tile of float weights times T tokens."""
    together = T // 4 * 4
    for t in range(0, together, 4):
        if m.kind == FLOAT16:
            _float16_x4(out + t * stride, stride, m, tile, act, t)
        else:
            _float32_x4(out + t * stride, stride, m, tile, act, t)
    for t in range(together, T):
        if m.kind == FLOAT16:
            _float16_x1(out + t * stride, m, tile, act, t)
        else:
            _float32_x1(out + t * stride, m, tile, act, t)


@njit
def _small(out, stride, m: MATRIX, tile, n, act: ACTIVATION, T):
    """One or two tiles of the int8 weights of a low-rank map times T tokens."""
    together = T // 2 * 2 if n == 2 and T >= LEAST_PAIRED else 0
    small_pair(out, stride, m, tile, act, together)
    for t in range(together, T):
        for i in range(n):
            small_x1(out + t * stride + i * VECTOR, m, tile + i, act, t)
