"""What the tests of the CPU kernels share: addresses of arrays, and vector functions that go through whole arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from cpu_kernels.abi import LANES
from cpu_kernels.simd import load, store

Floats = NDArray[np.float32]
VectorFunction = Callable[..., Any]
"""A function for compiled code: its arguments and result are of Numba's own types."""

FLOAT = 4  # bytes


def address(array: NDArray[Any]) -> int:
    """The address of a contiguous array."""
    assert array.flags.c_contiguous
    return array.ctypes.data


def floats(*values: float) -> Floats:
    """Any numbers as float32."""
    return np.array(values, np.float32)


def misaligned(array: NDArray[Any]) -> NDArray[Any]:
    """A copy at an odd address, which is not aligned even for a float."""
    memory = np.empty(array.nbytes + 64, np.uint8)
    start = -address(memory) % 64 + 1
    copy: NDArray[Any] = memory[start : start + array.nbytes].view(array.dtype)
    copy[:] = array
    return copy


class Loading:
    """Reads arrays [n] by a function that loads a vector, sixteen elements at a time."""

    def __init__(self, load_vector: VectorFunction, width: int) -> None:
        self.width = width

        def kernel(out: int, x: int, n: int) -> None:
            for i in range(0, n, LANES):
                store(out + i * FLOAT, load_vector(x + i * width))

        self.kernel = njit(kernel)

    def __call__(self, array: NDArray[Any]) -> Floats:
        assert len(array) % LANES == 0
        assert array.itemsize == self.width
        out = np.full(len(array), np.nan, np.float32)
        self.kernel(address(out), address(array), len(array))
        return out


def loading(load_vector: VectorFunction, width: int) -> Loading:
    """`call(array)`: all elements, of `width` bytes each, as `load_vector` reads them."""
    return Loading(load_vector, width)


def lanewise(function: VectorFunction, n_arguments: int = 1) -> Callable[..., Floats]:
    """`call(*arrays)`: a function of one, two or three vectors of floats, applied to all elements of the arrays."""

    def unary(out: int, a: int, _b: int, _c: int, n: int) -> None:
        for i in range(0, n * FLOAT, LANES * FLOAT):
            store(out + i, function(load(a + i)))

    def binary(out: int, a: int, b: int, _c: int, n: int) -> None:
        for i in range(0, n * FLOAT, LANES * FLOAT):
            store(out + i, function(load(a + i), load(b + i)))

    def ternary(out: int, a: int, b: int, c: int, n: int) -> None:
        for i in range(0, n * FLOAT, LANES * FLOAT):
            store(out + i, function(load(a + i), load(b + i), load(c + i)))

    kernel = njit((unary, binary, ternary)[n_arguments - 1])

    def call(*arrays: ArrayLike) -> Floats:
        inputs = [np.asarray(x, np.float32) for x in arrays]
        n = len(inputs[0])
        padded = [np.pad(x, (0, -n % LANES)) for x in inputs]
        out = np.full(len(padded[0]), np.nan, np.float32)
        addresses = [address(x) for x in padded] + [0] * (3 - len(padded))
        kernel(address(out), *addresses, len(out))
        return out[:n]

    return call


def assert_same_bits(found: NDArray[Any], expected: NDArray[Any]) -> None:
    """Equal to the bit, including the signs of zeros and the payloads of NaNs."""
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(
        found.view(f"u{found.itemsize}"), np.ascontiguousarray(expected).view(f"u{found.itemsize}")
    )
