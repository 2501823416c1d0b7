"""The CUDA backend: what runs on the GPU and when, and where the state is meanwhile.

A single token is read by the kernels of `gpu.decode`, replayed as one graph; several at once by `gpu.batched_pass`. The
state stays on the GPU between calls, since moving it would take longer than a token does: see `StateOwner`. So do the
logits where the next token is chosen there, until they are asked for or the next token is read.
"""

from __future__ import annotations

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
from rwkv_cli.engine.gpu.batched_pass import BatchedPass, buffer_sizes
from rwkv_cli.engine.gpu.decode import Decoder
from rwkv_cli.engine.gpu.device_sampler import DeviceSampler
from rwkv_cli.engine.gpu.look_ahead import Backup, RestoringLookAhead
from rwkv_cli.engine.gpu.state_slots import StateSlots
from rwkv_cli.engine.gpu.weights import Weights
from rwkv_cli.engine.look_ahead import LookAhead
from rwkv_cli.engine.sampling import NOTHING_LEFT
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
"""Tokens of a prompt that are read together: more make matrix products no faster; fewer if there is little memory."""

PART_OF_MEMORY = 4
"""The buffers of a pass may take one part in this many of the free memory."""

MOST_FEW = 16
"""Tokens that are read on trial by kernels which are recorded once for each number of them."""

LOGITS_AT_ONCE = 64
"""Tokens whose logits are held on the GPU at the same time."""

PROBE_BYTES = 1 << 30
"""Copied to measure the memory's bandwidth: far more than caches hold."""

SLOT, BACKUP = 0, 1
"""Of the resident state, and of a state as it was before tokens were read on trial."""


class _DeferredLogits:
    """The logits [V] after a token, which stay on the GPU until they are asked for or about to be overwritten."""

    def __init__(self, fetch: Callable[[], Array], lock: threading.Lock) -> None:
        """`lock` is to be held while `fetch` is called."""
        self._fetch, self._lock = fetch, lock
        self._logits: Array | None = None

    def __call__(self) -> Array:
        with self._lock:
            return self.fetched()

    def fetched(self) -> Array:
        """The same, for who holds the lock."""
        if self._logits is None:
            self._logits = self._fetch()
        return self._logits


class CudaBackend(Backend):
    """Runs a model file whose weights have been copied to a GPU."""

    name = "cuda"
    batch_size = 64

    def __init__(self, model: ModelFile, gpu: Device) -> None:
        """Copy the weights. Raises DeviceError if too little memory is free."""
        self.config = model.config
        self._type = model.info.weight_type
        self._gpu = gpu
        self._weights = Weights(gpu, model)
        self._states = StateSlots(gpu, model.config, 2)
        self._backup_ref: weakref.ref[Backup] | None = None  # whose values are in the slot BACKUP
        # Passes of a few tokens, with the logits of all or of none, by their number: they are for `self._few` alone.
        self._few: BatchedPass | None = None
        self._recorded: dict[tuple[int, bool], Callable[[], None]] = {}
        self.chunk = CHUNK
        available = gpu.free_memory() // PART_OF_MEMORY
        while self.chunk > LEAST_CHUNK and self._pass_bytes(self.chunk) > available:
            self.chunk //= 2
        self._decoder = Decoder(gpu, self._weights, self._states)
        self._decode = gpu.graph(self._decoder.steps())
        self._sampler = DeviceSampler(gpu, self._decoder.logits, model.config.vocab_size)
        steps = [*self._decoder.steps(self._sampler.token), *self._sampler.steps()]
        self._decode_and_sample = gpu.graph(steps)
        self._pass: BatchedPass | None = None
        self._all_logits: DeviceMemory | None = None
        self._token = gpu.pinned(4).view(np.int32)
        self._logits = gpu.pinned(4 * model.config.vocab_size).view(np.float32)
        # The state whose current values are in the slot, and nowhere else.
        self._resident_ref: weakref.ref[State] | None = None
        # The logits that are still the decoder's, if anyone can ask for them.
        self._deferred_ref: weakref.ref[_DeferredLogits] | None = None
        self._lock = threading.Lock()

    @property
    def description(self) -> str:
        """See `Backend.description`."""
        return f"CUDA, {self._type} weights, {self._gpu.name}"

    @property
    def kernel(self) -> str:
        """See `Backend.kernel`."""
        return f"CUDA, {self._gpu.name}"

    @property
    def bytes_per_token(self) -> int:
        """See `Backend.bytes_per_token`."""
        return weight_layouts.bytes_per_token(self.config, self._weights.type)

    def memory_reader(self) -> Callable[[], int]:
        """See `Backend.memory_reader`: a copy of `PROBE_BYTES` on the GPU, of which reads and writes count."""
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
        """See `Backend.forward`: the state stays on the GPU."""
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
        """See `Backend.forward_all`: the state stays on the GPU."""
        with self._advancing(state):
            return self._read_all(tokens)

    def look_ahead(self, tokens: Sequence[int], state: State) -> LookAhead:
        """See `Backend.look_ahead`: the state as it was before stays on the GPU too."""
        if len(tokens) > MOST_FEW:
            return super().look_ahead(tokens, state)
        backup = Backup()
        with self._advancing(state):
            self._keep(backup)
            logits = self._read_few(tokens)

        def restore(n: int) -> None:
            with self._advancing(state):
                self._put_back(backup)
                if n:
                    self._replay(tokens[:n], with_logits=False)

        return RestoringLookAhead(logits, state, restore)

    def _read_few(self, tokens: Sequence[int]) -> Array:
        """Read a few tokens [T]: the logits [T, V] after each. Their kernels are recorded once, and replayed."""
        T, rows = len(tokens), self._weights.head.R
        all_logits = self._replay(tokens, with_logits=True)
        padded = np.empty((T, rows), np.float32)
        self._gpu.download(all_logits.address, padded)
        return padded[:, : self.config.vocab_size]

    def _replay(self, tokens: Sequence[int], *, with_logits: bool) -> DeviceMemory:
        """Read a few tokens, perhaps with the logits of all: where these are."""
        if self._few is None:
            self._few = BatchedPass(self._gpu, self._weights, self._states, MOST_FEW)
        few, T, out = self._few, len(tokens), self._logits_of_all()
        self._gpu.upload(few.tokens, np.array(tokens, np.int32))
        self._gpu.upload(few.slots, np.full(T, SLOT, np.int32))
        self._gpu.upload(few.begins, np.array([0, T], np.int32))
        if (T, with_logits) not in self._recorded:
            logits = few.logits(T, out.address) if with_logits else []
            self._recorded[T, with_logits] = self._gpu.graph([*few.steps(T, 1), *logits])
        self._recorded[T, with_logits]()
        return out

    def _logits_of_all(self) -> DeviceMemory:
        """Room for the logits of as many tokens as are held at the same time."""
        if self._all_logits is None:
            most = min(LOGITS_AT_ONCE, self.chunk)
            self._all_logits = self._gpu.allocate(4 * most * self._weights.head.R)
        return self._all_logits

    def _read_all(self, tokens: Sequence[int]) -> Array:
        """Read tokens [T]: the logits [T, V] after each."""
        most = min(LOGITS_AT_ONCE, self.chunk)
        rows, V = self._weights.head.R, self.config.vocab_size
        logits = np.empty((len(tokens), V), np.float32)
        out = self._logits_of_all()
        for start in range(0, len(tokens), most):
            chunk = tokens[start : start + most]
            batched = self._read_many(chunk, most)
            self._gpu.run(batched.logits(len(chunk), out.address))
            padded = np.empty((len(chunk), rows), np.float32)
            self._gpu.download(out.address, padded)
            logits[start : start + most] = padded[:, :V]
        return logits

    def _keep(self, backup: Backup) -> None:
        """Copy the resident state into the slot BACKUP; what is there goes to the host, if it may be needed."""
        if other := self._backup_ref and self._backup_ref():
            other.host = State.zeros(self.config)
            self._states.fetch(BACKUP, other.host)
        self._states.move(BACKUP, SLOT)
        self._backup_ref = weakref.ref(backup)

    def _put_back(self, backup: Backup) -> None:
        """Give the resident state the values that were kept."""
        if self._backup_ref and self._backup_ref() is backup:
            self._states.move(SLOT, BACKUP)
        else:
            assert backup.host
            self._states.store(SLOT, backup.host)

    def choose(self, token: int, state: State, sampler: Sampler) -> Chosen:
        """See `Backend.choose`: the logits stay on the GPU until they are asked for."""
        request = sampler.request(self.config.vocab_size)
        with self._advancing(state):
            self._sampler.submit([request], token)
            self._decode_and_sample()
            (choice,) = self._sampler.collect()
            logits = _DeferredLogits(self._fetch_logits, self._lock)
            self._deferred_ref = weakref.ref(logits)
        if request.mask is not None and choice.token == NOTHING_LEFT:  # the host knows what to do
            choice = sampler.choose(logits())
        return Chosen(choice, logits)

    def evict(self, state: State) -> None:
        """See `StateOwner.evict`."""
        with self._lock:
            if self._resident() is state:
                self._gpu.make_current()
                self._evict()

    def snapshot(self, state: State) -> State | None:
        """See `StateOwner.snapshot`."""
        with self._lock:
            if self._resident() is not state:
                return None
            self._gpu.make_current()
            copy = State.zeros(self.config)
            self._states.fetch(SLOT, copy)
            return copy

    @contextmanager
    def _advancing(self, state: State) -> Iterator[None]:
        """Hold the lock, with the state in the slot and the decoder's logits free to be overwritten."""
        if state.owner is not self:
            state.to_host()  # before the lock: another backend has one of its own
        with self._lock:
            self._gpu.make_current()
            if logits := self._deferred_ref and self._deferred_ref():
                logits.fetched()
            self._deferred_ref = None
            self._make_resident(state)
            yield

    def _read_one(self, token: int) -> None:
        """Read a token, which leaves its logits in the decoder's."""
        self._token[0] = token
        self._gpu.upload(self._decoder.token, self._token)
        self._decode()

    def _fetch_logits(self) -> Array:
        """A copy of the decoder's logits [V]."""
        self._gpu.make_current()
        self._gpu.download(self._decoder.logits, self._logits)
        return self._logits.copy()

    def _read_prompt(self, tokens: Sequence[int], progress: Progress | None) -> None:
        """Read several tokens; reports every chunk except the last."""
        for start in range(0, len(tokens), self.chunk):
            chunk = tokens[start : start + self.chunk]
            batched = self._read_many(chunk, self.chunk)
            if start + len(chunk) == len(tokens):
                self._gpu.run(batched.logits(len(chunk), self._decoder.logits, last_of=1))
            elif progress:
                self._gpu.synchronize()
                progress(len(chunk))

    def _read_many(self, tokens: Sequence[int], most: int) -> BatchedPass:
        """Read at most `most` tokens: the pass, which can compute their logits next."""
        T = len(tokens)
        batched = self._pass_for(T, most)
        self._gpu.upload(batched.tokens, np.array(tokens, np.int32))
        self._gpu.upload(batched.slots, np.full(T, SLOT, np.int32))
        self._gpu.upload(batched.begins, np.array([0, T], np.int32))
        self._gpu.run(batched.steps(T, 1))
        return batched

    def _pass_for(self, T: int, most: int) -> BatchedPass:
        """A pass with the capacity for T tokens; where it has to grow, it doubles at least, up to `most`."""
        if self._pass is None or self._pass.capacity < T:
            capacity = min(most, max(T, 2 * self._pass.capacity if self._pass else 0))
            self._gpu.synchronize()
            self._pass = None  # free the old buffers before allocating new ones
            self._pass = BatchedPass(self._gpu, self._weights, self._states, capacity)
        return self._pass

    def _pass_bytes(self, capacity: int) -> int:
        return sum(buffer_sizes(self._weights, 1, capacity).values())

    def _resident(self) -> State | None:
        """The state whose current values are in the slot."""
        return self._resident_ref() if self._resident_ref else None

    def _make_resident(self, state: State) -> None:
        """Copy a state into the slot, unless it is there; the one that was there is evicted."""
        if self._resident() is state:
            return
        self._evict()
        self._states.store(SLOT, state)
        self._resident_ref, state.owner = weakref.ref(state), self

    def _evict(self) -> None:
        """Copy the slot to the host arrays of the state that is resident there, if that is still in use."""
        if state := self._resident():
            self._states.fetch(SLOT, state)
            state.owner = None
        self._resident_ref = None

    def batch(self, slots: int) -> GpuBatch:
        """See `Backend.batch`."""
        return GpuBatch(self._gpu, self._weights, slots, lock=self._lock)


def open_cuda(
    model: ModelFile, compiling: Callable[[], AbstractContextManager[None]] = nullcontext, index: int = 0
) -> CudaBackend:
    """The backend on GPU `index` of this machine. `compiling()` is entered while its kernels are compiled.

    Raises DeviceError with the reason if the GPU, its driver or its packages cannot run the model.
    """
    try:
        from rwkv_cli.engine.gpu.device import Gpu
    except ImportError:
        raise DeviceError(probe.NOT_INSTALLED) from None
    try:
        gpu = Gpu(model.info.weight_type, compiling, index)
        _check_memory(gpu.name, model, gpu.free_memory())
        return CudaBackend(model, gpu)
    except Exception as error:
        if not type(error).__module__.startswith("cuda."):  # which have no public base class
            raise
        raise DeviceError(f"the GPU cannot be used: {str(error).strip().splitlines()[0]}") from error


def _check_memory(name: str, model: ModelFile, free: int) -> None:
    needed = model.weight_bytes + model.config.state_bytes
    if needed > free:  # Windows would use host memory instead, which is slower than the CPU backend
        raise DeviceError(
            f"{name} has too little memory: the model takes {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are "
            "free; use {device=cpu}, or a smaller {type}"
        )
