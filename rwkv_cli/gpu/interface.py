"""What the operations ask of a device: `rwkv_cli.gpu.device.Gpu` is one, and tests have one without a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

from rwkv_cli.gpu.steps import Step


class DeviceMemory(Protocol):
    """Some bytes of the device, free again when nobody holds this."""

    address: int
    nbytes: int


class Device(Protocol):
    """Memory, and what can be done with it, in the order of the calls."""

    multiprocessors: int

    def allocate(self, nbytes: int) -> DeviceMemory:
        """Bytes of whatever was there before. Raises DeviceError if there are not so many."""
        ...

    def upload(self, address: int, array: NDArray[Any]) -> None:
        """Copy an array that lies in one piece to the device."""
        ...

    def download(self, address: int, array: NDArray[Any]) -> None:
        """Copy from the device into an array that lies in one piece; it is there when this returns."""
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
