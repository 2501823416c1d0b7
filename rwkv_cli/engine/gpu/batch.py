"""Many sequences at once on a GPU: each has its state in a slot of the device, and all are read together."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from rwkv_cli.engine.batch import Batch, Part, Tokens, passes
from rwkv_cli.engine.gpu.batched_pass import BatchedPass
from rwkv_cli.engine.gpu.decode import Decoder
from rwkv_cli.engine.gpu.device_protocol import Device, DeviceMemory
from rwkv_cli.engine.gpu.device_sampler import DeviceSampler
from rwkv_cli.engine.gpu.few_pass import FewPass
from rwkv_cli.engine.gpu.launch_plan import Step
from rwkv_cli.engine.gpu.state_slots import StateSlots
from rwkv_cli.engine.gpu.weights import Weights
from rwkv_cli.engine.sampling import NOTHING_LEFT, Choice, Sampler
from rwkv_cli.engine.state import State

Array = NDArray[np.float32]

CAPACITY = 1024
"""Tokens of a pass: more make matrix products no faster."""

LOGITS_AT_ONCE = 64
"""Tokens whose logits, all of them, are on the device at the same time."""

GRAPHS = 64
"""How many recorded passes of one token per sequence, and choices, are kept, by the number of sequences."""


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
        # By what they do and the number of sequences or, of one alone, its slot; the most recently used last.
        self._graphs: OrderedDict[tuple[str, int], Callable[[], None]] = OrderedDict()
        self._uploaded: tuple[list[int], list[int]] | None = None  # slots and lengths of the last pass
        with self._on_device():
            self._states = StateSlots(gpu, weights.config, slots)
            self._pass = BatchedPass(gpu, weights, self._states, max(capacity, slots))
            self._decoder = Decoder(gpu, weights, self._states)
            self._most_few = FewPass.most_tokens(gpu, weights) if slots > 1 else 0
            if self._most_few:
                self._few = FewPass(gpu, weights, self._states, self._pass.tokens, self._pass.slots)
            self._out = gpu.allocate(4 * slots * self._rows)
            self._sampler = DeviceSampler(gpu, self._out.address, self.config.vocab_size, slots, self._rows)
            self._read_logits = gpu.pinned(4 * slots * self._rows).view(np.float32).reshape(slots, self._rows)
        self._all_logits: DeviceMemory | None = None
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
        flat, lengths = self._flat(parts)
        self._row_of = {}
        with self._on_device():
            self._read([*parts], flat, lengths)
            logits = self._read_logits[: len(parts)]
            self._gpu.download(self._out.address, logits)
        return logits[:, : self.config.vocab_size]

    def read_all(self, parts: Mapping[int, Sequence[int]]) -> dict[int, Array]:
        """See `Batch.read_all`."""
        checked, found = self._checked(parts), dict[int, list[Array]]()
        self._row_of = {}
        most = min(LOGITS_AT_ONCE, self._pass.capacity)
        with self._on_device():
            if self._all_logits is None:
                self._all_logits = self._gpu.allocate(4 * most * self._rows)
            for pieces in passes(checked, most):
                lengths = [len(tokens) for _, tokens in pieces]
                T, out = sum(lengths), self._all_logits.address
                self._upload(
                    np.concatenate([part for _, part in pieces]), [slot for slot, _ in pieces], lengths
                )
                self._gpu.run([*self._pass.steps(T, len(pieces)), *self._pass.logits(T, out)])
                padded = np.empty((T, self._rows), np.float32)
                self._gpu.download(out, padded)
                rows = np.split(padded[:, : self.config.vocab_size], np.cumsum(lengths[:-1]))
                for (slot, _), logits in zip(pieces, rows, strict=True):
                    found.setdefault(slot, []).append(logits)
        return {slot: np.concatenate(pieces) for slot, pieces in found.items()}

    def choose(
        self,
        parts: Mapping[int, Sequence[int]],
        samplers: Mapping[int, Sampler],
        wanted: Collection[int] = (),  # noqa: ARG002  # those of all stay on the device
    ) -> dict[int, Choice]:
        """See `Batch.choose`: the logits stay on the device, and how to choose is prepared while it reads."""
        flat, lengths = self._flat(parts)
        for sampler in samplers.values():
            sampler.check(self.config.vocab_size)
        slots = [*parts]
        chosen = [*samplers]
        rows = [] if chosen == slots else _places(chosen, slots)
        with self._on_device():
            self._read(slots, flat, lengths)
            self._row_of = dict(zip(slots, range(len(slots)), strict=True))
            if not chosen:
                return {}
            requests = [sampler.request(self.config.vocab_size) for sampler in samplers.values()]
            self._sampler.submit(requests, rows=rows)
            self._recorded(("choose", len(chosen)), lambda: self._sampler.steps(len(chosen)))()
            found = dict(zip(chosen, self._sampler.collect(len(chosen)), strict=True))
        for slot, request in zip(chosen, requests, strict=True):
            if (
                request.mask is not None and found[slot].token == NOTHING_LEFT
            ):  # which the host knows what to do about
                logits = self.logits(slot)
                assert logits is not None
                found[slot] = samplers[slot].choose(logits)
        return found

    def logits(self, slot: int) -> Array | None:
        """See `Batch.logits`: a copy, taken from the device."""
        self._check_slot(slot)
        if (row := self._row_of.get(slot)) is None:
            return None
        found = np.empty(self._rows, np.float32)
        with self._on_device():
            self._gpu.download(self._out.address + 4 * row * self._rows, found)
        return found[: self.config.vocab_size]

    @contextmanager
    def _on_device(self) -> Iterator[None]:
        with self._lock:
            self._gpu.make_current()
            yield

    def _read(self, slots: list[int], flat: Tokens, lengths: list[int]) -> None:
        """Read the tokens of sequences, which are one after another in `flat`."""
        n = len(slots)
        if n == len(flat) <= self._pass.capacity:
            self._upload(flat, slots, lengths)
            self._graph(n, slots[0])()
            return
        parts = list(zip(slots, np.split(flat, np.cumsum(lengths[:-1])), strict=True))
        first = 0
        last = {slot: tokens[-1:] for slot, tokens in parts}
        for pieces in passes(parts, self._pass.capacity):
            self._run(first, pieces)
            slot, tokens = pieces[-1]
            first += len(pieces) - (not np.shares_memory(tokens, last[slot]))  # it continues in the next pass

    def _run(self, first: int, pieces: Sequence[Part]) -> None:
        """One pass over tokens of some sequences; `first` is the index of the first one in all that is read."""
        lengths = [len(tokens) for _, tokens in pieces]
        T, n = sum(lengths), len(pieces)
        self._upload(np.concatenate([tokens for _, tokens in pieces]), [slot for slot, _ in pieces], lengths)
        self._gpu.run(self._steps(T, n, first))

    def _upload(self, tokens: Tokens, slots: list[int], lengths: list[int]) -> None:
        """The tokens of a pass, and whose they are, unless that is as in the pass before."""
        self._gpu.upload(self._pass.tokens, tokens)
        if (slots, lengths) != self._uploaded:
            self._gpu.upload(self._pass.slots, np.repeat(np.array(slots, np.int32), lengths))
            self._gpu.upload(self._pass.begins, np.cumsum([0, *lengths], dtype=np.int32))
            self._uploaded = slots, lengths

    def _steps(self, T: int, n: int, first: int) -> list[Step]:
        """A pass; the next one overwrites the logits of a sequence that continues there."""
        out = self._out.address + 4 * first * self._rows
        return [*self._pass.steps(T, n), *self._pass.logits(T, out, last_of=n)]

    def _graph(self, n: int, slot: int) -> Callable[[], None]:
        """The pass of one token each of n sequences, or of the one in `slot`."""
        if n == 1:
            return self._recorded(("alone", slot), lambda: self._alone(slot))
        if n <= self._most_few:
            return self._recorded(("few", n), lambda: self._few.steps(n, self._out.address))
        return self._recorded(("read", n), lambda: self._steps(n, n, 0))

    def _recorded(self, key: tuple[str, int], steps: Callable[[], list[Step]]) -> Callable[[], None]:
        """Steps as a graph, which is kept under a key."""
        if key not in self._graphs:
            if len(self._graphs) == GRAPHS:
                self._graphs.popitem(last=False)
            self._graphs[key] = self._gpu.graph(steps())
        self._graphs.move_to_end(key)
        return self._graphs[key]

    def _alone(self, slot: int) -> list[Step]:
        """One token of one sequence, by the kernels of decoding, which are faster."""
        return self._decoder.steps(self._pass.tokens, slot, self._out.address)


def _places(some: Sequence[int], all_of_them: Sequence[int]) -> list[int]:
    """Where some numbers are among all of them."""
    places = {number: i for i, number in enumerate(all_of_them)}
    return [places[number] for number in some]
