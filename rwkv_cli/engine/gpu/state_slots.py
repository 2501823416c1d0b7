"""Recurrent states on the device, in numbered slots, all of one size."""

from __future__ import annotations

import numpy as np

from rwkv_cli.config import HEAD_SIZE, ModelConfig
from rwkv_cli.engine.gpu.device_protocol import Device
from rwkv_cli.engine.state import State


class StateMemory:
    """Room for some states. In a slot lie shift_att [L, C], wkv [L, H, N, N] key by key, and shift_ffn [L, C]."""

    def __init__(self, gpu: Device, config: ModelConfig, slots: int) -> None:
        self._gpu, self._config, self.slots = gpu, config, slots
        self._memory = gpu.allocate(slots * config.state_bytes)
        gpu.clear(self._memory.address, self._memory.nbytes)

    @property
    def size(self) -> int:
        """Floats from one slot to the next."""
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
        """Copy the arrays of a state into a slot."""
        parts = [np.ascontiguousarray(part) for part in state.host_arrays]
        for address, part in zip(self._addresses(slot), parts, strict=True):
            self._gpu.upload(address, part)
        self._gpu.synchronize()

    def clear(self, slot: int) -> None:
        """The state of a model that has read nothing, in a slot."""
        self._gpu.clear(self._addresses(slot)[0], self._config.state_bytes)

    def fetch(self, slot: int, state: State) -> None:
        """Copy a slot into the arrays of a state."""
        for address, part in zip(self._addresses(slot), state.host_arrays, strict=True):
            whole = np.ascontiguousarray(part)  # itself, unless somebody has put another array into the state
            self._gpu.download(address, whole)
            if whole is not part:
                part[...] = whole

    def _addresses(self, slot: int) -> tuple[int, int, int]:
        """Of the three arrays."""
        offset = 4 * slot * self.size
        return self.shift_att(0) + offset, self.wkv(0) + offset, self.shift_ffn(0) + offset
