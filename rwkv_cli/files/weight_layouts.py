"""Weights as a model file stores them: pure functions, from a float32 tensor to stored arrays and back.

Two independent steps, both of which follow from a tensor's role in `rwkv_cli.tensors`. The *type* decides how a number
is stored, see `files.quantization` for the integers:

    fp32   float32
    fp16   float16
    int8   integers from -127 to 127, with one bfloat16 scale for 64 values along the input axis
    int4   integers from 0 to 15, with the same scales
    mixed  of a whole file: int8, but some of the matrices are int4

The *layout* decides the order, so that a kernel reads memory from front to back. R output rows, K input columns:

    vector     unchanged, always float32: norms, token-shift mixes, biases
    rows       emb.weight: row-major, since one row is read; int8 in an int4 file, since it costs no time
    tiles      big matrices: 16 rows interleaved,  [R/16, K/c, 16, c] with c = 4 for integers and 1 for floats; R padded
               to a multiple of 16
    low_rank   the pairs w1 w2, a1 a2, v1 v2, g1 g2: transposed to [out, in], then as tiles with c = 1, in int8 in files
               of integers; the rank padded to a multiple of 16, so that the last group of a row may be shorter
    by_input   ffn.value.weight: by hidden unit, 64 channels at a time,  [R/64, K, 64], so that the rows of hidden units
               that are zero need not be read

The scales of integers follow the same layout with one column for each group: [R/16, ceil(K/64), 16, 1] and
[R/64, K/64, 64].

Two int4 weights share a byte. Of the 64 columns of a group in a tile, the low halves of 8 x 64 bytes hold columns 0 to
31, the high halves columns 32 to 63:  [R/16, K/8, 16, 4]. The 64 channels of by_input are split the same way:
[R/64, K, 32].
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from rwkv_cli import tensors
from rwkv_cli.config import HEAD_SIZE, ModelConfig, Shape
from rwkv_cli.errors import UnsupportedModelError
from rwkv_cli.files.quantization import (
    GROUP,
    INT4_OFFSET,
    Array,
    bf16_to_f32,
    check_range,
    quantize_int4,
    quantize_int8,
)
from rwkv_cli.files.safetensors import DTYPES

__all__ = [
    "CHANNELS",
    "GROUP",
    "INTEGERS",
    "MIXED",
    "SCALE",
    "TILE_ROWS",
    "WEIGHT_TYPES",
    "Layout",
    "Rounder",
    "WeightType",
    "bytes_per_token",
    "can_be_narrow",
    "layout_of",
    "restore",
    "store",
    "stored_bytes",
    "stored_form",
    "type_in_mix",
    "type_of",
    "widened",
]

WeightType = Literal["int8", "int4", "fp16", "fp32", "mixed"]
WEIGHT_TYPES: tuple[WeightType, ...] = ("int8", "int4", "fp16", "fp32")
"""Those that a tensor can have."""

MIXED: WeightType = "mixed"
"""That of a file alone."""

INTEGERS: tuple[WeightType, ...] = ("int8", "int4")

Layout = Literal["vector", "rows", "tiles", "low_rank", "by_input"]

Stored = dict[str, NDArray[Any]]

TILE_ROWS = 16
CHANNELS = 64  # of a block of ffn.value
SCALE_ZEROS = 4  # low bits of low-rank scales that are zero, so that float16 represents the weights exactly
SCALE = ".scale"  # follows the name of the tensor that it scales

_LAYOUTS: Mapping[tensors.Role, Layout] = {
    "vector": "vector",
    "embedding": "rows",
    "matrix": "tiles",
    "low_rank": "low_rank",
    "by_hidden_unit": "by_input",
}
_DTYPES = {"int8": "I8", "int4": "U8", "fp16": "F16", "fp32": "F32"}
_NUMPY: dict[str, type[np.float16 | np.float32]] = {"fp16": np.float16, "fp32": np.float32}


def layout_of(name: str) -> Layout:
    """The layout of an official tensor; "vector" for any other array of a file, such as scales."""
    tensor = tensors.find(name)
    return _LAYOUTS[tensor.role] if tensor else "vector"


def type_of(name: str, weight_type: WeightType) -> WeightType:
    """How a tensor is stored in a file of the given type: what is small or sensitive stays a float."""
    return _type_in(layout_of(name), weight_type)


def type_in_mix(name: str, weight_type: WeightType, narrow: Container[str]) -> WeightType:
    """Like `type_of`, for a file of which `narrow` has the names of the int4 matrices, if it is a mixed one."""
    if weight_type == "mixed":
        weight_type = "int4" if name in narrow else "int8"
    return type_of(name, weight_type)


def can_be_narrow(name: str) -> bool:
    """Whether a tensor is int4 in an int4 file, and may be in a mixed one."""
    return type_of(name, "int4") == "int4"


def _type_in(layout: Layout, weight_type: WeightType) -> WeightType:
    if layout == "vector":
        return "fp32"
    if layout in ("rows", "low_rank") and weight_type == "int4":
        return "int8"
    return weight_type


def stored_form(name: str, shape: Shape, weight_type: WeightType) -> dict[str, tuple[str, Shape]]:
    """Name -> safetensors dtype and shape of everything that `store` gives for a tensor of this shape.

    Raises UnsupportedModelError for sizes that the kernels do not have.
    """
    layout = layout_of(name)
    kind = _type_in(layout, weight_type)
    if layout == "vector":
        head_size = tensors.row_of(name).size_of("N", shape)
        if head_size not in (None, HEAD_SIZE):
            raise UnsupportedModelError(f"{name} shows heads of {head_size}; they should be of {HEAD_SIZE}")
        return {name: ("F32", shape)}
    R, K = shape[::-1] if layout == "low_rank" else shape
    if layout == "low_rank":
        R, K = _padded(R), _padded(K)
    elif K % GROUP or (layout == "by_input" and R % CHANNELS):
        raise UnsupportedModelError(
            f"{name} has the shape {list(shape)}; the length of its rows should be a multiple of {GROUP}"
        )
    arranged = _arranged_shape(layout, R, K, _together(layout, kind))
    form = {name: (_DTYPES[kind], _halved(layout, arranged) if kind == "int4" else arranged)}
    if kind in INTEGERS:
        form[name + SCALE] = ("BF16", _arranged_shape(layout, R, -(-K // GROUP), 1))
    return form


def stored_bytes(config: ModelConfig, weight_type: WeightType, narrow: Container[str] = ()) -> dict[str, int]:
    """The bytes of every array of a model; `narrow` is as for `type_in_mix`."""
    return {
        part: math.prod(form) * DTYPES[dtype].itemsize
        for name, shape in config.tensor_shapes().items()
        for part, (dtype, form) in stored_form(name, shape, type_in_mix(name, weight_type, narrow)).items()
    }


def bytes_per_token(config: ModelConfig, weight_type: WeightType, narrow: Container[str] = ()) -> int:
    """Bytes of memory traffic per decoded token if no hidden unit is zero; `narrow` is as for `type_in_mix`.

    All weights, but only one row of the embedding, and the state, which is read and written.
    """
    sizes = stored_bytes(config, weight_type, narrow)
    embedding = sizes["emb.weight"] + sizes.get("emb.weight" + SCALE, 0)
    return sum(sizes.values()) - embedding + embedding // config.vocab_size + 2 * config.state_bytes


class Rounder(Protocol):
    """How a matrix becomes int4: integers [R, K] and scales [R, K/64], as `quantize_int4` gives them."""

    def __call__(self, name: str, tensor: Array, /) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]: ...


def _nearest(name: str, tensor: Array, /) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:  # noqa: ARG001
    return quantize_int4(tensor)


def store(name: str, tensor: Array, weight_type: WeightType, rounder: Rounder = _nearest) -> Stored:
    """The arrays to store for one tensor, as `stored_form` announces them; the tensor must be finite.

    `rounder` takes the place of rounding to the nearest for what is stored as int4.
    Raises UnsupportedModelError for values beyond the type.
    """
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
        q4, scale = rounder(name, tensor)
        return {name: _pack(layout, _arrange(layout, q4, 4)), name + SCALE: _arrange(layout, scale, 1)}
    check_range(name, tensor, kind)
    return {name: _arrange(layout, tensor.astype(_NUMPY[kind]), 1)}


def restore(name: str, shape: Shape, stored: Stored) -> Array:
    """The inverse of `store`, up to rounding: the float32 tensor of this shape."""
    layout = layout_of(name)
    array = stored[name]
    if layout == "vector":
        return array
    if array.dtype == np.uint8:
        array = widened(name, array)
    flat = _flatten(layout, array)
    if name + SCALE in stored:
        scale = bf16_to_f32(_flatten(layout, stored[name + SCALE]))
        groups = _whole_groups(flat).reshape(*scale.shape, GROUP)
        scaled = np.multiply(groups, scale[..., None], dtype=np.float32)
        flat = scaled.reshape(len(flat), -1)[:, : flat.shape[1]]
    if layout == "low_rank":
        return np.ascontiguousarray(flat.T[: shape[0], : shape[1]], dtype=np.float32)
    return np.ascontiguousarray(flat[: shape[0]], dtype=np.float32)


def widened(name: str, packed: NDArray[np.uint8]) -> NDArray[np.int8]:
    """A stored int4 matrix as it would be stored in int8, with the same scales: not a weight changes."""
    return _unpack(layout_of(name), packed).view(np.int8) - np.int8(INT4_OFFSET)


def _together(layout: Layout, kind: WeightType) -> int:
    """Neighbouring columns of a row that are kept together in a tile: four for an integer dot product."""
    return 4 if kind in INTEGERS and layout != "low_rank" else 1


def _whole_groups(matrix: NDArray[Any]) -> NDArray[Any]:
    """The matrix, padded with columns of zeros to whole groups."""
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
    if missing := _padded(R) - R:
        matrix = np.pad(matrix, ((0, missing), (0, 0)))
    return np.ascontiguousarray(matrix.reshape(shape[0], TILE_ROWS, K // c, c).transpose(0, 2, 1, 3))


def _flatten(layout: Layout, arranged: NDArray[Any]) -> NDArray[Any]:
    """The inverse of `_arrange`, except that padded rows stay."""
    if layout == "rows":
        return arranged
    if layout == "by_input":
        blocks, K, _ = arranged.shape
        return arranged.transpose(0, 2, 1).reshape(blocks * CHANNELS, K)
    tiles, vectors, _, c = arranged.shape
    return arranged.transpose(0, 2, 1, 3).reshape(tiles * TILE_ROWS, vectors * c)


def _halved(layout: Layout, shape: Shape) -> Shape:
    """The shape once two int4 share each byte."""
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
