"""The CPU backend: `cpu_kernels` does the arithmetic, on weights where their file is mapped."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from cpu_kernels import abi
from cpu_kernels.runtime import aot, instructions
from cpu_kernels.runtime.aot import kernel
from cpu_kernels.runtime.compiler import ENTRY_POINTS
from rwkv_cli import machine
from rwkv_cli.engine.backends.base import Backend, Chosen
from rwkv_cli.engine.backends.compute_threads import next_job, team
from rwkv_cli.engine.backends.cpu_batch import CpuBatch
from rwkv_cli.engine.backends.cpu_look_ahead import CpuLookAhead
from rwkv_cli.engine.backends.cpu_pass import ForwardPass, addresses, in_place
from rwkv_cli.engine.backends.cpu_sampler import CpuSampler
from rwkv_cli.engine.look_ahead import LookAhead
from rwkv_cli.engine.sampling import Choice, Sampler
from rwkv_cli.engine.state import State
from rwkv_cli.files import weight_layouts
from rwkv_cli.files.model_file import ModelFile
from rwkv_cli.reporting import Progress

Array = NDArray[np.float32]

LEAST_CHUNK, MOST_CHUNK = 64, 128
"""Tokens of a prompt that are read together: each weight is read once for all of them."""

KERNELS = [name for name in ENTRY_POINTS if name not in ("bandwidth.passes", "quantize.int4")]
"""All that generating text needs, from the tokenizer on, so that they are compiled together."""

PROBE_BYTES = 1 << 28
"""How much is read to measure the memory: far more than caches hold."""

_NONE, _FIRST = np.zeros(0, np.int64), np.zeros(1, np.int64)


class CpuBackend(Backend):
    """Runs a model file in place: weights are used where the file is mapped, in the layout that the file has."""

    name = "cpu"
    n_threads: int
    is_split_invariant = True
    batch_size = 32

    def __init__(self, model: ModelFile, n_threads: int | None = None, chunk: int | None = None) -> None:
        self.config = model.config
        self.chunk: int = chunk or best_chunk(model.config.n_embd, machine.l2_cache())
        self._info = model.info
        aot.compile_missing(_missing())
        self.n_threads: int = n_threads or machine.default_threads()
        self._pass = ForwardPass(model, self.n_threads, self.chunk)
        self._sampler = CpuSampler(model.config.vocab_size, self.n_threads)
        self._spare: list[State] = []  # of those that were read on trial, to be used again

    @property
    def description(self) -> str:
        """See `Backend.description`."""
        return f"Numba, {self._info.weight_type} weights, {instructions.CHOSEN}, {self.n_threads} threads"

    @property
    def kernel(self) -> str:
        """See `Backend.kernel`."""
        return f"Numba, {instructions.CHOSEN}"

    @property
    def bytes_per_token(self) -> int:
        """Bytes that decoding reads per token if no hidden unit is zero."""
        return weight_layouts.bytes_per_token(self.config, self._info.weight_type, self._info.narrow)

    def memory_reader(self) -> Callable[[], int]:
        """A function that reads `PROBE_BYTES` of memory once, with the same threads, and returns their number."""
        data = np.random.default_rng(0).random(PROBE_BYTES // 4, np.float32)  # pages of zeros would share one
        sums = np.zeros((self.n_threads, abi.LANES), np.float32)
        workers, job, passes = team(self.n_threads), next_job(), kernel("bandwidth.passes")

        def read() -> int:
            workers.run(passes, job, data, data.nbytes // abi.PROBE_BLOCK, sums)
            return data.nbytes

        read()  # the first use of a page is slower
        return read

    def forward(self, tokens: Sequence[int], state: State, progress: Progress | None = None) -> Array:
        """The logits [V] after the last token; advances `state`."""
        for start in range(0, len(tokens), self.chunk):
            chunk = tokens[start : start + self.chunk]
            is_last = start + len(chunk) == len(tokens)
            logits = self._run(chunk, state, np.array([len(chunk) - 1]) if is_last else _NONE)
            if progress:
                progress(len(chunk))
        row: Array = logits[0]
        return row

    def forward_all(self, tokens: Sequence[int], state: State) -> Array:
        """The logits [T, V] after each token; advances `state`."""
        chunks = [tokens[start : start + self.chunk] for start in range(0, len(tokens), self.chunk)]
        return np.concatenate([self._run(chunk, state, np.arange(len(chunk))) for chunk in chunks])

    def choose(self, token: int, state: State, sampler: Sampler) -> Chosen:
        """See `Backend.choose`."""
        with self._pass.lock:
            logits = self._pass.run(in_place([token], [0], [1]), self._table(state), _FIRST)
            (choice,) = self._sampler.choose_for(logits, [sampler])
            copy = logits[0].copy()
        return Chosen(choice, lambda: copy)

    def choose_from(self, logits: Array, sampler: Sampler) -> Choice:
        """See `Backend.choose_from`: by the same kernel as all choices of this backend."""
        with self._pass.lock:
            (choice,) = self._sampler.choose_for([np.ascontiguousarray(logits)], [sampler])
        return choice

    def look_ahead(self, tokens: Sequence[int], state: State) -> LookAhead:
        """See `Backend.look_ahead`: the state after each token is kept, so that nothing is read twice."""
        if len(tokens) > self.chunk:
            return super().look_ahead(tokens, state)
        ahead = CpuLookAhead(self._pass, state, self._spare)
        ahead.read(tokens)
        return ahead

    def batch(self, slots: int) -> CpuBatch:
        """See `Backend.batch`."""
        return CpuBatch(self._pass, self._sampler, slots)

    def _run(self, tokens: Sequence[int], state: State, wanted: NDArray[np.int64]) -> Array:
        """One pass of at most `chunk` tokens; the logits [n, V] after the `wanted` ones [n], as a copy."""
        with self._pass.lock:
            return self._pass.run(in_place(tokens, [0], [len(tokens)]), self._table(state), wanted).copy()

    @staticmethod
    def _table(state: State) -> NDArray[np.void]:
        return np.array([addresses(state)], abi.STATE)


def best_chunk(n_embd: int, l2_cache: int | None) -> int:
    """How many tokens to read together: so many that their activations still fit into half of a core's L2 cache.

    `l2_cache` is in bytes, None if it is not known. With more tokens, weights are read less often, but every phase of a
    pass finds the activations of the one before further away. A multiple of 16, the rows of a tile register.
    """
    fitting = (l2_cache or 0) // 2 // (4 * n_embd) // 16 * 16
    return max(LEAST_CHUNK, min(fitting, MOST_CHUNK))


def is_compiled() -> bool:
    """Whether the kernels need not be compiled; otherwise creating a backend does so, for some seconds."""
    return all(map(aot.is_compiled, _missing()))


def _missing() -> list[str]:
    """The kernels that this process has not loaded."""
    return [name for name in KERNELS if not aot.is_loaded(name)]
