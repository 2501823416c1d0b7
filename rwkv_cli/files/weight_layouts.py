"""Weights as a model file stores them: pure functions, from a float32 tensor to stored arrays and back.

Two independent steps. The *type* decides how a number is stored:

    fp32   float32
    fp16   float16
    int8   symmetric: w = q * scale with q in [-127, 127], one bfloat16 scale for 64 values along the input axis
    int4   symmetric: w = (q - 8) * scale with q in [0, 15], the same scales, searched for the least error

The *layout* decides the order, so that a kernel reads memory from front to back. R output rows, K input columns:

    vector     as it is, always float32: norms, token-shift mixes, biases
    rows       emb.weight: row-major, since one row is read; int8 in an int4 file, since it costs no time
    tiles      big matrices: 16 rows interleaved,  [R/16, K/c, 16, c] with c = 4 for integers and 1 for floats; R padded
               to a multiple of 16
    low_rank   the pairs w1 w2, a1 a2, v1 v2, g1 g2: transposed to [out, in], then as tiles with c = 1, in int8 in files
               of integers; the rank padded to a multiple of 16, so that the last group of a row may be shorter
    by_input   ffn.value.weight: by hidden unit, 64 channels at a time,  [R/64, K, 64], so that the rows of hidden units
               that are zero need not be read

The scales of integers follow the same layout with one column for 64: [R/16, ceil(K/64), 16, 1] and [R/64, K/64, 64].

Two int4 weights share a byte. Of the 64 columns of a group in a tile, the low halves of 8 x 64 bytes hold columns 0 to
31, the high halves columns 32 to 63:  [R/16, K/8, 16, 4]. Likewise with the 64 channels of by_input:  [R/64, K, 32].
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from rwkv_cli import machine
from rwkv_cli.config import HEAD_SIZE, ModelConfig, Shape
from rwkv_cli.errors import UnsupportedModelError
from rwkv_cli.files.safetensors import DTYPES

WeightType = Literal["int8", "int4", "fp16", "fp32"]
WEIGHT_TYPES: tuple[WeightType, ...] = get_args(WeightType)

INTEGERS: tuple[WeightType, ...] = ("int8", "int4")

Layout = Literal["vector", "rows", "tiles", "low_rank", "by_input"]

Array = NDArray[np.float32]
Stored = dict[str, NDArray[Any]]

GROUP = 64  # values that share a scale
INT4_OFFSET = 8
TILE_ROWS = 16
CHANNELS = 64  # of a block of ffn.value
SCALE_ZEROS = 4  # of the low bits of low-rank maps' scales, so that float16 has their weights exactly
SCALE = ".scale"  # follows the name of the tensor that it scales

_LOW_RANK = re.compile(r"\.att\.[wavg][12]$")
_DTYPES = {"int8": "I8", "int4": "U8", "fp16": "F16", "fp32": "F32"}
_NUMPY: dict[str, type[np.float16 | np.float32]] = {"fp16": np.float16, "fp32": np.float32}
_INT4_FACTORS = (*np.linspace(0.7, 1.2, 16), *-np.linspace(0.85, 1.35, 16))  # tried, times extreme / -8
_VALUES_AT_ONCE = 1 << 19  # bounds the temporary arrays of quantization


def layout_of(name: str) -> Layout:
    """Where a tensor belongs, by its official name."""
    if name == "emb.weight":
        return "rows"
    if name.endswith("ffn.value.weight"):
        return "by_input"
    if _LOW_RANK.search(name):
        return "low_rank"
    if name == "head.weight" or name.endswith(
        ("receptance.weight", "key.weight", "att.value.weight", "output.weight")
    ):
        return "tiles"
    return "vector"


def type_of(name: str, weight_type: WeightType) -> WeightType:
    """How a tensor is stored in a file of the given type: what is small or sensitive stays a float."""
    layout = layout_of(name)
    if layout == "vector":
        return "fp32"
    if layout in ("rows", "low_rank") and weight_type == "int4":
        return "int8"
    return weight_type


def stored_form(name: str, shape: Shape, weight_type: WeightType) -> dict[str, tuple[str, Shape]]:
    """Name -> safetensors dtype and shape of everything that `store` gives for a tensor of this shape.

    Raises UnsupportedModelError for sizes that the kernels do not have.
    """
    layout, kind = layout_of(name), type_of(name, weight_type)
    if name.endswith("att.r_k") and shape[1] != HEAD_SIZE:
        raise UnsupportedModelError(f"{name} shows heads of {shape[1]}; they should be of {HEAD_SIZE}")
    if layout == "vector":
        return {name: ("F32", shape)}
    R, K = shape[::-1] if layout == "low_rank" else shape
    if layout == "low_rank":
        R, K = _padded(R), _padded(K)
    elif K % GROUP or (layout == "by_input" and R % CHANNELS):
        raise UnsupportedModelError(
            f"{name} has the shape {list(shape)}; its rows should be a multiple of {GROUP} long"
        )
    arranged = _arranged_shape(layout, R, K, _together(layout, kind))
    form = {name: (_DTYPES[kind], _halved(layout, arranged) if kind == "int4" else arranged)}
    if kind in INTEGERS:
        form[name + SCALE] = ("BF16", _arranged_shape(layout, R, -(-K // GROUP), 1))
    return form


def stored_bytes(config: ModelConfig, weight_type: WeightType) -> dict[str, int]:
    """The bytes of every array of a model."""
    return {
        part: math.prod(form) * DTYPES[dtype].itemsize
        for name, shape in config.tensor_shapes().items()
        for part, (dtype, form) in stored_form(name, shape, weight_type).items()
    }


def bytes_per_token(config: ModelConfig, weight_type: WeightType) -> int:
    """Bytes that decoding a token moves if no hidden unit is zero.

    All weights, but of the embedding one row, and the state, which is read and written.
    """
    sizes = stored_bytes(config, weight_type)
    embedding = sizes["emb.weight"] + sizes.get("emb.weight" + SCALE, 0)
    return sum(sizes.values()) - embedding + embedding // config.vocab_size + 2 * config.state_bytes


def store(name: str, tensor: Array, weight_type: WeightType) -> Stored:
    """The arrays to store for one tensor, as `stored_form` announces them; the tensor must be finite."""
    layout, kind = layout_of(name), type_of(name, weight_type)
    if layout == "vector":
        return {name: tensor}
    if layout == "low_rank":
        R, K = tensor.T.shape
        tensor = np.pad(tensor.T, ((0, _padded(R) - R), (0, _padded(K) - K)))
    if kind == "int8":
        q, scale = quantize_int8(_whole_groups(tensor), SCALE_ZEROS if layout == "low_rank" else 0)
        q = _arrange(layout, q[:, : tensor.shape[1]], _together(layout, kind))
        return {name: q, name + SCALE: _arrange(layout, scale, 1)}
    if kind == "int4":
        q4, scale = quantize_int4(tensor)
        return {name: _pack(layout, _arrange(layout, q4, 4)), name + SCALE: _arrange(layout, scale, 1)}
    largest = float(np.finfo(_NUMPY[kind]).max)
    if max(tensor.max(), -tensor.min()) > largest:
        raise UnsupportedModelError(f"{name} holds values too large for {kind}; use --type fp32")
    return {name: _arrange(layout, tensor.astype(_NUMPY[kind]), 1)}


def restore(name: str, shape: Shape, stored: Stored) -> Array:
    """The float32 tensor of this shape from what `store` gave: its inverse, but for the rounding."""
    layout = layout_of(name)
    array = stored[name]
    if layout == "vector":
        return array
    if array.dtype == np.uint8:
        array = _unpack(layout, array).view(np.int8) - np.int8(INT4_OFFSET)
    flat = _flatten(layout, array)
    if name + SCALE in stored:
        scale = bf16_to_f32(_flatten(layout, stored[name + SCALE]))
        groups = _whole_groups(flat).reshape(*scale.shape, GROUP)
        scaled = np.multiply(groups, scale[..., None], dtype=np.float32)
        flat = scaled.reshape(len(flat), -1)[:, : flat.shape[1]]
    if layout == "low_rank":
        return np.ascontiguousarray(flat.T[: shape[0], : shape[1]], dtype=np.float32)
    return np.ascontiguousarray(flat[: shape[0]], dtype=np.float32)


def quantize_int8(w: Array, zeros: int = 0) -> tuple[NDArray[np.int8], NDArray[np.uint16]]:
    """Round w [R, K] to int8 [R, K] and bfloat16 scales [R, K/64] (as uint16): w = q * scale, but for the rounding.

    The scale of a group is its largest magnitude / 127, rounded up to a bfloat16 that ends in so many zeros before the
    division, so that the scale's own rounding is no error. A group of zeros has the scale 0.
    """
    R, K = w.shape
    q, scale = np.empty((R, K), np.int8), np.empty((R, K // GROUP), np.uint16)

    def quantize_rows(rows: slice) -> None:
        groups = w[rows].reshape(-1, K // GROUP, GROUP)
        scale[rows] = f32_to_bf16_up(np.abs(groups).max(axis=2) / np.float32(127), zeros)
        divisor = bf16_to_f32(scale[rows])[:, :, None]
        # Too small a number for a float has no reciprocal either: such a group is zero.
        rounded = np.divide(groups, np.where(divisor > 0, divisor, np.float32(np.inf)))
        q[rows] = np.rint(rounded, out=rounded).astype(np.int8).reshape(-1, K)

    _by_rows(quantize_rows, R, K)
    return q, scale


def quantize_int4(w: Array) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
    """Round w [R, K] to uint8 [R, K] from 0 to 15 and bfloat16 scales [R, K/64]: w = (q - 8) * scale, but for rounding.

    The value of largest magnitude would map to -8 exactly with the scale value / -8, which may be negative. Scales
    around that one and around its opposite are tried, and the one with the least squared error is taken.
    """
    R, K = w.shape
    q, scale = np.empty((R, K), np.uint8), np.empty((R, K // GROUP), np.uint16)

    def quantize_rows(rows: slice) -> None:
        groups = w[rows].reshape(-1, GROUP)
        best = _search_int4(groups)
        rounded = _round_int4(groups, best, np.empty_like(groups))
        q[rows] = (rounded + INT4_OFFSET).astype(np.uint8).reshape(-1, K)
        scale[rows] = f32_to_bf16(best).reshape(-1, K // GROUP)

    _by_rows(quantize_rows, R, K)
    return q, scale


def _search_int4(groups: Array) -> Array:
    """The scale [n, 1] for each of n groups [n, 64] that leaves the least squared error; exact in bfloat16."""
    extreme = np.take_along_axis(groups, np.abs(groups).argmax(axis=1)[:, None], axis=1)
    # Errors are compared as parts of the largest magnitude: squares of huge or tiny weights are no floats.
    parts = np.divide(groups, extreme, out=np.zeros_like(groups), where=extreme != 0)
    best, least = np.zeros_like(extreme), np.square(parts).sum(axis=1, keepdims=True)
    work = np.empty_like(parts)
    for factor in _INT4_FACTORS:
        candidate = bf16_to_f32(f32_to_bf16(extreme * np.float32(factor / -INT4_OFFSET)))
        step = np.divide(candidate, extreme, out=np.zeros_like(candidate), where=extreme != 0)
        off = _round_int4(parts, step, work)
        off *= step
        off -= parts
        error = np.square(off, out=off).sum(axis=1, keepdims=True)
        better = error < least
        best, least = np.where(better, candidate, best), np.where(better, error, least)
    return best


def _by_rows(work: Callable[[slice], None], R: int, K: int) -> None:
    """Call `work` for all rows, some at a time, so that temporary arrays fit into caches; on all cores."""
    some = max(1, _VALUES_AT_ONCE // K)
    blocks = [slice(start, start + some) for start in range(0, R, some)]
    threads = min(machine.usable_cores(), len(blocks), machine.MOST_THREADS)
    if threads == 1:
        for block in blocks:
            work(block)
        return
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(work, blocks):
            pass


def _round_int4(groups: Array, scale: Array, out: Array) -> Array:
    """groups / scale, rounded and cut to [-8, 7], into `out`; 0 where the scale is."""
    np.divide(groups, np.where(scale != 0, scale, np.float32(np.inf)), out=out)
    np.rint(out, out=out)
    np.maximum(out, np.float32(-INT4_OFFSET), out=out)
    return np.minimum(out, np.float32(INT4_OFFSET - 1), out=out)


def f32_to_bf16(x: Array) -> NDArray[np.uint16]:
    """The nearest bfloat16, ties to even, as the upper half of its bits; x must be finite."""
    bits = x.view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(
        np.uint16
    )


def f32_to_bf16_up(x: Array, zeros: int = 0) -> NDArray[np.uint16]:
    """The least bfloat16 not below x >= 0 that ends in so many zeros, as the upper half of its bits."""
    dropped = np.uint32(16 + zeros)
    bits = (x.view(np.uint32) + ((np.uint32(1) << dropped) - np.uint32(1))) >> dropped
    return (bits << np.uint32(zeros)).astype(np.uint16)


def bf16_to_f32(bits: NDArray[np.uint16]) -> Array:
    """bfloat16, given as the upper halves of floats, as float32."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _together(layout: Layout, kind: WeightType) -> int:
    """How many neighbouring columns of a row are kept together in a tile: four for an integer dot product."""
    return 4 if kind in INTEGERS and layout != "low_rank" else 1


def _whole_groups(matrix: NDArray[Any]) -> NDArray[Any]:
    """With zeros behind its columns, so that all groups are of the same length."""
    missing = -matrix.shape[1] % GROUP
    return np.pad(matrix, ((0, 0), (0, missing))) if missing else matrix


def _padded(rows: int) -> int:
    return rows + -rows % TILE_ROWS


def _arranged_shape(layout: Layout, R: int, K: int, c: int) -> Shape:
    if layout == "rows":
        return (R, K)
    if layout == "by_input":
        return (R // CHANNELS, K, CHANNELS)
    return (_padded(R) // TILE_ROWS, K // c, TILE_ROWS, c)


def _arrange(layout: Layout, matrix: NDArray[Any], c: int) -> NDArray[Any]:
    """A matrix [R, K] in the order of its layout, with c neighbouring columns kept together in a tile."""
    R, K = matrix.shape
    shape = _arranged_shape(layout, R, K, c)
    if layout == "rows":
        return matrix
    if layout == "by_input":
        return np.ascontiguousarray(matrix.reshape(-1, CHANNELS, K).transpose(0, 2, 1))
    matrix = np.pad(matrix, ((0, _padded(R) - R), (0, 0)))
    return np.ascontiguousarray(matrix.reshape(shape[0], TILE_ROWS, K // c, c).transpose(0, 2, 1, 3))


def _flatten(layout: Layout, arranged: NDArray[Any]) -> NDArray[Any]:
    """The inverse of `_arrange`, but for padded rows."""
    if layout == "rows":
        return arranged
    if layout == "by_input":
        blocks, K, _ = arranged.shape
        return arranged.transpose(0, 2, 1).reshape(blocks * CHANNELS, K)
    tiles, vectors, _, c = arranged.shape
    return arranged.transpose(0, 2, 1, 3).reshape(tiles * TILE_ROWS, vectors * c)


def _halved(layout: Layout, shape: Shape) -> Shape:
    """The shape after two int4 were put into each byte."""
    if layout == "by_input":
        return (*shape[:2], shape[2] // 2)
    return (shape[0], shape[1] // 2, *shape[2:])


def _pack(layout: Layout, arranged: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Put two int4 into each byte, see the top of this file."""
    if layout == "tiles":  # [R/16, K/64, 16 quads of columns, 64 bytes]
        groups = arranged.reshape(arranged.shape[0], -1, 2, GROUP // 8, TILE_ROWS * 4)
    else:
        groups = arranged.reshape(*arranged.shape[:2], 2, -1)
    halves = np.moveaxis(groups, 2, 0)
    return np.ascontiguousarray(halves[0] | (halves[1] << np.uint8(4))).reshape(
        _halved(layout, arranged.shape)
    )


def _unpack(layout: Layout, packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The inverse of `_pack`."""
    if layout == "tiles":
        groups = packed.reshape(packed.shape[0], -1, GROUP // 8, TILE_ROWS * 4)
        both = np.stack([groups & np.uint8(15), groups >> np.uint8(4)], axis=2)
        return both.reshape(packed.shape[0], packed.shape[1] * 2, *packed.shape[2:])
    return np.concatenate([packed & np.uint8(15), packed >> np.uint8(4)], axis=2)
