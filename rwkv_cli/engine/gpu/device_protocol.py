"""What the operations ask of a device: `rwkv_cli.engine.gpu.device.Gpu` is one, and tests have one without a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rwkv_cli.engine.gpu.launch_plan import Step


class DeviceMemory(Protocol):
    """Some bytes of the device, free again when nobody holds this."""

    address: int
    nbytes: int


class Device(Protocol):
    """Memory, and what can be done with it, in the order of the calls."""

    name: str  # what its maker calls it
    multiprocessors: int
    shared_memory: int  # bytes that a multiprocessor has

    def free_memory(self) -> int:
        """Bytes that nobody uses now."""
        ...

    def allocate(self, nbytes: int) -> DeviceMemory:
        """Bytes of whatever was there before. Raises DeviceError if there are not so many."""
        ...

    def upload(self, address: int, array: NDArray[Any]) -> None:
        """Copy an array that lies in one piece to the device."""
        ...

    def download(self, address: int, array: NDArray[Any]) -> None:
        """Copy from the device into an array that lies in one piece; it is there when this returns."""
        ...

    def pinned(self, nbytes: int) -> NDArray[np.uint8]:
        """Bytes of the host that the device copies to and from without detours, as long as the device object is."""
        ...

    def make_current(self) -> None:
        """Have the calls of this thread go to this device; every other thread has to say so as well."""
        ...

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Copy from one place of the device to another."""
        ...

    def clear(self, address: int, nbytes: int) -> None:
        """Zeros."""
        ...

    def synchronize(self) -> None:
        """Wait for everything."""
        ...

    def run(self, steps: Sequence[Step]) -> None:
        """Start them, one after another."""
        ...

    def graph(self, steps: Sequence[Step]) -> Callable[[], None]:
        """A function that starts all of them at once."""
        ...
