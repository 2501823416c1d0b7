"""The CUDA backend: when what runs on the GPU, and where the state is meanwhile.

A single token is read by the kernels of `gpu.decode`, replayed as one graph; several at once by `gpu.batched_pass`. The
state stays on the GPU between calls, since moving it would take longer than a token does: see `StateOwner`. So do
the logits where the next token is chosen there, until somebody asks for them or another state is advanced.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rwkv_cli.engine.backends.base import Backend, Chosen
from rwkv_cli.engine.gpu import probe
from rwkv_cli.engine.gpu.batch import GpuBatch
from rwkv_cli.engine.gpu.batched_pass import TokenPass, buffer_sizes
from rwkv_cli.engine.gpu.decode import Decoder
from rwkv_cli.engine.gpu.device_sampler import Chooser
from rwkv_cli.engine.gpu.state_slots import StateMemory
from rwkv_cli.engine.gpu.weights import Weights
from rwkv_cli.engine.state import State
from rwkv_cli.errors import DeviceError
from rwkv_cli.files import weight_layouts
from rwkv_cli.files.model_file import ModelFile
from rwkv_cli.reporting import Progress

if TYPE_CHECKING:
    from rwkv_cli.engine.gpu.device_protocol import Device, DeviceMemory
    from rwkv_cli.engine.sampling import Sampler

Array = NDArray[np.float32]

CHUNK, LEAST_CHUNK = 4096, 128
"""Tokens of a prompt that are read together: more make matrix products no faster, fewer if there is little memory."""

PART_OF_MEMORY = 4
"""A pass may take a part of the free memory, this one."""

LOGITS_AT_ONCE = 64
"""Tokens whose logits are held on the GPU at the same time."""

PROBE_BYTES = 1 << 30
"""What is copied to measure the memory: far more than caches hold."""

SLOT = 0
"""Where the state lies that the kernels advance."""


class CudaBackend(Backend):
    """Runs a model file whose weights have been copied to a GPU."""

    name = "cuda"
    batch_size = 64

    def __init__(self, model: ModelFile, gpu: Device) -> None:
        """Copy the weights. Raises DeviceError if there is too little memory."""
        self.config = model.config
        self._type = model.info.weight_type
        self._gpu = gpu
        self._weights = Weights(gpu, model)
        self._states = StateMemory(gpu, model.config, 1)
        self.chunk = CHUNK
        room = gpu.free_memory() // PART_OF_MEMORY
        while self.chunk > LEAST_CHUNK and sum(buffer_sizes(self._weights, 1, self.chunk).values()) > room:
            self.chunk //= 2
        self._decoder = Decoder(gpu, self._weights, self._states)
        self._decode = gpu.graph(self._decoder.steps())  # of a token
        self._chooser = Chooser(gpu, self._decoder.logits, model.config.vocab_size)
        choosing = [*self._decoder.steps(self._chooser.token), self._chooser.step()]
        self._decode_and_choose = gpu.graph(choosing)  # likewise, with the choice of the next one
        self._pass: TokenPass | None = None
        self._all_logits: DeviceMemory | None = None
        self._token = gpu.pinned(4).view(np.int32)
        self._logits = gpu.pinned(4 * model.config.vocab_size).view(np.float32)
        # The state whose numbers are in the slot, and nowhere else.
        self._staying: weakref.ref[State] | None = None
        # The state whose logits are those of the decoder, if they are nowhere else; and logits that were so.
        self._chosen: weakref.ref[State] | None = None
        self._kept: weakref.WeakKeyDictionary[State, Array] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()

    @property
    def description(self) -> str:
        """What does the arithmetic."""
        return f"CUDA, {self._type} weights, {self._gpu.name}"

    @property
    def kernel(self) -> str:
        """What does the arithmetic, without the weights."""
        return f"CUDA, {self._gpu.name}"

    @property
    def bytes_per_token(self) -> int:
        """Bytes that decoding a token moves if no hidden unit is zero."""
        return weight_layouts.bytes_per_token(self.config, self._weights.type)

    def memory_reader(self) -> Callable[[], int]:
        """A function that copies `PROBE_BYTES` of the GPU's memory once, and gives the bytes read and written."""
        gpu = self._gpu
        with self._lock:
            gpu.make_current()
            source, target = gpu.allocate(PROBE_BYTES), gpu.allocate(PROBE_BYTES)
            gpu.clear(source.address, source.nbytes)

        def read() -> int:
            with self._lock:
                gpu.make_current()
                gpu.copy(target.address, source.address, source.nbytes)
                gpu.synchronize()
            return 2 * source.nbytes

        read()
        return read

    def forward(self, tokens: Sequence[int], state: State, progress: Progress | None = None) -> Array:
        """The logits [V] after the last token; advances `state`, which stays on the GPU."""
        with self._advancing(state):
            if len(tokens) == 1:
                self._read_one(tokens[0])
            else:
                self._read_prompt(tokens, progress)
            logits = self._fetch_logits()
        if progress:
            progress((len(tokens) - 1) % self.chunk + 1)
        return logits

    def forward_all(self, tokens: Sequence[int], state: State) -> Array:
        """The logits [T, V] after each token; advances `state`, which stays on the GPU."""
        most = min(LOGITS_AT_ONCE, self.chunk)
        rows, V = self._weights.head.R, self.config.vocab_size
        logits = np.empty((len(tokens), V), np.float32)
        with self._advancing(state):
            if self._all_logits is None:
                self._all_logits = self._gpu.allocate(4 * most * rows)
            for start in range(0, len(tokens), most):
                chunk = tokens[start : start + most]
                made = self._read_many(chunk, most)
                self._gpu.run(made.logits(len(chunk), self._all_logits.address))
                padded = np.empty((len(chunk), rows), np.float32)
                self._gpu.download(self._all_logits.address, padded)
                logits[start : start + most] = padded[:, :V]
        return logits

    def choose(self, token: int, state: State, sampler: Sampler) -> Chosen:
        """See `Backend.choose`: the logits stay on the GPU until they are asked for."""
        draw = sampler.draw(self.config.vocab_size)
        with self._advancing(state):
            if draw is None:
                self._read_one(token)
                self._kept[state] = logits = self._fetch_logits()
                return Chosen(sampler.sample(logits), lambda: logits)
            self._chooser.ask([draw], token)
            self._decode_and_choose()
            self._chosen = weakref.ref(state)
            (choice,) = self._chooser.choices()
        return Chosen(sampler.take(choice), functools.partial(self._logits_of, state))

    def _logits_of(self, state: State) -> Array:
        """The logits [V] after the token that `choose` has read last into this state."""
        with self._lock:
            if self._has_chosen_for() is state:
                self._gpu.make_current()
                self._keep_logits()
            return self._kept[state]

    def evict(self, state: State) -> None:
        """See `StateOwner`."""
        with self._lock:
            if self._resident() is state:
                self._gpu.make_current()
                self._send_back()

    def snapshot(self, state: State) -> State | None:
        """See `StateOwner`."""
        with self._lock:
            if self._resident() is not state:
                return None
            self._gpu.make_current()
            copy = State.zeros(self.config)
            self._states.fetch(SLOT, copy)
            return copy

    @contextmanager
    def _advancing(self, state: State) -> Iterator[None]:
        """With its numbers in the slot, and the GPU for nobody else."""
        if state.owner is not self:
            state.to_host()  # before the lock: another backend has one of its own
        with self._lock:
            self._gpu.make_current()
            if self._has_chosen_for() is not state:
                self._keep_logits()
            self._chosen = None
            self._kept.pop(state, None)
            self._take_in(state)
            yield

    def _read_one(self, token: int) -> None:
        """Read a token: its logits are those of the decoder."""
        self._token[0] = token
        self._gpu.upload(self._decoder.token, self._token)
        self._decode()

    def _has_chosen_for(self) -> State | None:
        return self._chosen() if self._chosen else None

    def _keep_logits(self) -> None:
        """Bring over what only the decoder has, if anybody still has the state."""
        if state := self._has_chosen_for():
            self._kept[state] = self._fetch_logits()
        self._chosen = None

    def _fetch_logits(self) -> Array:
        """A copy of the decoder's."""
        self._gpu.download(self._decoder.logits, self._logits)
        return self._logits.copy()

    def _read_prompt(self, tokens: Sequence[int], progress: Progress | None) -> None:
        """Likewise several tokens; `progress` hears of all chunks but the last one."""
        for start in range(0, len(tokens), self.chunk):
            chunk = tokens[start : start + self.chunk]
            made = self._read_many(chunk, self.chunk)
            if start + len(chunk) == len(tokens):
                self._gpu.run(made.logits(len(chunk), self._decoder.logits, last_of=1))
            elif progress:
                self._gpu.synchronize()
                progress(len(chunk))

    def _read_many(self, tokens: Sequence[int], most: int) -> TokenPass:
        """Read at most `most` tokens: the pass knows how to get their logits."""
        T = len(tokens)
        made = self._room_for(T, most)
        self._gpu.upload(made.tokens, np.array(tokens, np.int32))
        self._gpu.upload(made.slots, np.full(T, SLOT, np.int32))
        self._gpu.upload(made.begins, np.array([0, T], np.int32))
        self._gpu.run(made.steps(T, 1))
        return made

    def _room_for(self, T: int, most: int) -> TokenPass:
        """Buffers for T tokens: larger ones than there are have room for twice as many, up to `most`."""
        if self._pass is None or self._pass.room < T:
            room = min(most, max(T, 2 * self._pass.room if self._pass else 0))
            self._gpu.synchronize()
            self._pass = None  # free before there are new ones
            self._pass = TokenPass(self._gpu, self._weights, self._states, room)
        return self._pass

    def _resident(self) -> State | None:
        return self._staying() if self._staying else None

    def _take_in(self, state: State) -> None:
        """Have the numbers of a state in the slot; those of another go back to it if anybody still has it."""
        if self._resident() is state:
            return
        self._send_back()
        self._states.store(SLOT, state)
        self._staying, state.owner = weakref.ref(state), self

    def _send_back(self) -> None:
        """Copy what is in the slot to the state that it belongs to."""
        if state := self._resident():
            self._states.fetch(SLOT, state)
            state.owner = None
        self._staying = None

    def batch(self, slots: int) -> GpuBatch:
        """Room for so many sequences that are read together. Raises DeviceError if there is too little memory."""
        return GpuBatch(self._gpu, self._weights, slots, lock=self._lock)


def open_cuda(
    model: ModelFile, compiling: Callable[[], AbstractContextManager[None]] = nullcontext
) -> CudaBackend:
    """The backend on the first GPU of this machine; `compiling()` is around the compilation of its kernels.

    Raises DeviceError, in a sentence, where that cannot be.
    """
    try:
        from rwkv_cli.engine.gpu.device import Gpu
    except ImportError:
        raise DeviceError(probe.NOT_INSTALLED) from None
    try:
        gpu = Gpu(model.info.weight_type, compiling)
        _check_memory(gpu.name, model, gpu.free_memory())
        return CudaBackend(model, gpu)
    except Exception as error:
        if not type(error).__module__.startswith("cuda."):  # which has no public class for its errors
            raise
        raise DeviceError(f"the GPU cannot be used: {str(error).strip().splitlines()[0]}") from error


def _check_memory(name: str, model: ModelFile, free: int) -> None:
    needed = model.weight_bytes + model.config.state_bytes
    if needed > free:  # Windows would go on in the host's memory, which is slower than the CPU backend
        raise DeviceError(
            f"{name} has too little memory: the model takes {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are "
            "free; use --device cpu, or a smaller --type"
        )
