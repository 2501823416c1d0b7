"""A request on its way through the scheduler: the tokens that it was given, and where it stands."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from rwkv_cli.engine.generate import Finish, Usage
from rwkv_cli.engine.sampling import Choice, Sampler
from rwkv_cli.engine.scheduler.request import Request
from rwkv_cli.engine.session import NOTHING_READ, Session, Snapshot
from rwkv_cli.errors import RwkvError, UsageError
from rwkv_cli.reporting import Progress

Array = NDArray[np.float32]

Status = Literal["waiting", "running", "done"]


class Owner(Protocol):
    """What a handle needs of its scheduler."""

    def step(self) -> list[Handle]:
        """See `Scheduler.step`."""
        ...

    def cancel(self, handle: Handle) -> None:
        """See `Scheduler.cancel`."""
        ...

    def look(self, handle: Handle) -> Snapshot:
        """A copy of where a sequence stands, without the token that came last."""
        ...

    def logits(self, handle: Handle) -> Array | None:
        """See `Handle.logits`, for one that is running."""
        ...


class Handle(Iterator[Choice]):
    """The tokens of a request, in order: a `TokenSource`. Asking for one that has not come takes steps until it has.

    Whoever calls `Scheduler.step` takes the new tokens of each handle that it returns with `next`.
    """

    def __init__(self, owner: Owner, request: Request) -> None:
        self._owner = owner
        self.request = request
        self.status: Status = "waiting"
        self.reached: Finish | None = None  # why the last token is the last one
        self.is_complete = False
        self.prompt_left = len(request.tokens)  # of the unread tokens
        self.error: RwkvError | None = None  # why it ended, where that is no `finish`
        self.usage = Usage(prompt_tokens=len(request.tokens))
        self.progress: Progress | None = None
        self.unread: list[int] = list(request.tokens)  # of the prompt, and the tokens that came last
        self.resume: Snapshot | None = request.start  # where it goes on once it runs
        self.ended: Session | None = None  # where it stands, once it is done
        self.chosen = deque[Choice]()  # tokens that nobody has taken yet
        self._submitted = self._since = time.perf_counter()

    @property
    def has_tokens(self) -> bool:
        """Whether `next` gives a token, or the end, at once."""
        return bool(self.chosen) or self.status == "done"

    def __next__(self) -> Choice:
        while not self.has_tokens:
            self._owner.step()
        if self.chosen:
            return self.chosen.popleft()
        if self.error:
            raise self.error
        raise StopIteration

    def give(self, choice: Choice) -> None:
        """Add the next token, which the sampler has accepted; times are counted from the one before."""
        now = time.perf_counter()
        if self.usage.generated_tokens:
            self.usage.decode_seconds += now - self._since
        else:
            self.usage.prefill_seconds = now - self._submitted
        self._since = now
        self.usage.generated_tokens += 1
        self.chosen.append(choice)
        self.unread.append(choice.token)
        self.reached, self.is_complete = self.request.ending.after(
            choice.token, self.usage.generated_tokens, self.request.sampler
        )

    def give_forced(self) -> bool:
        """Add the tokens that have to come next, whatever the model says; whether there were any."""
        sampler, found = self.request.sampler, False
        while not self.reached and (forced := sampler.forced()):
            for token in forced:
                sampler.accept(token)
                self.give(Choice(token, 0.0))
                found = True
                if self.reached:
                    break
        return found

    @property
    def finish(self) -> Finish | None:
        """See `TokenSource`: None while tokens have not been taken."""
        return None if self.chosen else self.reached

    @property
    def prompt(self) -> Sequence[int]:
        """See `TokenSource`."""
        return self.request.tokens

    @property
    def keeps(self) -> bool:
        """See `TokenSource`."""
        return self.request.keeps

    @property
    def sampler(self) -> Sampler:
        """See `TokenSource`."""
        return self.request.sampler

    @property
    def session(self) -> Session:
        """Where the text stands, once it is done. Raises UsageError before, and where nothing is kept."""
        if self.ended is None:
            raise UsageError(
                "the text is not done"
                if self.status != "done"
                else "nothing is kept of where this text ended: submit it with `keeps`"
            )
        return self.ended

    def read_prompt(self) -> None:
        """See `TokenSource`: of a text without a token, this reads the prompt where it stands."""
        if not self.usage.generated_tokens and self.unread:
            unread, self.unread = self.unread, []
            self.session.feed(unread, self.progress)

    def snapshot(self) -> Snapshot:
        """See `TokenSource`."""
        if self.ended:
            return self.ended.snapshot()
        return self._owner.look(self)

    def logits(self) -> Array | None:
        """The logits [V] that the token that came last was chosen from, until the next step.

        None before there is one, and of a request that is done and kept nothing.
        """
        if self.status == "done":
            return self.ended.logits if self.ended and self.ended.has_read else None
        return self._owner.logits(self)

    def close(self) -> None:
        """See `TokenSource`."""
        self._owner.cancel(self)


def check(request: Request, vocab_size: int) -> None:
    """Raise UsageError for a request with nothing to read, or with settings that cannot be."""
    has_read = request.start is not None and request.start.logits is not None
    if not len(request.tokens) and not has_read:
        raise UsageError(NOTHING_READ)
    if request.observed and not 1 <= request.observed.n <= len(request.tokens):
        raise UsageError(
            f"the logits after {request.observed.n} of {len(request.tokens)} tokens are wanted: "
            "it must be at least one, and no more than there are"
        )
    request.sampler.check(vocab_size)
