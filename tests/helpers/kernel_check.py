"""What the tests of the CPU kernels share: addresses of arrays, and vector functions that go through whole arrays."""

import numpy as np
from numba import njit

from cpu_kernels.simd import LANES, load, store

FLOAT = 4  # bytes


def address(array: np.ndarray) -> int:
    """The address of a contiguous array."""
    assert array.flags.c_contiguous
    return array.ctypes.data


def floats(*values) -> np.ndarray:
    """Any numbers as float32."""
    return np.array(values, np.float32)


def misaligned(array: np.ndarray) -> np.ndarray:
    """A copy at an odd address, which is not aligned even for a float."""
    room = np.empty(array.nbytes + 64, np.uint8)
    start = -address(room) % 64 + 1
    copy = room[start : start + array.nbytes].view(array.dtype)
    copy[:] = array
    return copy


def loading(load_vector, width):
    """`call(array)`: all elements, of `width` bytes each, as `load_vector` reads them, sixteen at a time."""

    @njit
    def kernel(out, x, n):
        for i in range(0, n, LANES):
            store(out + i * FLOAT, load_vector(x + i * width))

    def call(array):
        assert len(array) % LANES == 0
        assert array.itemsize == width
        out = np.full(len(array), np.nan, np.float32)
        kernel(address(out), address(array), len(array))
        return out

    call.kernel = kernel
    return call


def lanewise(function, n_arguments=1):
    """`call(*arrays)`: a function of one, two or three vectors of floats, applied to all elements of the arrays."""

    @njit
    def unary(out, a, _b, _c, n):
        for i in range(0, n * FLOAT, LANES * FLOAT):
            store(out + i, function(load(a + i)))

    @njit
    def binary(out, a, b, _c, n):
        for i in range(0, n * FLOAT, LANES * FLOAT):
            store(out + i, function(load(a + i), load(b + i)))

    @njit
    def ternary(out, a, b, c, n):
        for i in range(0, n * FLOAT, LANES * FLOAT):
            store(out + i, function(load(a + i), load(b + i), load(c + i)))

    kernel = (unary, binary, ternary)[n_arguments - 1]

    def call(*arrays):
        n = len(arrays[0])
        padded = [np.pad(np.asarray(x, np.float32), (0, -n % LANES)) for x in arrays]
        out = np.full(len(padded[0]), np.nan, np.float32)
        places = [address(x) for x in padded] + [0] * (3 - len(padded))
        kernel(address(out), *places, len(out))
        return out[:n]

    return call


def assert_same_bits(found: np.ndarray, expected: np.ndarray) -> None:
    """Equal to the bit, including the signs of zeros and the payloads of NaNs."""
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(
        found.view(f"u{found.itemsize}"), np.ascontiguousarray(expected).view(f"u{found.itemsize}")
    )
