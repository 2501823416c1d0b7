"""Many sequences at once: each has its state in a slot of its own, and joins and leaves at any step."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from rwkv_cli.engine.batch import Batch
from rwkv_cli.engine.gpu.batched_pass import TokenPass
from rwkv_cli.engine.gpu.decode import Decoder
from rwkv_cli.engine.gpu.device_protocol import Device
from rwkv_cli.engine.gpu.device_sampler import Chooser
from rwkv_cli.engine.gpu.launch_plan import Step
from rwkv_cli.engine.gpu.state_slots import StateMemory
from rwkv_cli.engine.gpu.weights import Weights
from rwkv_cli.engine.sampling import Choice, Sampler
from rwkv_cli.engine.state import State

Array = NDArray[np.float32]
Tokens = NDArray[np.int32]

ROOM = 1024
"""Tokens of a pass: more make matrix products no faster."""

GRAPHS = 32
"""Numbers of sequences whose passes of one token each are kept, ready to be replayed."""


class GpuBatch(Batch):
    """Sequences in slots, read together.

    slot = batch.join()
    logits = batch.read({slot: prompt, another: [token]})
    state = batch.leave(slot)
    """

    def __init__(
        self,
        gpu: Device,
        weights: Weights,
        slots: int,
        room: int = ROOM,
        lock: threading.Lock | None = None,
    ) -> None:
        """Room for so many sequences, and for passes of so many tokens, or a token of each sequence.

        `lock` is held while the device is used; others that use it have to share it. Raises UsageError for no slots,
        DeviceError if there is too little memory.
        """
        super().__init__(weights.config, slots)
        self._gpu, self._lock, self._rows = gpu, lock or threading.Lock(), weights.head.R
        # By the number of sequences and, of one alone, its slot; the latest used last.
        self._graphs: OrderedDict[tuple[int, int], Callable[[], None]] = OrderedDict()
        with self._on_device():
            self._states = StateMemory(gpu, weights.config, slots)
            self._pass = TokenPass(gpu, weights, self._states, max(room, slots))
            self._decoder = Decoder(gpu, weights, self._states)
            self._out = gpu.allocate(4 * slots * self._rows)
            self._chooser = Chooser(gpu, self._out.address, self.config.vocab_size, slots, self._rows)
            self._logits = gpu.pinned(4 * slots * self._rows).view(np.float32).reshape(slots, self._rows)

    def _store(self, slot: int, state: State | None) -> None:
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
        """Read some tokens of each sequence, by its slot: the logits [n, V] after their last ones, in the same order.

        A sequence may bring one token or a whole prompt; those that are not named stay where they are. The logits are a
        view, which the next `read` writes to. Raises UsageError, before anything is read, for a slot without a
        sequence, no tokens, or a token outside the vocabulary.
        """
        checked = self._checked(parts)
        with self._on_device():
            self._read(checked)
            found = self._logits[: len(checked)]
            self._gpu.download(self._out.address, found)
        return found[:, : self.config.vocab_size]

    def choose(self, parts: Mapping[int, Sequence[int]], samplers: Sequence[Sampler]) -> list[Choice]:
        """Read likewise, and choose the next token of each sequence as its sampler would; the samplers learn of it.

        Raises what `read` and `Sampler.sample` do.
        """
        checked = self._checked(parts)
        if any(sampler.settings.needs_ranking for sampler in samplers):  # which only the host can
            return [sampler.sample(row) for sampler, row in zip(samplers, self.read(parts), strict=True)]
        asked = [draw for sampler in samplers if (draw := sampler.draw(self.config.vocab_size))]
        with self._on_device():
            self._chooser.ask(asked)
            self._read(checked)
            self._gpu.run([self._chooser.step(len(asked))])
            choices = self._chooser.choices(len(asked))
        return [sampler.take(choice) for sampler, choice in zip(samplers, choices, strict=True)]

    @contextmanager
    def _on_device(self) -> Iterator[None]:
        with self._lock:
            self._gpu.make_current()
            yield

    def _read(self, parts: list[tuple[int, Tokens]]) -> None:
        for first, pieces in _passes(parts, self._pass.room):
            self._run(first, pieces)

    def _run(self, first: int, pieces: Sequence[tuple[int, Tokens]]) -> None:
        """One pass over tokens of neighbouring sequences, the first of which is the `first` of all that are read."""
        lengths = [len(tokens) for _, tokens in pieces]
        T, n = sum(lengths), len(pieces)
        self._gpu.upload(self._pass.tokens, np.concatenate([tokens for _, tokens in pieces]))
        self._gpu.upload(
            self._pass.slots, np.repeat(np.array([slot for slot, _ in pieces], np.int32), lengths)
        )
        self._gpu.upload(self._pass.begins, np.cumsum([0, *lengths], dtype=np.int32))
        if n == T and first == 0:
            self._graph(n, pieces[0][0])()
        else:
            self._gpu.run(self._steps(T, n, first))

    def _steps(self, T: int, n: int, first: int) -> list[Step]:
        """A sequence that goes on in the next pass has its logits written again there, over those of this one."""
        out = self._out.address + 4 * first * self._rows
        return [*self._pass.steps(T, n), *self._pass.logits(T, out, last_of=n)]

    def _alone(self, slot: int) -> list[Step]:
        """A token of one sequence: by the kernels for that, which take less time."""
        return self._decoder.steps(self._pass.tokens, slot, self._out.address)

    def _graph(self, n: int, slot: int) -> Callable[[], None]:
        """The pass of a token each of n sequences, or of the one in `slot`."""
        key = (n, slot if n == 1 else 0)
        if key not in self._graphs:
            if len(self._graphs) == GRAPHS:
                self._graphs.popitem(last=False)
            self._graphs[key] = self._gpu.graph(self._alone(slot) if n == 1 else self._steps(n, n, 0))
        self._graphs.move_to_end(key)
        return self._graphs[key]


def _passes(parts: Iterable[tuple[int, Tokens]], room: int) -> Iterator[tuple[int, list[tuple[int, Tokens]]]]:
    """Parts in the same order, cut into passes of up to `room` tokens; with each the number of its first part."""
    first, left = 0, room
    pieces: list[tuple[int, Tokens]] = []
    for i, (slot, tokens) in enumerate(parts):
        while len(tokens):
            pieces.append((slot, tokens[:left]))
            left -= len(pieces[-1][1])
            tokens = tokens[len(pieces[-1][1]) :]
            if not left:
                yield first, pieces
                first, left, pieces = i + (not len(tokens)), room, []
    if pieces:
        yield first, pieces
