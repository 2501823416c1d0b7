"""What a backend is: it reads tokens, which advances a state, and gives logits. Everything else has a safe default."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rwkv_cli.config import ModelConfig
from rwkv_cli.engine.batch import Batch, SequentialBatch
from rwkv_cli.engine.look_ahead import LookAhead, ReadAgain
from rwkv_cli.engine.sampling import Choice, Sampler
from rwkv_cli.engine.state import State
from rwkv_cli.reporting import Progress

Array = NDArray[np.float32]


class Chosen(NamedTuple):
    """A chosen token, and a way to the logits [V] that it was chosen from, which may still be on a device."""

    choice: Choice
    logits: Callable[[], Array]


class Backend(ABC):
    """Runs a model. A subclass needs `name`, `config`, `kernel`, `forward` and `forward_all`.

    Every method that reads tokens advances `state` in place by len(tokens) >= 1 tokens, each in [0, V). Callers check
    both: see `engine.session.Session`.
    """

    name: str  # the value of the setting `device`
    config: ModelConfig

    is_split_invariant = False
    """Whether a text gives the same bits however it is split into calls of `forward`."""

    batch_size = 1
    """Sequences that `batch` reads together at its best; 1 where it only takes turns."""

    n_threads: int | None = None
    """Threads of the CPU that compute, if the backend has any of its own."""

    @property
    @abstractmethod
    def kernel(self) -> str:
        """What does the arithmetic, without the weights and the threads."""

    @property
    def description(self) -> str:
        """What does the arithmetic, for `rwkv info`."""
        return self.kernel

    @property
    def bytes_per_token(self) -> int | None:
        """Bytes that decoding moves for a token if no weight can be skipped; None where memory is not the limit."""
        return None

    def memory_reader(self) -> Callable[[], int] | None:
        """A function that reads memory once, as fast as the backend could, and gives the number of bytes."""
        return None

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.description}>"

    @abstractmethod
    def forward(self, tokens: Sequence[int], state: State, progress: Progress | None = None) -> Array:
        """The logits [V] after the last token."""

    @abstractmethod
    def forward_all(self, tokens: Sequence[int], state: State) -> Array:
        """The logits [T, V] after each token."""

    def choose(self, token: int, state: State, sampler: Sampler) -> Chosen:
        """Read a token and choose the next one as `sampler.choose` would; `sampler.accept` is to follow."""
        logits = self.forward([token], state)
        return Chosen(sampler.choose(logits), lambda: logits)

    def choose_from(self, logits: Array, sampler: Sampler) -> Choice:
        """Choose a token from logits [V] as `choose` would; `sampler.accept` is to follow."""
        return sampler.choose(logits)

    def look_ahead(self, tokens: Sequence[int], state: State) -> LookAhead:
        """Read tokens [T] on trial. `state` is the result's until its own `state` is asked for."""
        return ReadAgain(self, tokens, state)

    def batch(self, slots: int) -> Batch:
        """Room for this many sequences. Raises UsageError for none, DeviceError if there is too little memory."""
        return SequentialBatch(self, slots)
