"""What the operations ask of a device. `rwkv_cli.engine.gpu.device.Gpu` is one; tests have one without a GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rwkv_cli.engine.gpu.launch_plan import Step

ALIGNMENT = 256
"""Bytes that the addresses of `Buffers` are multiples of: enough for the widest accesses and for cuBLAS."""


class DeviceMemory(Protocol):
    """Bytes of the device, which are freed with this object."""

    address: int
    nbytes: int


class Device(Protocol):
    """Memory and the work on it, which is done in the order of the calls."""

    name: str  # the vendor's name for it
    multiprocessors: int
    shared_memory: int  # bytes of each multiprocessor

    def free_memory(self) -> int:
        """Bytes that are free now."""
        ...

    def allocate(self, nbytes: int) -> DeviceMemory:
        """Allocate uninitialised memory. Raises DeviceError if too little is free."""
        ...

    def upload(self, address: int, array: NDArray[Any]) -> None:
        """Copy a C-contiguous array to the device; it must not change before the copy is done."""
        ...

    def download(self, address: int, array: NDArray[Any]) -> None:
        """Copy from the device into a C-contiguous array; blocks until it is there."""
        ...

    def pinned(self, nbytes: int) -> NDArray[np.uint8]:
        """Page-locked host memory, which copies are fastest from and to; freed with the device object."""
        ...

    def make_current(self) -> None:
        """Make this the device of the calling thread, which every thread has to do before it calls anything else."""
        ...

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Copy from one address of the device to another."""
        ...

    def clear(self, address: int, nbytes: int) -> None:
        """Fill with zero bytes."""
        ...

    def synchronize(self) -> None:
        """Block until all queued work has finished."""
        ...

    def run(self, steps: Sequence[Step]) -> None:
        """Queue steps, one after another."""
        ...

    def graph(self, steps: Sequence[Step]) -> Callable[[], None]:
        """Record steps as a graph: a function that queues it."""
        ...


class Buffers:
    """One allocation of a device, divided into named buffers."""

    def __init__(self, gpu: Device, sizes: Mapping[str, int]) -> None:
        """Buffers of these sizes in bytes, filled with zeros. Raises DeviceError if too little memory is free."""
        self._memory = gpu.allocate(sum(aligned(size) for size in sizes.values()))
        gpu.clear(self._memory.address, self._memory.nbytes)
        self._addresses: dict[str, int] = {}
        address = self._memory.address
        for name, size in sizes.items():
            self._addresses[name] = address
            address += aligned(size)

    def __getitem__(self, name: str) -> int:
        """The address of a buffer."""
        return self._addresses[name]


def aligned(nbytes: int) -> int:
    """Rounded up to a multiple of `ALIGNMENT`."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
