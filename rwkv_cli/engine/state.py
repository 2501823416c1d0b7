"""The recurrent state: all that a model remembers of what it has read, in a size that never changes."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rwkv_cli.config import ModelConfig, Shape
from rwkv_cli.engine import heat_map, state_arrays
from rwkv_cli.errors import UsageError
from rwkv_cli.reporting import format_size

Array = NDArray[np.float32]


class StateOwner(Protocol):
    """A backend with memory of its own, in which it keeps the values of a state between its calls."""

    def evict(self, state: State) -> None:
        """Copy the values of a state into its host arrays and forget it; nothing if it is not resident here."""
        ...

    def snapshot(self, state: State) -> State | None:
        """An independent copy of a state that stays resident; None for one that is not resident here."""
        ...


class State:
    """What a model carries from one token to the next, in float32 whatever the type of its weights.

    A backend may keep the values where it computes (`owner`). Reading an array copies them to the host first; it may
    then be changed in place. An array that was read before a backend advanced the state is stale: read it again.
    """

    PARTS = ("shift_att", "wkv", "shift_ffn")

    def __init__(self, shift_att: Array, wkv: Array, shift_ffn: Array) -> None:
        """Arrays [L, C], [L, H, N, N] and [L, C], which are not copied if their layout is right.

        Raises UsageError, which names the array, for a wrong shape or a type that is not float32.
        """
        if wkv.ndim != 4 or 0 in wkv.shape or wkv.shape[2] != wkv.shape[3]:
            raise UsageError(f"wkv has the shape {list(wkv.shape)}; it must be [layers, heads, N, N]")
        L, H, N = wkv.shape[:3]
        self._shapes: dict[str, Shape] = {"shift_att": (L, H * N), "wkv": wkv.shape, "shift_ffn": (L, H * N)}
        self.owner: StateOwner | None = None  # who has the current values, if the host arrays are stale
        self._shift_att = self._checked("shift_att", shift_att)
        self._wkv = self._checked("wkv", wkv)
        self._shift_ffn = self._checked("shift_ffn", shift_ffn)

    def _checked(self, part: str, values: Array) -> Array:
        """`values` in the memory layout that kernels take. Raises UsageError for another shape or type."""
        if values.shape != self._shapes[part]:
            raise UsageError(
                f"{part} has the shape {list(values.shape)}; it must be {list(self._shapes[part])}"
            )
        if values.dtype != np.float32:
            raise UsageError(f"{part} has the type {values.dtype}; it must be float32")
        if part != "wkv":
            return np.ascontiguousarray(values)
        # In memory a head's values for one key are contiguous: kernels then compute them lane by lane.
        return np.ascontiguousarray(values.swapaxes(-1, -2)).swapaxes(-1, -2)

    @classmethod
    def zeros(cls, config: ModelConfig) -> State:
        """The state of a model that has read nothing."""
        L, C, H, N = config.n_layer, config.n_embd, config.n_head, config.head_size
        return cls(
            shift_att=np.zeros((L, C), np.float32),
            wkv=np.zeros((L, H, N, N), np.float32).swapaxes(-1, -2),
            shift_ffn=np.zeros((L, C), np.float32),
        )

    @classmethod
    def load(cls, path: str | Path) -> State:
        """The state in a file that `save` wrote, or in a state file; exact.

        Raises StateError for a file that is damaged or of another kind, UsageError for arrays of a wrong shape.
        """
        return cls(**state_arrays.read(Path(path), cls.PARTS))

    def save(self, path: str | Path) -> None:
        """Write the three arrays into a safetensors file, all or nothing. Raises StorageError.

        The file does not say which model they belong to: a `SavedState` does, in `state_file.save`.
        """
        state_arrays.write(Path(path), {part: getattr(self, part) for part in self.PARTS})

    @property
    def shift_att(self) -> Array:
        """The last token's normalised input of each time mix [L, C] (token shift)."""
        self.to_host()
        return self._shift_att

    @shift_att.setter
    def shift_att(self, values: Array) -> None:
        self.to_host()
        self._shift_att = self._checked("shift_att", values)

    @property
    def wkv(self) -> Array:
        """The associative memory of each head [L, H, N, N], row = value index, column = key index."""
        self.to_host()
        return self._wkv

    @wkv.setter
    def wkv(self, values: Array) -> None:
        self.to_host()
        self._wkv = self._checked("wkv", values)

    @property
    def shift_ffn(self) -> Array:
        """The last token's normalised input of each channel mix [L, C] (token shift)."""
        self.to_host()
        return self._shift_ffn

    @shift_ffn.setter
    def shift_ffn(self, values: Array) -> None:
        self.to_host()
        self._shift_ffn = self._checked("shift_ffn", values)

    def to_host(self) -> None:
        """Copy the values to host memory if a device holds them. Raises DeviceError if that fails."""
        if owner := self.owner:
            owner.evict(self)

    @property
    def host_arrays(self) -> tuple[Array, Array, Array]:
        """The host arrays as they are in memory, a head key by key, stale or not: for an owner."""
        return self._shift_att, self._wkv.swapaxes(-1, -2), self._shift_ffn

    def fits(self, config: ModelConfig) -> bool:
        """Whether it is that of a model of these sizes."""
        shape = (config.n_layer, config.n_head, config.head_size, config.head_size)
        return self._shapes["wkv"] == shape

    def check_fits(self, config: ModelConfig) -> None:
        """Raise UsageError unless it is that of a model of these sizes: kernels would write past a smaller one."""
        if not self.fits(config):
            L, H, N = self._shapes["wkv"][:3]
            raise UsageError(
                f"the state belongs to a model of another shape: it has {L} layers of {H} heads of {N}, and this model "
                f"has {config.n_layer} of {config.n_head} of {config.head_size}"
            )

    @property
    def is_empty(self) -> bool:
        """Whether nothing was read: all values are zero."""
        return not (self.wkv.any() or self.shift_att.any() or self.shift_ffn.any())

    def __repr__(self) -> str:
        L, H, N = self._shapes["wkv"][:3]
        return f"<State: {L} layers of {H} heads of {N}×{N}, {format_size(self.nbytes)}>"

    def _repr_html_(self) -> str:
        """The heat map that a notebook shows."""
        return heat_map.html(heat_map.norms(self.wkv), f"State, {format_size(self.nbytes)}")

    def assign(self, other: State) -> None:
        """Take the values of another state of the same shape. Raises UsageError for another one."""
        for part in self.PARTS:
            mine, theirs = getattr(self, part), getattr(other, part)
            if mine.shape != theirs.shape:
                raise UsageError(f"{part} has the shape {list(theirs.shape)}; it must be {list(mine.shape)}")
            mine[...] = theirs

    def copy(self) -> State:
        """An independent copy: a branch of the text."""
        if (owner := self.owner) and (copy := owner.snapshot(self)):
            return copy
        return State(self.shift_att.copy(), self.wkv.copy(order="K"), self.shift_ffn.copy())

    def __reduce__(self) -> tuple[object, ...]:
        """What pickles and copies hold: the arrays."""
        return State, (self.shift_att, self.wkv, self.shift_ffn)

    @property
    def nbytes(self) -> int:
        """Its size in host memory."""
        return self._shift_att.nbytes + self._wkv.nbytes + self._shift_ffn.nbytes
