"""The token loop: read a prompt, then choose and read one token after another. Token ids in, token ids out."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from rwkv_cli.engine.sampling import Choice
from rwkv_cli.engine.session import NOTHING_READ, Session
from rwkv_cli.errors import UsageError
from rwkv_cli.reporting import Progress

UNLIMITED = -1

PromptReader = Callable[[Session, Sequence[int], Progress | None], int]
"""Reads a prompt into a session, and returns how many of its tokens did not have to be computed."""


@dataclass
class Usage:
    """Counts and times of a generation so far."""

    prompt_tokens: int
    cached_tokens: int = 0  # of the prompt, that came from a cache
    generated_tokens: int = 0
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


class TokenLoop(Iterator[Choice]):
    """The tokens that follow a prompt, until one that ends the text or a limit; `session` advances in place."""

    def __init__(
        self,
        session: Session,
        prompt: Sequence[int],
        end_of_document: int,
        max_tokens: int = UNLIMITED,
        reader: PromptReader = read_directly,
        stop_tokens: Collection[int] = (),
    ) -> None:
        """`prompt` may be empty where the session has read something. Raises UsageError where it has not.

        The text ends with the token `end_of_document` or one of `stop_tokens`, which is chosen but not read, or where
        the constraint of the sampler allows nothing more.
        """
        if not len(prompt) and not session.has_read:
            raise UsageError(NOTHING_READ)
        check_limit(max_tokens)
        self.session = session
        self.usage = Usage(prompt_tokens=len(prompt))
        self.finish: Literal["end", "stop", "length"] | None = None
        self.is_complete = False  # it ended since the constraint allows nothing more
        self._forced = deque[int]()  # tokens that have to come next
        self.progress: Progress | None = None  # of the prompt
        self._prompt: Sequence[int] | None = prompt  # None once it was read
        self._end, self._stop_tokens = end_of_document, stop_tokens
        self._max_tokens, self._reader = max_tokens, reader

    def __next__(self) -> Choice:
        if self.finish or self._max_tokens == 0:
            raise StopIteration
        self.read_prompt()
        start = time.perf_counter()
        choice = self._choice()
        if self.usage.generated_tokens:
            self.usage.decode_seconds += time.perf_counter() - start
        self.usage.generated_tokens += 1
        if choice.token == self._end:
            self.finish = "end"
        elif choice.token in self._stop_tokens:
            self.finish = "stop"
        elif self.session.sampler.is_complete:
            self.finish, self.is_complete = "stop", True
        elif self.usage.generated_tokens == self._max_tokens:
            self.finish = "length"
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
        if self._prompt is None:
            return
        start = time.perf_counter()
        if len(self._prompt):
            self.usage.cached_tokens = self._reader(self.session, self._prompt, self.progress)
        self._prompt = None
        self.usage.prefill_seconds = time.perf_counter() - start
