"""Recurrent states on the device, in numbered slots, all of one size."""

from __future__ import annotations

from rwkv_cli.config import HEAD_SIZE, ModelConfig
from rwkv_cli.gpu.interface import Device
from rwkv_cli.state import State


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
        """Copy a state into a slot."""
        for address, array in self._places(slot, state):
            self._gpu.upload(address, array)
        self._gpu.synchronize()

    def fetch(self, slot: int, state: State) -> None:
        """Copy a slot into a state."""
        for address, array in self._places(slot, state):
            self._gpu.download(address, array)

    def _places(self, slot: int, state: State):  # type: ignore[no-untyped-def]
        offset = 4 * slot * self.size
        # As it lies in memory a head is key by key already.
        parts = state.shift_att, state.wkv.swapaxes(-1, -2), state.shift_ffn
        addresses = self.shift_att(0), self.wkv(0), self.shift_ffn(0)
        return [(address + offset, part) for address, part in zip(addresses, parts, strict=True)]
