"""A generation: the token loop of a session, with text around it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from rwkv_cli.engine.generate import UNLIMITED, PromptReader, TokenLoop, Usage, read_directly
from rwkv_cli.engine.sampling import Sampler
from rwkv_cli.engine.session import Session, Snapshot
from rwkv_cli.reporting import Progress
from rwkv_cli.text.text_stream import TextStream
from rwkv_cli.text.tokenizer import Tokenizer

Finish = Literal["end", "stop", "length"]
"""Why a generation ended: the model ended the document, a stop string came, or max_tokens were generated."""


@dataclass(frozen=True)
class Step:
    """One generated token."""

    token: int
    text: str  # what can be shown now: may be empty, while half a character or a possible stop string is held back
    logprob: float  # the natural logarithm of the probability that the model gave the token
    finish: Finish | None = None  # set on the last step


class Generation(Iterator[Step]):
    """An iterator over steps that knows its usage, its session, and the text that it still holds back.

    When the iteration ends early, `flush` gives the text that was held back. `commit` gives the place after the text
    as it was shown, to continue from.
    """

    def __init__(
        self,
        session: Session,
        prompt: Sequence[int],
        tokenizer: Tokenizer | None,
        max_tokens: int = UNLIMITED,
        stop: Sequence[str] = (),
        reader: PromptReader = read_directly,
    ) -> None:
        """`prompt` follows what the session has read, and may be empty if it has. Raises UsageError."""
        self.session = session
        self.prompt, self.stop = prompt, tuple(stop)
        end = tokenizer.end_of_document if tokenizer else 0
        self._loop = TokenLoop(session, prompt, end, max_tokens, reader)
        self._stream = TextStream(tokenizer, stop)
        self._tokenizer = tokenizer
        # To take back what must not be read: where the session last stood with no text held back, if tokens were read
        # since; and what was shown of their text.
        self._mark: Snapshot | None = None
        self._shown = ""

    @property
    def usage(self) -> Usage:
        """Counts and times so far."""
        return self._loop.usage

    @property
    def sampler(self) -> Sampler:
        """What chooses the tokens."""
        return self.session.sampler

    @property
    def finish(self) -> Finish | None:
        """Why it ended; None while it has not."""
        return "stop" if self._stream.is_stopped else self._loop.finish

    def report_to(self, progress: Progress) -> None:
        """Report the tokens of the prompt as they are read."""
        self._loop.progress = progress

    def __next__(self) -> Step:
        if self.finish:
            raise StopIteration
        if self._stream.is_holding and self._mark is None:
            self._mark = self.session.snapshot()
        choice = next(self._loop)
        text = "" if self._loop.finish == "end" else self._stream.feed(choice.token)
        if self._stream.is_holding:
            self._shown += text
        else:
            self._mark, self._shown = None, ""
        if self.finish and self.finish != "stop":
            text += self.flush()
        return Step(choice.token, text, choice.logprob, self.finish)

    def flush(self) -> str:
        """The text held back so far, once no more will come."""
        rest = self._stream.flush()
        self._shown += rest
        return rest

    @property
    def is_inside_character(self) -> bool:
        """Whether the tokens so far end in the middle of a character."""
        return self._stream.is_inside_character

    def commit(self) -> Snapshot:
        """The place after the text as it stands; no more steps may follow.

        All tokens were read but one that ended the document. After a stop string, or in the middle of a character, the
        session is taken back to what was shown: the model never sees the stop string.
        """
        if not self.usage.generated_tokens:
            self._loop.read_prompt()
        elif self.finish == "stop" or (self.finish is None and self.is_inside_character):
            self._take_back()
        elif self.finish == "end":
            self.session.drop_pending()
        return self.session.freeze()

    def _take_back(self) -> None:
        self.session.drop_pending()
        if self._mark:
            self.session.rewind(self._mark)
        if self._shown and self._tokenizer:
            self.session.feed(self._tokenizer.encode(self._shown))
        self._mark, self._shown = None, ""
