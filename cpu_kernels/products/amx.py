"""Products of integer weights with many tokens by AMX, the tile registers of Intel's server CPUs.

A tile register holds 16 rows of 64 bytes: a group of a tile of weights, [16, 16, 4] bytes, as it is stored, or 64
columns of the activations of 16 tokens. One instruction multiplies them: 16 x 16 sums of 64 products. These are exact,
and are scaled and accumulated as in `cpu_kernels.products.dot_int`, so that the results are the same to the bit.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types

from cpu_kernels.abi import ACTIVATION, BLOCK, CACHE_LINE, GROUP, INT8, MATRIX
from cpu_kernels.elementwise import FLOAT, VECTOR
from cpu_kernels.products.dot_int import (
    INT4_GROUP,
    INT4_OFFSET,
    INT8_GROUP,
    QUAD,
    SCALE_BYTES,
    SCALES,
    group_of_activation,
)
from cpu_kernels.products.packing import TILES, int4_packers, pack_rows_int8
from cpu_kernels.runtime.instructions import call
from cpu_kernels.simd import (
    F32,
    I8,
    I32,
    LANES,
    Vector,
    fma,
    get_f32,
    intrinsic_of,
    load,
    load_bf16,
    load_i32,
    pointer,
    prefetch,
    put_u8,
    splat,
    splat_of,
    stack_memory,
    store,
    to_f32,
)

ROWS = 16  # of a tile register: tokens, or quads of weights

LEAST = 4
"""With fewer tokens, dot products of vectors are faster."""

STRIP = 8
"""Groups of columns of four tiles that are multiplied with all tokens before the next ones are: 32 KB."""

GROUP_SCALES = BLOCK * SCALE_BYTES  # bytes, of the scales of a group of inputs

X, W, SUMS, X_REST, SUMS_REST = range(5)  # the numbers of tile registers
PALETTE_BYTES, FIRST_WIDTH, FIRST_ROWS = 64, 16, 48

_f = np.float32
_byte, _long, _void = ir.IntType(8), ir.IntType(64), ir.VoidType()

_configuration = stack_memory(PALETTE_BYTES)
_sums = stack_memory(ROWS * VECTOR)
_packed = stack_memory(TILES * STRIP * INT8_GROUP)


# --- instructions ---------------------------------------------------------------------------------------------------


@intrinsic_of(types.void, types.int64)
def _put_configuration(builder, address):
    """Store a configuration in which all eight registers have 16 rows of 64 bytes."""
    content = [0] * PALETTE_BYTES
    content[0] = 1  # the palette
    content[FIRST_WIDTH : FIRST_WIDTH + 16 : 2] = [QUAD] * 8  # 16 bits each
    content[FIRST_ROWS : FIRST_ROWS + 8] = [ROWS] * 8
    vector = ir.VectorType(_byte, PALETTE_BYTES)
    builder.store(ir.Constant(vector, content), pointer(builder, address, vector))


@intrinsic_of(types.void, types.int64)
def _load_configuration(builder, address):
    call(builder, "llvm.x86.ldtilecfg", _void, pointer(builder, address, _byte))


@intrinsic_of(types.void, types.int64)
def _release(builder, _unused):
    """Back to the initial state, which the system need not save."""
    call(builder, "llvm.x86.tilerelease", _void)


def _multiply(x, w, sums):
    """A function that loads a group of tokens' activations and one of weights, and leaves their product in a register.

    multiply(activations, next_token, weights): addresses, and the distance of two tokens in bytes.
    """

    @intrinsic_of(types.void, types.int64, types.int64, types.int64)
    def multiply(builder, activations, next_token, weights):
        load_tile = "llvm.x86.tileloadd64"
        call(builder, load_tile, _void, _byte(x), pointer(builder, activations, _byte), next_token)
        call(builder, load_tile, _void, _byte(w), pointer(builder, weights, _byte), _long(QUAD))
        call(builder, "llvm.x86.tilezero", _void, _byte(sums))
        call(builder, "llvm.x86.tdpbssd", _void, _byte(sums), _byte(x), _byte(w))

    return multiply


def _store_tile(register):
    @intrinsic_of(types.void, types.int64)
    def store_tile(builder, address):
        call(
            builder,
            "llvm.x86.tilestored64",
            _void,
            _byte(register),
            pointer(builder, address, _byte),
            _long(VECTOR),
        )

    return store_tile


_multiply_whole, _store_whole = _multiply(X, W, SUMS), _store_tile(SUMS)
_multiply_rest, _store_rest = _multiply(X_REST, W, SUMS_REST), _store_tile(SUMS_REST)

TOTALS = Vector("TOTALS", ir.ArrayType(F32.llvm, ROWS))
"""Sixteen output rows of sixteen tokens, which LLVM keeps in registers."""


@intrinsic_of(TOTALS, types.int64)
def _no_totals(_builder, _unused):
    return ir.Constant(TOTALS.llvm, [ir.Constant(F32.llvm, [0.0] * LANES)] * ROWS)


@intrinsic_of(TOTALS, types.int64, types.int64)
def _load_totals(builder, address, stride):
    totals = ir.Constant(TOTALS.llvm, ir.Undefined)
    for t in range(ROWS):
        row = builder.load(pointer(builder, address, F32.llvm), align=FLOAT)
        totals = builder.insert_value(totals, row, t)
        address = builder.add(address, stride)
    return totals


@intrinsic_of(types.void, types.int64, types.int64, TOTALS)
def _store_totals(builder, address, stride, totals):
    for t in range(ROWS):
        row = builder.extract_value(totals, t)
        builder.store(row, pointer(builder, address, F32.llvm), align=FLOAT)
        address = builder.add(address, stride)


@intrinsic_of(TOTALS, TOTALS, types.int64, F32, types.int64, types.int64)
def _add_scaled(builder, totals, sums, weight_scales, scale, next_scale):
    """totals + sums, int32 [16, 16], times the scales of the weights' rows and those of the tokens."""
    for t in range(ROWS):
        row = builder.load(pointer(builder, sums, I32.llvm), align=VECTOR)
        token = builder.load(pointer(builder, scale, ir.FloatType()), align=FLOAT)
        factors = builder.fmul(weight_scales, splat_of(builder, token))
        products = builder.sitofp(row, F32.llvm), factors, builder.extract_value(totals, t)
        totals = builder.insert_value(totals, call(builder, "llvm.fma.v16f32", F32.llvm, *products), t)
        sums, scale = builder.add(sums, _long(VECTOR)), builder.add(scale, next_scale)
    return totals


@intrinsic_of(I8, I8)
def _without_offset(builder, halves):
    """Weights of int4 as signed bytes."""
    return builder.sub(halves, ir.Constant(I8.llvm, [INT4_OFFSET] * 4 * LANES))


# --- products -------------------------------------------------------------------------------------------------------

_pack_rows_int4, _pack_groups_int4 = int4_packers(_without_offset)


class Strip(NamedTuple):
    """n groups of columns, from g on, of some tiles, with a byte for each weight: addresses and distances in bytes."""

    weights: Any  # of the groups of the first tile, one after the other
    next_tile: Any
    scales: Any  # of the first group of the first tile
    next_tile_scales: Any
    next_group_scales: Any
    g: Any
    n: Any
    is_first: Any  # whether the outputs are set, and not added to
    ahead: Any  # the weights of the next strip, for the first tile
    next_ahead: Any  # for the next tile
    ahead_bytes: Any  # for each tile


@njit
def rows_times_tokens(out, stride, m: MATRIX, tile, n_tiles, act: ACTIVATION, T):
    """See `cpu_kernels.products.matrix.rows_times_tokens`, for integer weights."""
    groups, packed = m.cols // GROUP, _packed(0)
    _configure(T)
    for first in range(0, n_tiles, TILES):
        n = min(TILES, n_tiles - first)
        for g in range(0, groups, STRIP):
            strip = _strip(packed, m, tile + first, n, g, min(STRIP, groups - g))
            _add_strip(out + first * VECTOR, stride, strip, n, act, T)
    _release(0)


@njit
def _strip(packed, m: MATRIX, tile, n_tiles, g, n):
    """n groups from g on of some tiles of a matrix: where they are stored or, if they are int4, in `packed`."""
    groups, group_bytes = m.cols // GROUP, INT8_GROUP if m.kind == INT8 else INT4_GROUP
    first = tile * groups + g
    after = first + STRIP if g + STRIP < groups else (tile + TILES) * groups
    weights, next_tile = m.weights + first * group_bytes, groups * group_bytes
    if m.kind != INT8:
        for i in range(n_tiles):
            _pack_groups_int4(packed + i * STRIP * INT8_GROUP, weights + i * next_tile, n)
        weights, next_tile = packed, STRIP * INT8_GROUP
    return Strip(
        weights=weights,
        next_tile=next_tile,
        scales=m.scales + first * SCALES,
        next_tile_scales=groups * SCALES,
        next_group_scales=SCALES,
        g=g,
        n=n,
        is_first=g == 0,
        ahead=m.weights + after * group_bytes,
        next_ahead=groups * group_bytes,
        ahead_bytes=STRIP * group_bytes,
    )


@njit
def dense_rows(out, stride, m: MATRIX, block, act: ACTIVATION, T):
    """See `cpu_kernels.products.sparse_ffn.dense_rows`; T is any number of tokens."""
    groups, packed = m.cols // GROUP, _packed(0)
    _configure(T)
    for g in range(0, groups, STRIP):
        strip = _strip_of_rows(packed, m, block, g, min(STRIP, groups - g))
        _add_strip(out, stride, strip, np.int64(TILES), act, T)
    _release(0)


@njit
def _strip_of_rows(packed, m: MATRIX, block, g, n):
    """The rows of n groups of inputs from g on, of a matrix that is stored by input, as four tiles in `packed`."""
    group_bytes = TILES * (INT8_GROUP if m.kind == INT8 else INT4_GROUP)
    first = block * (m.cols // GROUP) + g
    weights, next_tile = m.weights + first * group_bytes, STRIP * INT8_GROUP
    for i in range(n):
        if m.kind == INT8:
            pack_rows_int8(packed + i * INT8_GROUP, next_tile, weights + i * group_bytes)
        else:
            _pack_rows_int4(packed + i * INT8_GROUP, next_tile, weights + i * group_bytes)
    return Strip(
        weights=packed,
        next_tile=next_tile,
        scales=m.scales + first * GROUP_SCALES,
        next_tile_scales=SCALES,
        next_group_scales=GROUP_SCALES,
        g=g,
        n=n,
        is_first=False,
        ahead=weights + n * group_bytes,
        next_ahead=STRIP * group_bytes // TILES,
        ahead_bytes=STRIP * group_bytes // TILES,
    )


@njit
def _configure(T):
    """Configure the tile registers for T tokens: two have only as many rows as there are tokens beside whole tiles."""
    place = _configuration(0)
    _put_configuration(place)
    if T % ROWS:
        put_u8(place + FIRST_ROWS + X_REST, T % ROWS)
        put_u8(place + FIRST_ROWS + SUMS_REST, T % ROWS)
    _load_configuration(place)


@njit
def _add_strip(out, stride, strip, n_tiles, act: ACTIVATION, T):
    """out [T, 16 * n_tiles] += the products of a strip with T tokens, while the next strip comes into the cache."""
    whole = T // ROWS * ROWS
    fetched = strip.ahead_bytes // max(1, T // ROWS) + CACHE_LINE - 1  # for each tile and 16 tokens
    for t in range(0, max(whole, 1), ROWS):
        for i in range(n_tiles):
            ahead = strip.ahead + i * strip.next_ahead + t // ROWS * fetched
            for line in range(0, fetched, CACHE_LINE):
                prefetch(ahead + line)
            if whole:
                _add_whole(out + t * stride + i * VECTOR, stride, strip, i, act, t)
    for i in range(n_tiles if whole < T else 0):
        _add_rest(out + whole * stride + i * VECTOR, stride, strip, i, act, whole, T - whole)


@njit
def _add_whole(out, stride, strip, tile, act: ACTIVATION, t):
    """out [16, 16] += the products of a tile of a strip with 16 tokens from t on."""
    xq, scale, _ = group_of_activation(act, t, strip.g)
    weights = strip.weights + tile * strip.next_tile
    scales, next_scales = strip.scales + tile * strip.next_tile_scales, strip.next_group_scales
    K, next_token = act.cols, act.cols // GROUP * FLOAT
    sums = _sums(0)
    totals = _no_totals(0) if strip.is_first else _load_totals(out, stride)
    _multiply_whole(xq, K, weights)
    for i in range(strip.n):
        _store_whole(sums)
        if i + 1 < strip.n:  # while this product is scaled
            _multiply_whole(xq + (i + 1) * GROUP, K, weights + (i + 1) * INT8_GROUP)
        weight_scales = load_bf16(scales + i * next_scales)
        totals = _add_scaled(totals, sums, weight_scales, scale + i * FLOAT, next_token)
    _store_totals(out, stride, totals)


@njit
def _add_rest(out, stride, strip, tile, act: ACTIVATION, t, tokens):
    """The same for fewer tokens."""
    xq, scale, _ = group_of_activation(act, t, strip.g)
    weights, scales = strip.weights + tile * strip.next_tile, strip.scales + tile * strip.next_tile_scales
    next_token, sums = act.cols // GROUP * FLOAT, _sums(0)
    for j in range(tokens if strip.is_first else 0):
        store(out + j * stride, splat(_f(0)))
    for i in range(strip.n):
        _multiply_rest(xq + i * GROUP, act.cols, weights + i * INT8_GROUP)
        _store_rest(sums)
        weight_scales = load_bf16(scales + i * strip.next_group_scales)
        for j in range(tokens):
            factors = weight_scales * splat(get_f32(scale + i * FLOAT + j * next_token))
            row = out + j * stride
            store(row, fma(to_f32(load_i32(sums + j * VECTOR)), factors, load(row)))
