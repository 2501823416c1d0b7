"""A forward pass of the CPU kernels over some tokens: buffers, and the record that describes them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cpu_kernels import abi
from cpu_kernels.runtime.aot import address, kernel
from rwkv_cli.config import ModelConfig
from rwkv_cli.engine.backends.compute_threads import next_job, team, tell_of_forks
from rwkv_cli.engine.backends.cpu_weights import CpuWeights
from rwkv_cli.engine.state import State
from rwkv_cli.files.model_file import ModelFile
from rwkv_cli.files.weight_layouts import GROUP

Array = NDArray[np.float32]
Table = NDArray[Any]
"""Records of `cpu_kernels.abi`."""

_FLOATS = ("x", "u", "last", "r", "k", "v", "v_first", "out")  # of RUN, [T, C]


class ForwardPass:
    """Reads up to `capacity` tokens in a pass, of one text or of many. `lock` is held by whoever uses it."""

    def __init__(self, model: ModelFile, n_threads: int, capacity: int) -> None:
        self.config: ModelConfig = model.config
        self.capacity = capacity
        self.n_threads = n_threads
        self.lock = threading.Lock()
        self._weights = CpuWeights(model)
        self._runs = np.zeros(1, abi.RUN)
        self._weights.describe(self._runs[0])
        self._runs["threads"] = n_threads
        self._inputs = np.zeros(abi.N_INPUTS, abi.ACTIVATION)
        self._buffers: dict[str, NDArray[Any]] = {}
        self._room = 0  # tokens that fit into the buffers
        self._job = next_job()
        self._passes = kernel("forward.passes")
        tell_of_forks(self)

    def run(self, tokens: Table, states: Table, wanted: NDArray[np.int64]) -> Array:
        """Read TOKEN [T], 1 <= T <= capacity, which advances STATE [..]; the logits [n, V] after the `wanted` rows [n].

        They are a view, whose rows are contiguous, that the next pass overwrites.
        """
        self._reserve(len(tokens), len(wanted))
        run = self._runs[0]
        run["T"], run["n_wanted"] = len(tokens), len(wanted)
        run["tokens"], run["states"], run["wanted"] = address(tokens), address(states), address(wanted)
        team(self.n_threads).run(self._passes, self._job, self._runs, self._weights.matrices, self._inputs)
        logits: Array = self._buffers["logits"][: len(wanted), : self.config.vocab_size]
        return logits

    def forget_threads(self) -> None:
        """See `tell_of_forks`."""
        self.lock = threading.Lock()
        self._room = 0
        self._buffers = {}

    def _reserve(self, T: int, logits: int) -> None:
        """Allocate buffers for T tokens and for rows of logits, unless the present ones are large enough."""
        if self._room < T:
            self._room = T if T == 1 else self.capacity
            self._allocate(self._room)
        if "logits" not in self._buffers or logits > len(self._buffers["logits"]):
            self._buffers["logits"] = np.empty((logits, self._weights.head_rows), np.float32)
            self._runs[0]["logits"] = address(self._buffers["logits"])

    def _allocate(self, T: int) -> None:
        """Allocate the buffers of `abi.RUN` and `abi.ACTIVATION` for T tokens, and set their addresses."""
        C, F = self.config.n_embd, self.config.n_ffn
        buffers: dict[str, NDArray[Any]] = {name: np.empty((T, C), np.float32) for name in _FLOATS}
        buffers["scratch"] = np.empty((self.n_threads, abi.N_SCRATCH_BUFFERS, T, abi.BLOCK), np.float32)
        buffers["active"] = np.empty((T, F), np.uint8)
        buffers["counts"] = np.empty((T, F // GROUP), np.int32)
        self._runs[0]["capacity"] = T
        for name, buffer in buffers.items():
            self._runs[0][name] = address(buffer)
        widths = {abi.LOW_W + i: rank for i, rank in enumerate(self._weights.ranks)} | {abi.HIDDEN: F}
        for i in range(abi.N_INPUTS):
            cols = widths.get(i, C)
            parts: list[NDArray[Any]] = [np.empty((T, cols), np.float32), np.empty((T, cols), np.int8)]
            parts += [np.empty((T, cols // GROUP), np.float32), np.empty((T, cols // GROUP), np.int32)]
            self._inputs[i] = (cols, *(address(part) for part in parts))
            buffers |= {f"input {i} {j}": part for j, part in enumerate(parts)}
        self._buffers |= buffers


def addresses(state: State) -> tuple[int, int, int]:
    """A row STATE: where the parts of a state are, which has to stay."""
    return address(state.shift_att), address(state.shift_ffn), address(state.wkv.swapaxes(-1, -2))


def in_place(ids: Any, states: Any, lengths: Sequence[int]) -> Table:
    """TOKEN [T] of texts of these lengths, one after the other; each advances its own state, a row of STATE.

    `ids` are those of all tokens [T]; `states` [texts].
    """
    if len(lengths) == len(ids):  # a token of each, as where they are answered
        rows = [(token, abi.NO_TOKEN, state, state, 1) for token, state in zip(ids, states, strict=True)]
        return np.array(rows, abi.TOKEN)
    table = np.empty(len(ids), abi.TOKEN)
    ends = np.cumsum(lengths)
    table["id"] = ids
    table["previous"] = np.arange(-1, len(ids) - 1)
    table["source"] = table["target"] = np.repeat(states, lengths)
    table["is_last"] = 0
    table["previous"][ends - lengths] = abi.NO_TOKEN
    table["is_last"][ends - 1] = 1
    return table
