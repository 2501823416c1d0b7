"""Plain twins of fast or clever code: loops and formulas that can be checked by reading them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rwkv_cli.engine.backends.reference import ReferenceBackend
from rwkv_cli.files import weight_layouts
from rwkv_cli.files.quantization import bf16_to_f32, f32_to_bf16
from rwkv_cli.files.weight_source import WeightSource

Array = NDArray[np.float32]

GROUP = 64


def quantize_group(values: list[float]) -> tuple[list[int], float]:
    """Symmetric int8 with a bfloat16 scale: the integers and the scale of one group of float32 values."""
    largest = max(abs(value) for value in values)
    scale = bf16_not_below(float(np.float32(largest) / np.float32(127)))
    if scale == 0:
        return [0] * len(values), 0.0
    return [round(float(np.float32(value) / np.float32(scale))) for value in values], scale


def bf16_not_below(x: float, zeros: int = 0) -> float:
    """The least bfloat16 that is not below a float32 x >= 0, found by counting up.

    The last `zeros` bits of its significand are zero.
    """
    step = 0x10000 << zeros
    bits = int(np.float32(x).view(np.uint32)) // step * step
    while np.uint32(bits).view(np.float32) < x:
        bits += step
    return float(np.uint32(bits).view(np.float32))


def position_in_tiles(row: int, column: int, columns: int, c: int) -> int:
    """The flat index of an element in the layout "tiles" [R/16, K/c, 16, c]."""
    return ((row // 16 * (columns // c) + column // c) * 16 + row % 16) * c + column % c


def position_by_input(row: int, column: int, columns: int) -> int:
    """The flat index of an element in the layout "by_input" [R/64, K, 64]."""
    return (row // 64 * columns + column) * 64 + row % 64


def round_to_int8(x: Array) -> Array:
    """An activation as the integer kernels see it: each group of 64 a multiple of its largest magnitude / 127."""
    groups = x.reshape(-1, GROUP)
    largest = np.abs(groups).max(axis=1, keepdims=True)
    inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
    rounded: Array = np.rint(groups * inverse) * (largest / np.float32(127))
    return rounded.reshape(-1)


class _IntegerMatrix(np.ndarray[tuple[int, ...], np.dtype[np.float32]]):
    """A matrix that rounds the vectors that it is multiplied by."""

    def __matmul__(self, x: Array) -> Array:  # type: ignore[override]  # only this one of NumPy's overloads is used
        product: Array = np.asarray(self) @ round_to_int8(x)
        return product


class Int8Reference(ReferenceBackend):
    """The reference with the rounding of the int8 kernels: of the inputs of all matrices except the low-rank ones."""

    def __init__(self, source: WeightSource) -> None:
        super().__init__(source)
        for name, weight in self.weights.items():
            if weight_layouts.layout_of(name) in ("tiles", "by_input"):
                self.weights[name] = weight.view(_IntegerMatrix)
        self.blocks = [self._under(f"blocks.{i}.") for i in range(self.config.n_layer)]


INT4_FACTORS = (*np.linspace(0.7, 1.2, 16), *-np.linspace(0.85, 1.35, 16))  # tried, times extreme / -8


def quantize_int4(groups: Array) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
    """As `cpu_kernels.quantize.int4`: integers from 0 to 15 [n, 64] and bfloat16 scales [n] of groups [n, 64]."""
    extreme = np.take_along_axis(groups, np.abs(groups).argmax(axis=1)[:, None], axis=1)
    parts = np.divide(groups, extreme, out=np.zeros_like(groups), where=extreme != 0)
    best, least = np.zeros_like(extreme), np.square(parts).sum(axis=1, keepdims=True)
    for factor in INT4_FACTORS:
        candidate = bf16_to_f32(f32_to_bf16(extreme * np.float32(factor / -8)))
        step = np.divide(candidate, extreme, out=np.zeros_like(candidate), where=extreme != 0)
        error = np.square(_rounded_int4(parts, step) * step - parts).sum(axis=1, keepdims=True)
        better = error < least
        best, least = np.where(better, candidate, best), np.where(better, error, least)
    return (_rounded_int4(groups, best) + 8).astype(np.uint8), f32_to_bf16(best)[:, 0]


def _rounded_int4(groups: Array, scale: Array) -> Array:
    rounded: Array = np.clip(np.rint(groups / np.where(scale != 0, scale, np.float32(np.inf))), -8, 7)
    return rounded
