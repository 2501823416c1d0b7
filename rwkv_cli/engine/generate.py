"""The token loop: read a prompt, then choose, decode and feed back one token after another."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from rwkv_cli.engine.backends.base import Backend, Chooses, Progress
from rwkv_cli.engine.sampling import Choice, Logits, Sampler
from rwkv_cli.engine.state import Position
from rwkv_cli.errors import UsageError
from rwkv_cli.text.stop_strings import StopFilter
from rwkv_cli.text.tokenizer import StreamDecoder, Tokenizer

Finish = Literal["end", "stop", "length"]
"""Why a generation ended: the model ended the document, a stop string came, or max_tokens were generated."""

UNLIMITED = -1


@dataclass(frozen=True)
class Step:
    """One generated token."""

    token: int
    text: str  # what can be shown now: may be empty, while half a character or a possible stop string is held back
    logprob: float  # the natural logarithm of the probability that the model gave the token
    finish: Finish | None = None  # set on the last step


@dataclass
class Usage:
    """Counts and times of a generation so far."""

    prompt_tokens: int
    generated_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0

    @property
    def prefill_speed(self) -> float:
        """Prompt tokens a second."""
        return self.prompt_tokens / self.prefill_seconds if self.prefill_seconds else 0.0

    @property
    def decode_speed(self) -> float:
        """Generated tokens a second; the first one comes out of the prompt's logits and costs no pass."""
        passes = max(self.generated_tokens - 1, 0)
        return passes / self.decode_seconds if self.decode_seconds else 0.0


@dataclass
class Generation(Iterator[Step]):
    """An iterator over steps that knows its usage, its state, and the text that it still holds back.

    `tokens` is the prompt, which follows what was read up to `position`; it may be empty where something was read.
    `position` is advanced in place, and `settle` completes it: until then a backend may keep the logits. Without a
    tokenizer the steps have no text. When the iteration ends early, `flush` gives the text that was held back.
    """

    backend: Backend
    tokenizer: Tokenizer | None
    tokens: Sequence[int]
    position: Position
    sampler: Sampler
    max_tokens: int = UNLIMITED
    stop: Sequence[str] = ()
    progress: Progress | None = None
    usage: Usage = field(init=False)
    finish: Finish | None = None

    def __post_init__(self) -> None:
        if not len(self.tokens) and self.position.logits is None:
            raise UsageError("the prompt is empty: give some text to go on from")
        if self.max_tokens < UNLIMITED:
            raise UsageError(f"--max-tokens is {self.max_tokens}: it must be at least 0, or -1 for no limit")
        if self.stop and not self.tokenizer:
            raise UsageError("stop strings need a tokenizer, and this model has none")
        self.usage = Usage(prompt_tokens=len(self.tokens))
        self._decoder = StreamDecoder(self.tokenizer) if self.tokenizer else None
        self._filter = StopFilter(self.stop)
        self._chooser = self.backend if isinstance(self.backend, Chooses) else None
        self._last: int | None = None  # a token that was chosen and not yet read by the model
        # For `settle`: where the text last stood with nothing held back, if tokens were read since; and what of their
        # text was shown.
        self._mark: Position | None = None
        self._shown = ""
        self._end = self.tokenizer.end_of_document if self.tokenizer else 0

    def __next__(self) -> Step:
        if self.finish or self.max_tokens == 0:
            raise StopIteration
        return self.take(self._choose())

    def take(self, choice: Choice) -> Step:
        """Go on with a token that somebody else has chosen, who reads the text in place of the backend."""
        self._last = choice.token
        self.usage.generated_tokens += 1
        text = self._show(choice.token)
        if self._is_holding:
            self._shown += text
        else:
            self._mark, self._shown = None, ""
        if self.finish and self.finish != "stop":
            text += self.flush()
        return Step(choice.token, text, choice.logprob, self.finish)

    def flush(self) -> str:
        """The text held back so far; for the end, when no more will come."""
        if self._decoder is None or self._filter.stopped:
            return ""
        rest = self._filter.feed(self._decoder.flush()) + self._filter.flush()
        self._shown += rest
        return rest

    def settle(self) -> Position:
        """The position after the text as it stands, to go on from; no more steps should be taken.

        All tokens were read but for one that ended the document. After a stop string, or in the middle of a character,
        the model is taken back to what was shown: it never sees the stop string.
        """
        self._fetch_logits()
        if self._last is None and self.usage.generated_tokens == 0:
            self._read(self.tokens)
        elif self.finish == "stop" or (self.finish is None and self.is_inside_character):
            self._take_back()
        elif self._last != self._end:
            self._read([] if self._last is None else [self._last])
        self.tokens, self._last = (), None
        return self.position

    def _take_back(self) -> None:
        if self._mark:
            self.position.state, self.position.logits = self._mark.state, self._mark.logits
            self.position.tokens = self._mark.tokens
        if self._shown and self.tokenizer:
            self._read(self.tokenizer.encode(self._shown))

    @property
    def _is_holding(self) -> bool:
        """Whether some text of the tokens so far was not shown."""
        return bool(self._filter.stopped or self._filter.held or self.is_inside_character)

    @property
    def is_inside_character(self) -> bool:
        """Whether the tokens so far end in the middle of a character."""
        return self._decoder is not None and self._decoder.is_inside_character

    def _choose(self) -> Choice:
        """The next token: after the prompt, or after the last token chosen."""
        start = time.perf_counter()
        if self._last is None:
            logits = self._read(self.tokens)
            self.usage.prefill_seconds = time.perf_counter() - start
            return self.sampler.sample(logits)
        if self._is_holding and self._mark is None:
            self._fetch_logits()
            self._mark = self.position.copy()
        if self._chooser is None:
            logits = self._read([self._last])
            self.usage.decode_seconds += time.perf_counter() - start
            return self.sampler.sample(logits)
        at, token = self.position, self._last
        at.logits, at.tokens, self._last = None, at.tokens + 1, None
        choice = self._chooser.choose(token, at.state, self.sampler)
        self.usage.decode_seconds += time.perf_counter() - start
        return choice

    def _fetch_logits(self) -> None:
        """Have those of the position, if the backend has chosen from them and nobody needed them yet."""
        if self._chooser and self.position.logits is None and self.usage.generated_tokens:
            self.position.logits = self._chooser.logits_of(self.position.state)

    def _read(self, tokens: Sequence[int]) -> Logits:
        """Advance the position: the logits after these tokens, or, for none, those that it has."""
        at = self.position
        if len(tokens):
            at.logits = self.backend.forward(tokens, at.state, self.progress)
            at.tokens += len(tokens)
        self._last, self.progress = None, None
        if at.logits is None:
            raise UsageError("the prompt is empty: give some text to go on from")
        return at.logits

    def _show(self, token: int) -> str:
        """The text that this token lets out; sets `finish` if it is the last one."""
        text = ""
        if token == self._end:
            self.finish = "end"
        elif self._decoder is not None:
            text = self._filter.feed(self._decoder.feed(token))
        if self._filter.stopped:
            self.finish = "stop"
        elif not self.finish and self.usage.generated_tokens == self.max_tokens:
            self.finish = "length"
        return text
