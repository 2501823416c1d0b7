"""Rounding weights: pure functions between float32 and int8, int4 and bfloat16. Storing them is for others.

Sixty-four neighbours along the input axis are a group, and share a bfloat16 scale:

    int8   symmetric: w = q * scale with q in [-127, 127]
    int4   symmetric: w = (q - 8) * scale with q in [0, 15]; scales are searched for the least error; may be negative
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from rwkv_cli import machine
from rwkv_cli.errors import DeviceError, UnsupportedModelError

Array = NDArray[np.float32]

GROUP = 64
"""Values that share a scale: the quantization group, which has nothing to do with the head size."""

INT4_OFFSET = 8

_LARGEST = {
    "fp16": float(np.finfo(np.float16).max),
    "bf16": 3.3895e38,
    "fp32": float(np.finfo(np.float32).max),
}
# Scales to try, in parts of the value of largest magnitude.
_INT4_FACTORS = (
    np.concatenate([np.linspace(0.7, 1.2, 16), -np.linspace(0.85, 1.35, 16)]) / -INT4_OFFSET
).astype(np.float32)
_AT_ONCE = 16  # groups, of the kernel for int4
_VALUES_AT_ONCE = 1 << 19  # bounds the temporary arrays


def quantize_int8(w: Array, zeros: int = 0) -> tuple[NDArray[np.int8], NDArray[np.uint16]]:
    """Round w [R, K] to int8 [R, K] and bfloat16 scales [R, K/64] (as uint16): w = q * scale, up to rounding.

    The scale of a group is its largest magnitude / 127, rounded up to a bfloat16 whose `zeros` lowest bits are zero
    before the division, so that the rounding of the scale itself costs nothing. A group of zeros has the scale 0.
    """
    R, K = w.shape
    q, scale = np.empty((R, K), np.int8), np.empty((R, K // GROUP), np.uint16)

    def quantize_rows(rows: slice) -> None:
        groups = w[rows].reshape(-1, K // GROUP, GROUP)
        scale[rows] = f32_to_bf16_up(np.abs(groups).max(axis=2) / np.float32(127), zeros)
        divisor = bf16_to_f32(scale[rows])[:, :, None]
        # A scale that underflows to 0 has no reciprocal: such a group becomes zero.
        rounded = np.divide(groups, np.where(divisor > 0, divisor, np.float32(np.inf)))
        q[rows] = np.rint(rounded, out=rounded).astype(np.int8).reshape(-1, K)

    _by_rows(quantize_rows, R, K)
    return q, scale


def quantize_int4(w: Array) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
    """Round w [R, K] to uint8 [R, K] from 0 to 15 and bfloat16 scales [R, K/64]: w = (q - 8) * scale, up to rounding.

    The value of largest magnitude would map to -8 exactly with the scale value / -8, which may be negative. Scales
    around that one and around its opposite are tried, and the one with the least squared error is taken. Errors are
    relative to the largest magnitude: squares of huge or tiny weights overflow or underflow float32. Raises DeviceError
    if this machine cannot run the kernel.
    """
    R, K = w.shape
    q, scale = np.empty((R, K), np.uint8), np.empty((R, K // GROUP), np.uint16)
    round_groups = _int4_kernel()

    def quantize_rows(rows: slice) -> None:
        found = round_groups(np.ascontiguousarray(w[rows]).reshape(-1, GROUP))
        q[rows], scale[rows] = found[0].reshape(-1, K), found[1].reshape(-1, K // GROUP)

    _by_rows(quantize_rows, R, K)
    return q, scale


def search_int4(groups: Array) -> Array:
    """The scale [n, 1] that `quantize_int4` chooses for each of n groups [n, 64]; exact in bfloat16."""
    return bf16_to_f32(_int4_kernel()(np.ascontiguousarray(groups))[1])[:, None]


def _int4_kernel() -> Callable[[Array], tuple[NDArray[np.uint8], NDArray[np.uint16]]]:
    """A function that rounds contiguous groups [n, 64] to integers [n, 64] and scales [n]. Raises DeviceError."""
    try:
        from cpu_kernels.runtime.aot import kernel
        from cpu_kernels.runtime.compiler import CompilationError
    except (ImportError, ValueError) as error:  # LLVM is broken, or RWKV_CPU_KERNEL is wrong
        raise DeviceError(f"the CPU kernels cannot run: {error}") from None
    try:
        int4 = kernel("quantize.int4")
    except CompilationError as error:
        raise DeviceError(f"the CPU kernels cannot run: {error}") from None

    def round_groups(groups: Array) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
        n = len(groups)
        if n % _AT_ONCE:
            groups = np.pad(groups, ((0, -n % _AT_ONCE), (0, 0)))
        q, scale = np.empty(groups.shape, np.uint8), np.empty(len(groups), np.uint16)
        scratch = np.empty((GROUP + 1, _AT_ONCE), np.float32)
        int4(q, scale, groups, groups.strides[0], len(groups), _INT4_FACTORS, len(_INT4_FACTORS), scratch)
        return q[:n], scale[:n]

    return round_groups


def _by_rows(work: Callable[[slice], None], R: int, K: int) -> None:
    """Call `work` for all rows, in blocks whose temporary arrays fit into caches, on all cores."""
    step = max(1, _VALUES_AT_ONCE // K)
    blocks = [slice(start, start + step) for start in range(0, R, step)]
    threads = min(machine.usable_cores(), len(blocks), machine.MOST_THREADS)
    try:
        if threads > 1:
            with ThreadPoolExecutor(threads) as pool:
                for _ in pool.map(work, blocks):
                    pass
            return
    except RuntimeError:  # the system gives no more threads
        pass
    for block in blocks:
        work(block)


def check_range(name: str, tensor: Array, kind: str) -> None:
    """Raise UnsupportedModelError if a tensor has values beyond fp16, bf16 or fp32."""
    if max(float(tensor.max()), -float(tensor.min())) > _LARGEST[kind]:
        raise UnsupportedModelError(f"{name} has values too large for {kind}; use {{type=fp32}}")


def f32_to_bf16(x: Array) -> NDArray[np.uint16]:
    """The nearest bfloat16, ties to even, as the upper half of its bits; x must be finite."""
    bits = x.view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(
        np.uint16
    )


def f32_to_bf16_up(x: Array, zeros: int = 0) -> NDArray[np.uint16]:
    """The least bfloat16 not below x >= 0 whose `zeros` lowest bits are zero, as the upper half of its bits."""
    dropped = np.uint32(16 + zeros)
    bits = (x.view(np.uint32) + ((np.uint32(1) << dropped) - np.uint32(1))) >> dropped
    return (bits << np.uint32(zeros)).astype(np.uint16)


def bf16_to_f32(bits: NDArray[np.uint16]) -> Array:
    """bfloat16, given as the upper halves of floats, as float32."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
