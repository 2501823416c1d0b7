"""The recurrent state: all that a model remembers of what it has read, in a size that never changes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rwkv_cli.config import ModelConfig

Array = NDArray[np.float32]


@dataclass
class State:
    """What a model carries from one token to the next, in float32 whatever the type of its weights."""

    shift_att: Array  # [L, C] the last token's normalised input of each time mix (token shift)
    wkv: Array  # [L, H, N, N] the associative memory of each head, row = value index, column = key index
    shift_ffn: Array  # [L, C] the last token's normalised input of each channel mix (token shift)

    def __post_init__(self) -> None:
        # In memory a head's values for one key lie side by side: kernels then compute them lane by lane.
        by_key = np.ascontiguousarray(self.wkv.swapaxes(-1, -2), np.float32)
        self.wkv = by_key.swapaxes(-1, -2)

    @classmethod
    def zeros(cls, config: ModelConfig) -> State:
        """The state of a model that has read nothing."""
        L, C, H, N = config.n_layer, config.n_embd, config.n_head, config.head_size
        return cls(
            shift_att=np.zeros((L, C), np.float32),
            wkv=np.zeros((L, H, N, N), np.float32).swapaxes(-1, -2),
            shift_ffn=np.zeros((L, C), np.float32),
        )

    def fits(self, config: ModelConfig) -> bool:
        """Whether it is that of a model of these sizes."""
        L, C, H, N = config.n_layer, config.n_embd, config.n_head, config.head_size
        shapes = (L, C), (L, H, N, N), (L, C)
        parts = self.shift_att, self.wkv, self.shift_ffn
        return all(
            part.shape == shape and part.dtype == np.float32
            for part, shape in zip(parts, shapes, strict=True)
        )

    def copy(self) -> State:
        """An independent copy: a branch of the conversation."""
        return State(self.shift_att.copy(), self.wkv.copy(order="K"), self.shift_ffn.copy())

    @property
    def nbytes(self) -> int:
        """Its size in memory."""
        return self.shift_att.nbytes + self.wkv.nbytes + self.shift_ffn.nbytes


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
