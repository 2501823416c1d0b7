"""Many sequences at once on a GPU: each has its state in a slot of the device, and all are read together."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from rwkv_cli.engine.batch import Batch, Part, passes
from rwkv_cli.engine.gpu.batched_pass import BatchedPass
from rwkv_cli.engine.gpu.decode import Decoder
from rwkv_cli.engine.gpu.device_protocol import Device
from rwkv_cli.engine.gpu.device_sampler import DeviceSampler
from rwkv_cli.engine.gpu.launch_plan import Step
from rwkv_cli.engine.gpu.state_slots import StateSlots
from rwkv_cli.engine.gpu.weights import Weights
from rwkv_cli.engine.sampling import Choice, Sampler, SampleRequest
from rwkv_cli.engine.state import State

Array = NDArray[np.float32]

CAPACITY = 1024
"""Tokens of a pass: more make matrix products no faster."""

NO_CHOICE = SampleRequest(
    np.zeros(0, np.int64), np.zeros(0), True, random=0.0, temperature=1.0, top_p=1.0, min_p=1.0, top_k=0
)
"""For a sequence that only reads: its choice is thrown away."""

GRAPHS = 32
"""How many recorded passes of one token per sequence are kept, by the number of sequences."""


class GpuBatch(Batch):
    """Sequences in slots of the device. See `Batch`."""

    def __init__(
        self,
        gpu: Device,
        weights: Weights,
        slots: int,
        capacity: int = CAPACITY,
        lock: threading.Lock | None = None,
    ) -> None:
        """Memory for `slots` sequences, and for passes of `capacity` tokens or one token of each sequence.

        `lock` is held while the device is used; other users of the device have to share it. Raises UsageError for no
        slots, DeviceError if too little memory is free.
        """
        super().__init__(weights.config, slots)
        self._gpu, self._lock, self._rows = gpu, lock or threading.Lock(), weights.head.R
        # By the number of sequences and, of one alone, its slot; the most recently used last.
        self._graphs: OrderedDict[tuple[int, int], Callable[[], None]] = OrderedDict()
        with self._on_device():
            self._states = StateSlots(gpu, weights.config, slots)
            self._pass = BatchedPass(gpu, weights, self._states, max(capacity, slots))
            self._decoder = Decoder(gpu, weights, self._states)
            self._out = gpu.allocate(4 * slots * self._rows)
            self._sampler = DeviceSampler(gpu, self._out.address, self.config.vocab_size, slots, self._rows)
            self._read_logits = gpu.pinned(4 * slots * self._rows).view(np.float32).reshape(slots, self._rows)
        self._row_of = dict[int, int]()  # of the logits on the device that were chosen from last, by slot

    @property
    def capacity(self) -> int:
        """See `Batch.capacity`."""
        return self._pass.capacity

    def _store(self, slot: int, state: State | None) -> None:
        self._row_of.pop(slot, None)
        if state:
            state.to_host()  # before the lock: its owner may hold the same one
        with self._on_device():
            if state:
                self._states.store(slot, state)
            else:
                self._states.clear(slot)

    def _fetch(self, slot: int) -> State:
        state = State.zeros(self.config)
        with self._on_device():
            self._states.fetch(slot, state)
        return state

    def read(self, parts: Mapping[int, Sequence[int]]) -> Array:
        """See `Batch.read`: the logits are a view that the next `read` overwrites."""
        checked = self._checked(parts)
        self._row_of = {}
        with self._on_device():
            self._read(checked)
            logits = self._read_logits[: len(checked)]
            self._gpu.download(self._out.address, logits)
        return logits[:, : self.config.vocab_size]

    def choose(
        self,
        parts: Mapping[int, Sequence[int]],
        samplers: Mapping[int, Sampler],
        wanted: Collection[int] = (),
    ) -> dict[int, Choice]:
        """See `Batch.choose`: the logits stay on the device, unless settings need ranking, which only the host does."""
        self._row_of = dict[int, int]()
        if any(sampler.settings.needs_ranking for sampler in samplers.values()):
            return super().choose(parts, samplers, wanted)
        checked = self._checked(parts)
        requests = [
            samplers[slot].request(self.config.vocab_size) if slot in samplers else NO_CHOICE
            for slot in parts
        ]
        with self._on_device():
            self._sampler.submit(requests)
            self._read(checked)
            self._gpu.run([self._sampler.step(len(requests))])
            choices = self._sampler.collect(len(requests))
        self._row_of = {slot: i for i, slot in enumerate(parts)}
        return {slot: choice for slot, choice in zip(parts, choices, strict=True) if slot in samplers}

    def logits(self, slot: int) -> Array | None:
        """See `Batch.logits`: a copy, taken from the device."""
        found = super().logits(slot)
        if found is None and (row := self._row_of.get(slot)) is not None:
            found = np.empty(self._rows, np.float32)
            with self._on_device():
                self._gpu.download(self._out.address + 4 * row * self._rows, found)
            found = found[: self.config.vocab_size]
        return found

    @contextmanager
    def _on_device(self) -> Iterator[None]:
        with self._lock:
            self._gpu.make_current()
            yield

    def _read(self, parts: list[Part]) -> None:
        first = 0
        last = {slot: tokens[-1:] for slot, tokens in parts}
        for pieces in passes(parts, self._pass.capacity):
            self._run(first, pieces)
            slot, tokens = pieces[-1]
            first += len(pieces) - (not np.shares_memory(tokens, last[slot]))  # it continues in the next pass

    def _run(self, first: int, pieces: Sequence[Part]) -> None:
        """One pass over tokens of some sequences; `first` is the index of the first one in all that is read."""
        slots = [slot for slot, _ in pieces]
        lengths = [len(tokens) for _, tokens in pieces]
        T, n = sum(lengths), len(pieces)
        self._gpu.upload(self._pass.tokens, np.concatenate([tokens for _, tokens in pieces]))
        self._gpu.upload(self._pass.slots, np.repeat(np.array(slots, np.int32), lengths))
        self._gpu.upload(self._pass.begins, np.cumsum([0, *lengths], dtype=np.int32))
        if n == T and first == 0:
            self._graph(n, slots[0])()
        else:
            self._gpu.run(self._steps(T, n, first))

    def _steps(self, T: int, n: int, first: int) -> list[Step]:
        """A pass; the next one overwrites the logits of a sequence that continues there."""
        out = self._out.address + 4 * first * self._rows
        return [*self._pass.steps(T, n), *self._pass.logits(T, out, last_of=n)]

    def _graph(self, n: int, slot: int) -> Callable[[], None]:
        """The pass of one token each of n sequences, or of the one in `slot`."""
        key = (n, slot if n == 1 else 0)
        if key not in self._graphs:
            if len(self._graphs) == GRAPHS:
                self._graphs.popitem(last=False)
            self._graphs[key] = self._gpu.graph(self._alone(slot) if n == 1 else self._steps(n, n, 0))
        self._graphs.move_to_end(key)
        return self._graphs[key]

    def _alone(self, slot: int) -> list[Step]:
        """One token of one sequence, by the kernels of decoding, which are faster."""
        return self._decoder.steps(self._pass.tokens, slot, self._out.address)
