"""The loop of continuous batching: every step reads some tokens of each running sequence, in as few passes as fit."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from rwkv_cli.engine.backends.base import Backend
from rwkv_cli.engine.sampling import Choice, Sampler
from rwkv_cli.engine.scheduler.fair_queue import FairQueue
from rwkv_cli.engine.scheduler.handle import Handle, check
from rwkv_cli.engine.scheduler.request import Request
from rwkv_cli.engine.scheduler.rows import Row, shares
from rwkv_cli.engine.scheduler.shared_prefixes import SharedPrefixes
from rwkv_cli.engine.session import Session, Snapshot
from rwkv_cli.engine.token_ids import check_tokens
from rwkv_cli.errors import RwkvError

Array = NDArray[np.float32]

QUANTUM = 64
"""Tokens that a sequence is given before it may have to make room for a submitter who waits."""

STATE_BYTES = 256_000_000
"""Of all states after common beginnings together."""

OBSERVED = 64
"""Tokens, of all sequences together, whose logits are in memory at the same time."""

PROMPT_PART = 4
"""Prompts are given at least one part in this many of a pass, however many sequences are being answered."""


class Scheduler:
    """Runs requests on one backend. `submit` and `cancel` may be called by any thread, `step` by one at a time.

    A sequence that is being answered waits for no more than a step, and a step reads no more than one pass of
    `Batch.capacity` tokens, or a token of each sequence and a quarter of a pass.
    """

    def __init__(self, backend: Backend, slots: int | None = None, state_bytes: int = STATE_BYTES) -> None:
        """Room for `slots` running sequences, None for the backend's own number; others wait, however many.

        Raises UsageError for no slots, DeviceError if there is too little memory.
        """
        self._backend = backend
        self._batch = backend.batch(backend.batch_size if slots is None else slots)
        self._inbox = deque[Handle]()
        self._cancelled = deque[Handle]()
        self._queue = FairQueue[Handle]()
        self._rows = dict[int, Row]()  # by slot
        self._prefixes = SharedPrefixes(state_bytes)
        self._stepping = threading.RLock()

    # --- from outside -----------------------------------------------------------------------------------------------

    @property
    def running(self) -> int:
        """Sequences that are being read or answered."""
        return len(self._rows)

    @property
    def waiting(self) -> int:
        """Requests for which there was no room yet."""
        return len(self._inbox) + len(self._queue)

    def submit(self, request: Request) -> Handle:
        """Have a request answered. Raises UsageError, before anything is read, for one that cannot be."""
        config = self._backend.config
        check(request, config.vocab_size)
        if len(request.tokens):
            check_tokens(np.asarray(request.tokens), config.vocab_size)
        if request.start:
            request.start.state.check_fits(config)
        handle = Handle(self, request)
        self._inbox.append(handle)
        return handle

    def cancel(self, handle: Handle) -> None:
        """End a request where it stands; nothing if it has ended. Another thread's step is not waited for."""
        self._cancelled.append(handle)
        if self._stepping.acquire(blocking=False):
            try:
                self._take_in()
            finally:
                self._stepping.release()

    def step(self) -> list[Handle]:
        """Read and choose once: the handles that have new tokens, or have ended. None where nothing is left to do.

        A sequence that fails ends alone, see `Handle.error`; if the device fails, all that run end so.
        """
        with self._stepping:
            self._take_in()
            self._make_room()
            moved = self._admit()
            if self._rows:
                moved += self._advance()
            return moved

    def look(self, handle: Handle) -> Snapshot:
        """See `handle.Owner`."""
        with self._stepping:
            row = self._row_of(handle)
            if row is None:
                return handle.resume or Snapshot.empty(self._backend.config)
            at = self._snapshot(row)
            # Of the tokens that were taken, all but the last one; there are several where they were forced.
            taken = len(handle.unread) - len(handle.chosen) - 1
            if taken > 0:
                logits = self._backend.forward(handle.unread[:taken], at.state)
                at = replace(at, logits=logits, n_tokens=at.n_tokens + taken)
            return at

    def logits(self, handle: Handle) -> Array | None:
        """See `Handle.logits`."""
        with self._stepping:
            row = self._row_of(handle)
            return self._logits(row) if row and handle.usage.generated_tokens else None

    # --- who is there -----------------------------------------------------------------------------------------------

    def _take_in(self) -> None:
        """Take in what other threads have left: requests, and which are not wanted any more."""
        while self._inbox:
            handle = self._inbox.popleft()
            self._queue.push(handle.request.submitter, handle)
            if handle.request.ending.max_tokens != 0:
                self._prefixes.add(handle, self._rows.values())
        while self._cancelled:
            handle = self._cancelled.popleft()
            if self._queue.remove(handle.request.submitter, handle):
                self._prefixes.drop(handle)
                self._end(handle, None)
            elif row := self._row_of(handle):
                self._leave(row)

    def _row_of(self, handle: Handle) -> Row | None:
        return next((each for each in self._rows.values() if each.handle is handle), None)

    def _admit(self) -> list[Handle]:
        """Let sequences join while there are slots: those that have a token, or have ended, without a pass."""
        ended: list[Handle] = []
        rows = self._rows
        while self._batch.free and (
            handle := self._queue.pop(lambda each: self._prefixes.can_begin(each, rows.values()))
        ):
            if handle.request.ending.max_tokens == 0:
                handle.reached = "length"
                self._end(handle, None)
                ended.append(handle)
                continue
            row, logits = self._join(handle)
            if not handle.unread and logits is not None:  # the first token needs no pass
                ended.append(handle)
                if self._prepare(row) and not handle.unread:
                    self._give(row, self._backend.choose_from(logits, handle.request.sampler))
        return ended

    def _make_room(self) -> None:
        """Let the sequence that was served longest wait, where a submitter has none and all slots are taken."""
        if self._batch.free or not self._rows:
            return
        here = {row.handle.request.submitter for row in self._rows.values()}
        if all(submitter in here for submitter in self._queue.submitters):
            return
        row = max(self._rows.values(), key=lambda each: each.served)
        if row.served >= QUANTUM:
            self._park(row)

    def _park(self, row: Row) -> None:
        """Let a sequence wait, at the front of its line; its state waits on the host."""
        handle = row.handle
        handle.resume, handle.status = self._snapshot(row), "waiting"
        self._remove(row)
        self._queue.push_first(handle.request.submitter, handle)

    def _join(self, handle: Handle) -> tuple[Row, Array | None]:
        """Give a sequence a slot, with the longest beginning of its prompt that is known, and the logits after that."""
        request, begun = handle.request, handle.resume
        place, known = self._prefixes.begin(handle)
        found = None
        if request.beginnings and not request.start and not known and not handle.usage.generated_tokens:
            found = begun = request.beginnings.longest()
        base = handle.resume.n_tokens if handle.resume else 0
        state = known.state if known else begun.state if begun else None
        row = Row(handle, self._batch.join(state), base, base, place)
        self._rows[row.slot] = row
        handle.status = "running"
        self._skip(row, known.depth if known else found.n_tokens if found else 0)
        self._prefixes.plan(row)
        if request.beginnings and not request.start and row.is_reading:
            row.places = [each for each in request.beginnings.places if each > row.position]
        return row, None if known or begun is None else begun.logits

    @staticmethod
    def _skip(row: Row, n: int) -> None:
        """Leave out tokens of a prompt that need not be read."""
        del row.handle.unread[:n]
        row.n_read += n
        row.handle.prompt_left -= n
        row.handle.usage.cached_tokens = n
        row.nodes = [each for each in row.nodes if each.depth > row.position]
        if n and row.handle.progress:
            row.handle.progress(n)

    def _leave(self, row: Row) -> None:
        """A sequence is done."""
        snapshot = self._snapshot(row) if row.handle.request.keeps else None
        self._remove(row)
        self._end(row.handle, snapshot)

    def _remove(self, row: Row) -> None:
        self._prefixes.forget(row)
        self._batch.drop(row.slot)
        del self._rows[row.slot]

    def _end(self, handle: Handle, snapshot: Snapshot | None) -> None:
        """Set what stays of a request that is done."""
        handle.status = "done"
        if not handle.request.keeps:
            return
        at = snapshot or handle.resume or Snapshot.empty(self._backend.config)
        handle.ended = Session(self._backend, handle.request.sampler, at)
        if handle.prompt_left and handle.usage.generated_tokens:  # all of the answer was forced
            handle.ended.feed(handle.unread[: handle.prompt_left])
            del handle.unread[: handle.prompt_left]
        if handle.usage.generated_tokens:
            for token in handle.unread:
                handle.ended.take(token)

    def _snapshot(self, row: Row) -> Snapshot:
        """A copy of where a sequence stands."""
        logits = self._logits(row)
        copy = None if logits is None else logits.copy()
        return Snapshot(self._batch.state(row.slot), copy, row.n_read, row.handle.request.sampler.memory)

    def _logits(self, row: Row) -> Array | None:
        """The logits after what a sequence has read, where they were computed; perhaps a view."""
        handle, logits = row.handle, self._batch.logits(row.slot)
        if logits is None and row.n_read == row.base and handle.resume:
            logits = handle.resume.logits
        return logits

    # --- a step -----------------------------------------------------------------------------------------------------

    def _advance(self) -> list[Handle]:
        """Read a part of each sequence, and choose the tokens that follow: the handles that got one."""
        parts: dict[int, list[int]] = {}
        samplers: dict[int, Sampler] = {}
        wanted: set[int] = set()
        moved = self._observe()
        for slot, n in self._shares().items():
            row = self._rows[slot]
            handle = row.handle
            if n == len(handle.unread):
                has_more = self._prepare(row)
                if len(handle.unread) > n or not has_more:
                    moved.append(handle)
                if not has_more:
                    continue
                n = len(handle.unread)  # with what is forced, in the same pass
                samplers[slot] = handle.request.sampler
            elif row.places and row.places[0] == row.position + n:
                wanted.add(slot)
            parts[slot] = handle.unread[:n]
        if not parts:
            return moved
        try:
            choices = self._batch.choose(parts, samplers, wanted)
        except RwkvError as error:  # of the device: nobody knows where the states are
            return self._fail(error)
        for slot, tokens in parts.items():
            self._has_read(self._rows[slot], len(tokens))
        for slot, choice in choices.items():
            row = self._rows[slot]
            if row.handle not in moved:
                moved.append(row.handle)
            self._give(row, choice)
        return moved

    def _prepare(self, row: Row) -> bool:
        """Take what is forced before the next token is chosen; whether one is to be chosen."""
        handle = row.handle
        try:
            handle.give_forced()
            handle.request.sampler.prepare()
        except RwkvError as error:  # the constraint is too complex
            handle.error = error
        if handle.reached or handle.error:
            self._leave(row)
            return False
        return True

    def _observe(self) -> list[Handle]:
        """Read the tokens after each of which logits are wanted, as many as may be: the handles that have ended."""
        observed = [row for row in self._rows.values() if row.is_observed]
        if not observed:
            return []
        given = shares(observed, OBSERVED)
        parts = {slot: self._rows[slot].handle.unread[:n] for slot, n in given.items()}
        try:
            found = self._batch.read_all(parts)
        except RwkvError as error:
            return self._fail(error)
        ended = []
        for slot, n in given.items():
            row = self._rows[slot]
            assert row.handle.request.observed
            row.handle.request.observed.take(found[slot])
            self._has_read(row, n)
            if not row.handle.unread:
                row.handle.reached = "length"
                ended.append(row.handle)
                self._leave(row)
        return ended

    def _fail(self, error: RwkvError) -> list[Handle]:
        """End all that run, with an error of them all."""
        rows = [*self._rows.values()]
        for row in rows:
            row.handle.error = error
            self._remove(row)
            row.handle.status = "done"
        return [row.handle for row in rows]

    def _shares(self) -> dict[int, int]:
        """How many tokens each sequence reads now, by slot."""
        answered = {slot: len(row.handle.unread) for slot, row in self._rows.items() if not row.is_reading}
        reading = [row for row in self._rows.values() if row.is_reading and not row.is_observed]
        if not reading:
            return answered
        room = max(self._batch.capacity - sum(answered.values()), self._batch.capacity // PROMPT_PART, 1)
        return answered | shares(reading, room)

    def _has_read(self, row: Row, n: int) -> None:
        """Note tokens that were read, and keep the state where others will begin."""
        handle = row.handle
        row.n_read += n
        del handle.unread[:n]
        if not handle.prompt_left:
            return
        of_prompt = min(n, handle.prompt_left)
        handle.prompt_left -= of_prompt
        if handle.progress:
            handle.progress(of_prompt)
        self._prefixes.reached(row, lambda: self._batch.state(row.slot))
        request = row.handle.request
        while row.places and row.places[0] <= row.position:
            place = row.places.pop(0)
            if place == row.position and request.beginnings:
                at = self._snapshot(row)
                request.beginnings.keep(Snapshot(at.state, at.logits, at.n_tokens))

    def _give(self, row: Row, choice: Choice) -> None:
        """Give a sequence its next token, and let it leave if that is the last one."""
        handle = row.handle
        try:
            handle.request.sampler.accept(choice.token)
        except RwkvError as error:
            handle.error = error
            self._leave(row)
            return
        if not row.served:
            self._prefixes.forget(row)
        handle.give(choice)
        row.served += 1
        if handle.reached:
            self._leave(row)
