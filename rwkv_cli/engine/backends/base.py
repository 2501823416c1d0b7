"""What a backend is, and where it gets its weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from rwkv_cli.config import ModelConfig
from rwkv_cli.engine.state import State
from rwkv_cli.errors import UsageError

if TYPE_CHECKING:
    from rwkv_cli.engine.sampling import Choice, Sampler

Array = NDArray[np.float32]
Progress = Callable[[int], None]
"""Called with the number of tokens read since the last call."""


NO_TOKENS = "there are no tokens to read"


def check_tokens(tokens: NDArray[Any], vocab_size: int) -> None:
    """Raise UsageError unless a backend can read them: some whole numbers in the vocabulary."""
    if not tokens.size:
        raise UsageError(NO_TOKENS)
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise UsageError("tokens must be a sequence of whole numbers")
    lowest, highest = tokens.min(), tokens.max()
    if lowest < 0 or highest >= vocab_size:
        wrong = lowest if lowest < 0 else highest
        raise UsageError(f"there is no token {wrong}: the vocabulary has {vocab_size:,}")


class WeightSource(Protocol):
    """Anything that gives the officially named tensors in float32: a published checkpoint or a model file."""

    @property
    def config(self) -> ModelConfig: ...

    def tensor(self, name: str) -> Array:
        """One tensor of the shape that `ModelConfig.tensor_shapes` lists for `name`."""
        ...


class Backend(Protocol):
    """Runs the model. Both methods advance `state` in place by len(tokens) >= 1 tokens, each in [0, V)."""

    name: str  # as in --device
    config: ModelConfig

    @property
    def description(self) -> str:
        """What does the arithmetic, for `rwkv info`."""
        ...

    def forward(self, tokens: Sequence[int], state: State, progress: Progress | None = None) -> Array:
        """The logits [V] after the last token."""
        ...

    def forward_all(self, tokens: Sequence[int], state: State) -> Array:
        """The logits [T, V] after each token."""
        ...


@runtime_checkable
class Chooses(Protocol):
    """What a backend has besides if it can choose tokens where it computes, so that logits stay there."""

    def choose(self, token: int, state: State, sampler: Sampler) -> Choice:
        """Read a token, which advances `state` in place, and choose the next one as `sampler` would; it learns of it.

        Raises what `Sampler.sample` does.
        """
        ...

    def logits_of(self, state: State) -> Array:
        """The logits [V] after the token that `choose` has read last into this state."""
        ...


@runtime_checkable
class MemoryLimited(Protocol):
    """What a backend has besides if `rwkv bench` can compare its decoding with the speed of its memory."""

    @property
    def kernel(self) -> str:
        """What does the arithmetic, a GPU by its name, without the weights and the threads."""
        ...

    @property
    def bytes_per_token(self) -> int:
        """Bytes that must be moved for one token if no weight can be left out."""
        ...

    def memory_reader(self) -> Callable[[], int]:
        """A function that reads memory once, as fast as the backend could, and gives the number of bytes."""
        ...
