"""The token loop: read a prompt, then choose and read one token after another. Token ids in, token ids out."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from rwkv_cli.engine.sampling import Choice, Sampler
from rwkv_cli.engine.session import NOTHING_READ, Session, Snapshot
from rwkv_cli.errors import UsageError
from rwkv_cli.reporting import Progress

UNLIMITED = -1

Finish = Literal["end", "stop", "length"]
"""Why a text ended: the model ended the document; a stop string or token came, or the constraint allows no more; or
max_tokens were generated."""

PromptReader = Callable[[Session, Sequence[int], Progress | None], int]
"""Reads a prompt into a session, and returns how many of its tokens did not have to be computed."""


@dataclass
class Usage:
    """Counts and times of a generation so far."""

    prompt_tokens: int
    cached_tokens: int = 0  # of the prompt, that came from a cache
    generated_tokens: int = 0
    drafted_tokens: int = 0  # proposed by a drafter
    accepted_tokens: int = 0  # of those, that were right
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0

    @property
    def prefill_speed(self) -> float:
        """Prompt tokens per second."""
        return self.prompt_tokens / self.prefill_seconds if self.prefill_seconds else 0.0

    @property
    def decode_speed(self) -> float:
        """Generated tokens per second; the first one comes from the prompt's logits and costs no pass."""
        passes = max(self.generated_tokens - 1, 0)
        return passes / self.decode_seconds if self.decode_seconds else 0.0


def read_directly(session: Session, tokens: Sequence[int], progress: Progress | None) -> int:
    """The `PromptReader` without a cache."""
    session.feed(tokens, progress)
    return 0


def check_limit(max_tokens: int) -> None:
    """Raise UsageError unless `max_tokens` is a limit, or `UNLIMITED`."""
    if max_tokens < UNLIMITED:
        raise UsageError(f"{{max_tokens}} is {max_tokens}: it must be at least 0, or -1 for no limit")


@dataclass(frozen=True)
class Ending:
    """What ends a text: a token, which is chosen but not read, or a limit. Raises UsageError for an invalid one."""

    end_of_document: int = 0
    stop_tokens: Collection[int] = ()
    max_tokens: int = UNLIMITED

    def __post_init__(self) -> None:
        check_limit(self.max_tokens)

    def after(self, token: int, generated: int, sampler: Sampler) -> tuple[Finish | None, bool]:
        """Why the text ends with this token, one of `generated`, and whether that is since it is complete.

        None if it does not. `sampler` has accepted the token, and knows whether anything may follow it.
        """
        if token == self.end_of_document:
            return "end", False
        if token in self.stop_tokens:
            return "stop", False
        if sampler.is_complete:
            return "stop", True
        return ("length" if generated == self.max_tokens else None), False


class TokenSource(Iterator[Choice], Protocol):
    """The tokens that follow a prompt, as `Generation` takes them."""

    usage: Usage
    progress: Progress | None  # of the prompt

    is_complete: bool  # they ended since a constraint allows nothing more

    @property
    def prompt(self) -> Sequence[int]:
        """What they follow."""
        ...

    @property
    def finish(self) -> Finish | None:
        """Why the tokens ended; None while they have not."""
        ...

    @property
    def keeps(self) -> bool:
        """Whether it will be possible to go on from where the text ends: whether `snapshot` and `session` are there."""
        ...

    @property
    def sampler(self) -> Sampler:
        """What chooses the tokens."""
        ...

    @property
    def session(self) -> Session:
        """Where the text stands. Raises UsageError while only a scheduler knows that."""
        ...

    def read_prompt(self) -> None:
        """Read the prompt, unless that was done."""
        ...

    def snapshot(self) -> Snapshot:
        """A copy of where the text stands, without the token that came last."""
        ...

    def close(self) -> None:
        """End the tokens here, if they have not ended."""
        ...


class TokenLoop(Iterator[Choice]):
    """The tokens that follow a prompt, until one that ends the text or a limit; `session` advances in place."""

    def __init__(
        self,
        session: Session,
        prompt: Sequence[int],
        ending: Ending,
        reader: PromptReader = read_directly,
    ) -> None:
        """`prompt` may be empty where the session has read something. Raises UsageError where it has not.

        The text ends as `ending` says, or where the constraint of the sampler allows nothing more.
        """
        if not len(prompt) and not session.has_read:
            raise UsageError(NOTHING_READ)
        self.session, self.prompt = session, prompt
        self.usage = Usage(prompt_tokens=len(prompt))
        self.finish: Finish | None = None
        self.is_complete = False
        self.progress: Progress | None = None
        self._is_read = False
        self._forced = deque[int]()  # tokens that have to come next
        self._ending, self._reader = ending, reader

    keeps = True

    @property
    def sampler(self) -> Sampler:
        """See `TokenSource`."""
        return self.session.sampler

    def __next__(self) -> Choice:
        if self.finish or self._ending.max_tokens == 0:
            raise StopIteration
        self.read_prompt()
        start = time.perf_counter()
        choice = self._choice()
        if self.usage.generated_tokens:
            self.usage.decode_seconds += time.perf_counter() - start
        self.usage.generated_tokens += 1
        if speculation := self.session.speculation:
            self.usage.drafted_tokens, self.usage.accepted_tokens = speculation.counts
        self.finish, self.is_complete = self._ending.after(
            choice.token, self.usage.generated_tokens, self.session.sampler
        )
        return choice

    def _choice(self) -> Choice:
        """The next token: what is forced, of which the model is not asked, or what it chooses."""
        if not self._forced:
            self._forced.extend(self.session.sampler.forced())
        if not self._forced:
            return self.session.sample()
        token = self._forced.popleft()
        self.session.force(token)
        return Choice(token, 0.0)

    def read_prompt(self) -> None:
        """Read the prompt, unless that was done."""
        if self._is_read:
            return
        start = time.perf_counter()
        if len(self.prompt):
            self.usage.cached_tokens = self._reader(self.session, self.prompt, self.progress)
        self._is_read = True
        self.usage.prefill_seconds = time.perf_counter() - start

    def snapshot(self) -> Snapshot:
        """See `TokenSource`."""
        return self.session.snapshot()

    def close(self) -> None:
        """See `TokenSource`: nothing comes unless it is asked for."""
