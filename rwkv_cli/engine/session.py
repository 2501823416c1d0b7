"""A session: one mutable timeline of a model, and its snapshots.

Everything that continues a text is built on it: generations, conversations, batches, state files, the prompt cache.
Tokens go in and come out; text is the business of others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rwkv_cli.config import ModelConfig
from rwkv_cli.engine.backends.base import Backend
from rwkv_cli.engine.drafting import Drafter
from rwkv_cli.engine.sampling import Choice, Sampler, SamplerMemory
from rwkv_cli.engine.speculation import Speculation
from rwkv_cli.engine.state import State
from rwkv_cli.engine.token_ids import check_tokens
from rwkv_cli.errors import UsageError
from rwkv_cli.reporting import Progress

Array = NDArray[np.float32]

NOTHING_READ = "the prompt is empty: give some text to continue"


@dataclass(frozen=True)
class Snapshot:
    """A session, frozen: a place in a text from which a model continues without reading anything again.

    A snapshot and what it refers to never change; a session starts from a copy of the state.
    """

    state: State
    logits: Array | None = None  # [V] of the next token; None where nothing was read yet
    n_tokens: int = 0  # read so far
    memory: SamplerMemory | None = None  # of the sampler; None where nothing was sampled

    def __repr__(self) -> str:
        return f"<Snapshot: {self.n_tokens:,} tokens read, {self.state!r}>"

    @classmethod
    def empty(cls, config: ModelConfig) -> Snapshot:
        """Where nothing was read yet."""
        return cls(State.zeros(config))

    @property
    def nbytes(self) -> int:
        """Its size in memory."""
        logits = 0 if self.logits is None else self.logits.nbytes
        return self.state.nbytes + logits + (self.memory.nbytes if self.memory else 0)

    def fits(self, config: ModelConfig) -> bool:
        """Whether it is that of a model of these sizes."""
        return self.state.fits(config) and (self.logits is None or self.logits.shape == (config.vocab_size,))


class Session:
    """A state, the logits after it, the number of tokens read, and a sampler.

    `feed` reads tokens and `sample` chooses the next one, which is *pending* until the next of either reads it: so a
    backend can read a token and choose its successor in one step.
    """

    def __init__(
        self,
        backend: Backend,
        sampler: Sampler,
        start: Snapshot | None = None,
        drafter: Drafter | None = None,
    ) -> None:
        """`start` is left as it is. `drafter` proposes tokens, which may make it faster and changes nothing else.

        Raises UsageError for the start of a model of another shape.
        """
        self.backend, self.sampler = backend, sampler
        start = start or Snapshot.empty(backend.config)
        start.state.check_fits(backend.config)
        self._state = start.state.copy()
        self.speculation = Speculation(backend, drafter) if drafter else None
        self.n_tokens = start.n_tokens
        self.pending: int | None = None
        self._unread: list[int] = []  # tokens before the pending one, that were forced and not read yet
        self._logits: Array | Callable[[], Array] | None = start.logits

    @property
    def state(self) -> State:
        """The state after the last token that was read."""
        if self.speculation:
            self._state = self.speculation.settle(self._state)
        return self._state

    @property
    def logits(self) -> Array:
        """The logits [V] after the last token that was read. Raises UsageError where nothing was read."""
        if self._logits is None:
            raise UsageError(NOTHING_READ)
        if callable(self._logits):  # still on a device
            self._logits = self._logits()
        return self._logits

    @property
    def has_read(self) -> bool:
        """Whether anything was read, so that there are logits."""
        return self._logits is not None

    def __repr__(self) -> str:
        return f"<Session: {self.n_tokens:,} tokens read, {self.state!r}>"

    def feed(self, tokens: Sequence[int], progress: Progress | None = None) -> None:
        """Read the pending token, if there is one, and then `tokens`, which may be empty.

        Raises UsageError, before anything is read, for a token outside the vocabulary.
        """
        if len(tokens):
            check_tokens(np.asarray(tokens), self.backend.config.vocab_size)
        if self.pending is not None:
            tokens, self.pending = [self.pending, *tokens], None
        if self._unread:
            tokens, self._unread = [*self._unread, *tokens], []
        if len(tokens):
            self._logits = self.backend.forward(tokens, self.state, progress)
            self.n_tokens += len(tokens)
            if self.speculation:
                self.speculation.observe(tokens)

    def sample(self) -> Choice:
        """Choose the next token, after reading the pending one. Raises like `Sampler.sample`."""
        if self._unread:  # several tokens in one pass
            self.feed(())
        if self.pending is None:
            choice = self.backend.choose_from(self.logits, self.sampler)
        else:
            token, self.pending, self._logits = self.pending, None, None
            self.n_tokens += 1
            choice = self._read_and_choose(token)
        self.sampler.accept(choice.token)
        self.pending = choice.token
        return choice

    def _read_and_choose(self, token: int) -> Choice:
        """Read the token that was pending and choose the next one."""
        if not self.speculation:
            choice, self._logits = self.backend.choose(token, self._state, self.sampler)
            return choice
        logits, self._state = self.speculation.read(token, self._state, self.sampler)
        start = time.perf_counter()
        if logits is None:
            choice, self._logits = self.backend.choose(token, self._state, self.sampler)
        else:
            choice, self._logits = self.backend.choose_from(logits, self.sampler), logits
        self.speculation.took(time.perf_counter() - start, plain=logits is None)
        return choice

    def force(self, token: int) -> None:
        """Take a token that has to come next, without asking the model; those in a row are read in one pass."""
        self.take(token)
        self.sampler.accept(token)

    def take(self, token: int) -> None:
        """Take a token that the sampler has accepted: it is pending, those before it are to be read."""
        if self.pending is not None:
            self._unread.append(self.pending)
        self.pending = token

    def drop_pending(self) -> None:
        """Forget the token that was chosen last, without reading it."""
        self.pending = None

    def snapshot(self) -> Snapshot:
        """A copy of where the session stands; a pending token is not part of it."""
        if self._unread:
            pending, self.pending = self.pending, None
            self.feed(())
            self.pending = pending
        logits = self.logits if self.has_read else None
        return Snapshot(self.state.copy(), logits, self.n_tokens, self.sampler.memory)

    def freeze(self) -> Snapshot:
        """The snapshot of a session that is over: the state is not copied. A pending token is read first."""
        self.feed(())
        logits = self.logits if self.has_read else None
        return Snapshot(self.state, logits, self.n_tokens, self.sampler.memory)

    def rewind(self, snapshot: Snapshot) -> None:
        """Continue from a snapshot that is not used elsewhere, such as an earlier one; the sampler is unchanged."""
        if self.speculation:
            self.speculation.settle(self._state)
        self._state, self._logits, self.n_tokens = snapshot.state, snapshot.logits, snapshot.n_tokens
        self.pending, self._unread = None, []

    def fork(self) -> Session:
        """An independent copy: a branch of the text."""
        other = Session(self.backend, self.sampler.copy(), self.snapshot())
        other.pending = self.pending
        return other
