"""The CPU backend: allocates buffers and describes them and the weights to `cpu_kernels`, which does the arithmetic."""

from __future__ import annotations

import functools
import itertools
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cpu_kernels import abi
from cpu_kernels.runtime import aot, instructions, thread_team
from cpu_kernels.runtime.aot import address, kernel
from rwkv_cli import machine
from rwkv_cli.config import HEAD_SIZE
from rwkv_cli.engine.backends.base import Backend
from rwkv_cli.engine.state import State
from rwkv_cli.files import weight_layouts
from rwkv_cli.files.model_file import ModelFile
from rwkv_cli.files.weight_layouts import CHANNELS, GROUP, SCALE, TILE_ROWS
from rwkv_cli.reporting import Progress
from rwkv_cli.tensors import MATRICES, NORMS, VECTORS

Array = NDArray[np.float32]

CHUNK = 64
"""Tokens of a prompt that are read together: each weight is read once for all of them."""

PROBE_BYTES = 1 << 28
"""How much is read to measure the memory: far more than caches hold."""

_KINDS = {"int8": abi.INT8, "int4": abi.INT4, "fp16": abi.FLOAT16, "fp32": abi.FLOAT32}

# The table of tensors, and the sizes, that files and kernels have in common.
assert (MATRICES, VECTORS, NORMS) == (abi.MATRICES, abi.VECTORS, abi.NORMS)
assert (HEAD_SIZE, GROUP, TILE_ROWS, CHANNELS) == (abi.HEAD_SIZE, abi.GROUP, abi.LANES, abi.BLOCK)

_jobs = itertools.count()
_backends: list[weakref.ref[CpuBackend]] = []
"""All backends of this process: a list, which a fork cannot meet half changed."""


class CpuBackend(Backend):
    """Runs a model file in place: weights are used where the file is mapped, in the layout that the file has."""

    name = "cpu"
    n_threads: int
    is_split_invariant = True

    def __init__(self, model: ModelFile, n_threads: int | None = None, chunk: int = CHUNK) -> None:
        self.config = model.config
        self.chunk = chunk
        self._model = model  # the kernels have addresses only: this keeps the mapping alive
        self.n_threads: int = n_threads or machine.default_threads()
        self._runs = np.zeros(1, abi.RUN)
        self._matrices, self._vectors = self._weights()
        self._inputs = np.zeros(abi.N_INPUTS, abi.ACTIVATION)
        self._buffers: dict[str, NDArray[Any]] = {}
        self._capacity = 0  # tokens that fit into the buffers
        self._lock = threading.Lock()
        self._job = next(_jobs)
        self._describe_model()
        self._passes = kernel("forward.passes")
        _backends.append(weakref.ref(self, _backends.remove))

    @property
    def description(self) -> str:
        """See `Backend.description`."""
        return (
            f"Numba, {self._model.info.weight_type} weights, {instructions.CHOSEN}, {self.n_threads} threads"
        )

    @property
    def kernel(self) -> str:
        """See `Backend.kernel`."""
        return f"Numba, {instructions.CHOSEN}"

    @property
    def bytes_per_token(self) -> int:
        """Bytes that decoding reads per token if no hidden unit is zero."""
        return weight_layouts.bytes_per_token(self.config, self._model.info.weight_type)

    def memory_reader(self) -> Callable[[], int]:
        """A function that reads `PROBE_BYTES` of memory once, with the same threads, and returns their number."""
        data = np.random.default_rng(0).random(PROBE_BYTES // 4, np.float32)  # pages of zeros would share one
        sums = np.zeros((self.n_threads, abi.LANES), np.float32)
        workers, job, passes = _team(self.n_threads), next(_jobs), kernel("bandwidth.passes")

        def read() -> int:
            workers.run(passes, job, data, data.nbytes // abi.PROBE_BLOCK, sums)
            return data.nbytes

        read()  # the first use of a page is slower
        return read

    def forward(self, tokens: Sequence[int], state: State, progress: Progress | None = None) -> Array:
        """The logits [V] after the last token; advances `state`."""
        for start in range(0, len(tokens), self.chunk):
            chunk = tokens[start : start + self.chunk]
            logits: Array = self._run(chunk, state, all_logits=False)[0]
            if progress:
                progress(len(chunk))
        return logits

    def forward_all(self, tokens: Sequence[int], state: State) -> Array:
        """The logits [T, V] after each token; advances `state`."""
        chunks = [tokens[start : start + self.chunk] for start in range(0, len(tokens), self.chunk)]
        return np.concatenate([self._run(chunk, state, all_logits=True) for chunk in chunks])

    def _run(self, tokens: Sequence[int], state: State, all_logits: bool) -> Array:
        """One pass of at most `chunk` tokens; the logits [1 or T, V], as a copy."""
        T = len(tokens)
        V = self.config.vocab_size
        with self._lock:
            self._reserve(T, T if all_logits else 1)
            run = self._runs[0]
            run["T"], run["all_logits"] = T, all_logits
            self._buffers["tokens"][:T] = tokens
            run["shift_att"], run["shift_ffn"] = address(state.shift_att), address(state.shift_ffn)
            run["wkv"] = address(state.wkv.swapaxes(-1, -2))
            _team(self.n_threads).run(self._passes, self._job, self._runs, self._matrices, self._inputs)
            logits: Array = self._buffers["logits"][: T if all_logits else 1, :V].copy()
            return logits

    def forget_threads(self) -> None:
        """Begin anew in a process that was forked, perhaps while another thread of its parent was computing.

        That thread is not here to release the lock, or to finish what it was doing with the buffers.
        """
        self._lock = threading.Lock()
        self._capacity = 0
        self._buffers = {}

    def _weights(self) -> tuple[NDArray[Any], Array]:
        """The table of matrices, MATRIX [L * N_MATRICES + 1], and the vectors of all layers [L, N_VECTORS, C]."""
        L, C = self.config.n_layer, self.config.n_embd
        shapes = self.config.tensor_shapes()  # layer 0 lacks some tensors, whose places stay empty
        matrices = np.zeros(L * abi.N_MATRICES + 1, abi.MATRIX)
        vectors = np.zeros((L, abi.N_VECTORS, C), np.float32)
        for i in range(L):
            for j, suffix in enumerate(MATRICES):
                if (name := f"blocks.{i}.{suffix}") in shapes:
                    self._describe_matrix(matrices[i * abi.N_MATRICES + j], name)
            for j, suffix in enumerate(VECTORS):
                if (name := f"blocks.{i}.{suffix}") in shapes:
                    vectors[i, j] = self._model.stored(name).reshape(-1)
        self._describe_matrix(matrices[-1], "head.weight")
        return matrices, vectors

    def _describe_matrix(self, row: Any, name: str) -> None:
        """Fill a record MATRIX from a stored tensor."""
        weights = self._model.stored(name)
        weight_type = weight_layouts.type_of(name, self._model.info.weight_type)
        layout = weight_layouts.layout_of(name)
        is_small = layout == "low_rank" and weight_type in weight_layouts.INTEGERS
        row["kind"] = abi.SMALL if is_small else _KINDS[weight_type]
        if layout == "by_input":
            row["rows"], row["cols"] = weights.shape[0] * CHANNELS, weights.shape[1]
        else:
            packed = 2 if weight_type == "int4" else 1
            row["rows"], row["cols"] = (
                weights.shape[0] * TILE_ROWS,
                weights.shape[1] * weights.shape[3] * packed,
            )
        row["weights"] = address(weights)
        if weight_type in weight_layouts.INTEGERS:
            row["scales"] = address(self._model.stored(name + SCALE))

    def _describe_model(self) -> None:
        """Set the fields of the record RUN that stay the same in every pass."""
        run, config = self._runs[0], self.config
        run["L"], run["C"], run["F"] = config.n_layer, config.n_embd, config.n_ffn
        run["threads"] = self.n_threads
        self._norms = np.stack([self._model.stored(name) for name in NORMS])
        run["norms"], run["vectors"] = address(self._norms), address(self._vectors)
        run["embedding"] = address(self._model.stored("emb.weight"))
        weight_type = weight_layouts.type_of("emb.weight", self._model.info.weight_type)
        run["embedding_kind"] = _KINDS[weight_type]
        if weight_type == "int8":
            run["embedding_scales"] = address(self._model.stored("emb.weight" + SCALE))

    def _reserve(self, T: int, logits: int) -> None:
        """Allocate buffers for a pass of T tokens and for rows of logits, unless the present ones are large enough."""
        if self._capacity < T:
            self._capacity = T if T == 1 else self.chunk
            self._allocate(self._capacity)
        if "logits" not in self._buffers or logits > len(self._buffers["logits"]):
            rows = self._matrices[-1]["rows"]
            self._buffers["logits"] = np.empty((logits, rows), np.float32)
            self._runs[0]["logits"] = address(self._buffers["logits"])

    def _allocate(self, T: int) -> None:
        """Allocate the buffers of `abi.RUN` and `abi.ACTIVATION` for T tokens, and set their addresses."""
        C, F = self.config.n_embd, self.config.n_ffn
        buffers: dict[str, NDArray[Any]] = {
            name: np.empty((T, C), np.float32)
            for name in ("x", "u", "last", "r", "k", "v", "v_first", "w", "a", "vg", "g", "kk", "out")
        }
        buffers["tokens"] = np.empty(T, np.int64)
        buffers["packed"] = np.empty((self.n_threads, abi.PACKED_BYTES), np.uint8)
        buffers["h"] = np.empty((self.n_threads, T, abi.BLOCK), np.float32)
        buffers["active"] = np.empty((T, F), np.uint8)
        buffers["counts"] = np.empty((T, F // GROUP), np.int32)
        self._runs[0]["capacity"] = T
        for name, buffer in buffers.items():
            self._runs[0][name] = address(buffer)
        ranks = [
            self._matrices[abi.N_MATRICES * (self.config.n_layer - 1) + abi.W1 + i]["rows"] for i in range(4)
        ]
        widths = {abi.LOW_W + i: rank for i, rank in enumerate(ranks)} | {abi.HIDDEN: F}
        for i in range(abi.N_INPUTS):
            cols = widths.get(i, C)
            parts: list[NDArray[Any]] = [np.empty((T, cols), np.float32), np.empty((T, cols), np.int8)]
            parts += [np.empty((T, cols // GROUP), np.float32), np.empty((T, cols // GROUP), np.int32)]
            self._inputs[i] = (cols, *(address(part) for part in parts))
            buffers |= {f"input {i} {j}": part for j, part in enumerate(parts)}
        self._buffers |= buffers


@functools.cache
def _team(n_threads: int) -> thread_team.Team:
    """The compute threads of this process, shared by all models."""
    return thread_team.Team(n_threads)


def _after_fork() -> None:
    """In the child, which has none of its parent's threads."""
    _team.cache_clear()
    for reference in _backends.copy():
        if backend := reference():
            backend.forget_threads()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def is_compiled() -> bool:
    """Whether the kernels are in the cache; otherwise creating a backend compiles them, for some ten seconds."""
    return aot.is_compiled("forward.passes")
