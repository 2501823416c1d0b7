"""The recurrent state: all that a model remembers of what it has read, in a size that never changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rwkv_cli.config import ModelConfig

Array = NDArray[np.float32]


class Keeper(Protocol):
    """A backend with memory of its own, in which states stay between its calls."""

    def bring_back(self, state: State) -> None:
        """Copy the numbers of a state into its arrays and end its stay; nothing for one that does not stay here."""
        ...

    def copy_of(self, state: State) -> State | None:
        """An independent copy of a state that goes on staying; None for one that does not stay here."""
        ...


class State:
    """What a model carries from one token to the next, in float32 whatever the type of its weights.

    A backend may keep the numbers where it computes (`keeper`). Whoever reads an array has them brought back first, and
    may then change it in place. An array that was read before a backend advanced the state is old: read it again.
    """

    PARTS = ("shift_att", "wkv", "shift_ffn")

    def __init__(self, shift_att: Array, wkv: Array, shift_ffn: Array) -> None:
        """Arrays of the shapes that the properties tell, not copied."""
        # In memory a head's values for one key lie side by side: kernels then compute them lane by lane.
        by_key = np.ascontiguousarray(wkv.swapaxes(-1, -2), np.float32)
        self._shift_att, self._wkv, self._shift_ffn = shift_att, by_key.swapaxes(-1, -2), shift_ffn
        self.keeper: Keeper | None = None  # who has the numbers now, if the arrays are old

    @classmethod
    def zeros(cls, config: ModelConfig) -> State:
        """The state of a model that has read nothing."""
        L, C, H, N = config.n_layer, config.n_embd, config.n_head, config.head_size
        return cls(
            shift_att=np.zeros((L, C), np.float32),
            wkv=np.zeros((L, H, N, N), np.float32).swapaxes(-1, -2),
            shift_ffn=np.zeros((L, C), np.float32),
        )

    @property
    def shift_att(self) -> Array:
        """The last token's normalised input of each time mix [L, C] (token shift)."""
        self.come_back()
        return self._shift_att

    @shift_att.setter
    def shift_att(self, values: Array) -> None:
        self.come_back()
        self._shift_att = values

    @property
    def wkv(self) -> Array:
        """The associative memory of each head [L, H, N, N], row = value index, column = key index."""
        self.come_back()
        return self._wkv

    @wkv.setter
    def wkv(self, values: Array) -> None:
        self.come_back()
        self._wkv = values

    @property
    def shift_ffn(self) -> Array:
        """The last token's normalised input of each channel mix [L, C] (token shift)."""
        self.come_back()
        return self._shift_ffn

    @shift_ffn.setter
    def shift_ffn(self, values: Array) -> None:
        self.come_back()
        self._shift_ffn = values

    def come_back(self) -> None:
        """Have the numbers in the arrays, wherever they are. Raises DeviceError if that fails."""
        if keeper := self.keeper:
            keeper.bring_back(self)

    @property
    def in_memory(self) -> tuple[Array, Array, Array]:
        """The arrays as they lie in memory, a head key by key, without any bringing back: for a keeper."""
        return self._shift_att, self._wkv.swapaxes(-1, -2), self._shift_ffn

    def fits(self, config: ModelConfig) -> bool:
        """Whether it is that of a model of these sizes."""
        L, C, H, N = config.n_layer, config.n_embd, config.n_head, config.head_size
        shapes = (L, C), (L, H, N, N), (L, C)
        parts = self._shift_att, self._wkv, self._shift_ffn
        return all(
            part.shape == shape and part.dtype == np.float32
            for part, shape in zip(parts, shapes, strict=True)
        )

    def copy(self) -> State:
        """An independent copy: a branch of the conversation."""
        if (keeper := self.keeper) and (copy := keeper.copy_of(self)):
            return copy
        return State(self.shift_att.copy(), self.wkv.copy(order="K"), self.shift_ffn.copy())

    def __reduce__(self) -> tuple[Any, ...]:
        """What pickles and copies hold: the arrays."""
        return State, (self.shift_att, self.wkv, self.shift_ffn)

    @property
    def nbytes(self) -> int:
        """Its size in memory."""
        return self._shift_att.nbytes + self._wkv.nbytes + self._shift_ffn.nbytes


@dataclass
class Position:
    """A place in a text, from where a model can go on without reading anything again."""

    state: State
    logits: Array | None = None  # [V] of the next token; None where nothing was read yet
    tokens: int = 0  # read so far

    @classmethod
    def beginning(cls, config: ModelConfig) -> Position:
        """Where nothing was read yet."""
        return cls(State.zeros(config))

    def copy(self) -> Position:
        """An independent copy. Logits are shared: nobody changes them."""
        return Position(self.state.copy(), self.logits, self.tokens)
