"""Named pieces of one allocation."""

from __future__ import annotations

from collections.abc import Mapping

from rwkv_cli.engine.gpu.device_protocol import Device

ALIGNMENT = 256
"""Bytes that every piece begins at a multiple of: what the widest accesses and cuBLAS want."""


def aligned(nbytes: int) -> int:
    """Rounded up to a multiple of `ALIGNMENT`."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


class Buffers:
    """Memory of the device, cut into pieces by name."""

    def __init__(self, gpu: Device, sizes: Mapping[str, int]) -> None:
        """`sizes` are in bytes. Raises DeviceError if there is too little memory."""
        self._memory = gpu.allocate(sum(aligned(size) for size in sizes.values()))
        gpu.clear(self._memory.address, self._memory.nbytes)
        self._addresses: dict[str, int] = {}
        address = self._memory.address
        for name, size in sizes.items():
            self._addresses[name] = address
            address += aligned(size)

    def __getitem__(self, name: str) -> int:
        """The address of a piece."""
        return self._addresses[name]
