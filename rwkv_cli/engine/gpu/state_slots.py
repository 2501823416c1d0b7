"""Recurrent states on the device, in numbered slots of one size."""

from __future__ import annotations

from rwkv_cli.config import HEAD_SIZE, ModelConfig
from rwkv_cli.engine.gpu.device_protocol import Device
from rwkv_cli.engine.state import State


class StateSlots:
    """Memory for states. A slot holds shift_att [L, C], wkv [L, H, N, N] key by key, and shift_ffn [L, C]."""

    def __init__(self, gpu: Device, config: ModelConfig, slots: int) -> None:
        """All slots hold the empty state. Raises DeviceError if too little memory is free."""
        self._gpu, self._config, self.slots = gpu, config, slots
        self._memory = gpu.allocate(slots * config.state_bytes)
        gpu.clear(self._memory.address, self._memory.nbytes)

    @property
    def size(self) -> int:
        """The distance from one slot to the next, in floats."""
        return self._config.state_bytes // 4

    def shift_att(self, layer: int) -> int:
        """The address of a layer's [C] in slot 0."""
        return self._memory.address + 4 * layer * self._config.n_embd

    def wkv(self, layer: int) -> int:
        """The address of a layer's [H, N, N] in slot 0."""
        L, C = self._config.n_layer, self._config.n_embd
        return self._memory.address + 4 * C * (L + layer * HEAD_SIZE)

    def shift_ffn(self, layer: int) -> int:
        """The address of a layer's [C] in slot 0."""
        return self.wkv(self._config.n_layer) + 4 * layer * self._config.n_embd

    def store(self, slot: int, state: State) -> None:
        """Copy the host arrays of a state into a slot."""
        for address, part in zip(self._addresses(slot), state.host_arrays, strict=True):
            self._gpu.upload(address, part)
        self._gpu.synchronize()

    def move(self, target: int, source: int) -> None:
        """Copy a slot into another one, on the device."""
        to, of = self._addresses(target)[0], self._addresses(source)[0]
        self._gpu.copy(to, of, self._config.state_bytes)

    def clear(self, slot: int) -> None:
        """Set a slot to the empty state, of a model that has read nothing."""
        self._gpu.clear(self._addresses(slot)[0], self._config.state_bytes)

    def fetch(self, slot: int, state: State) -> None:
        """Copy a slot into the host arrays of a state."""
        for address, part in zip(self._addresses(slot), state.host_arrays, strict=True):
            self._gpu.download(address, part)

    def _addresses(self, slot: int) -> tuple[int, int, int]:
        """Where a slot has its three arrays."""
        offset = 4 * slot * self.size
        return self.shift_att(0) + offset, self.wkv(0) + offset, self.shift_ffn(0) + offset
