"""A generation: the token loop of a session, with text around it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rwkv_cli.engine.generate import Finish, TokenSource, Usage
from rwkv_cli.engine.sampling import Sampler
from rwkv_cli.engine.session import Session, Snapshot
from rwkv_cli.reporting import Progress, pluralize
from rwkv_cli.text.text_stream import TextStream
from rwkv_cli.text.thinking import Part, ThoughtSplitter, joined
from rwkv_cli.text.tokenizer import Tokenizer

_LAST = 60  # characters of the text that are shown where a person looks at a generation


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What can be shown now: nothing, while half a character or what may be a stop string or a tag is held back."""

    text: str  # as the model wrote it, tags included
    parts: tuple[Part, ...] = ()  # the same without tags, as pieces of a thought and of the answer

    @property
    def thought(self) -> str:
        """What this adds to the thought before the answer."""
        return joined(self.parts, thought=True)

    @property
    def answer(self) -> str:
        """What this adds to the answer; in a template without roles, this is `text`."""
        return joined(self.parts, thought=False)


@dataclass(frozen=True, kw_only=True)
class Step(Shown):
    """One generated token."""

    token: int
    logprob: (
        float  # the natural logarithm of the probability that the model gave the token; 0 where it was forced
    )
    finish: Finish | None = None  # set on the last step


class Generation(Iterator[Step]):
    """An iterator over steps that knows its usage, its session, and the text that it still holds back.

    When the iteration ends early, `flush` gives the text that was held back. `commit` gives the place after the text
    as it was shown, to continue from. A limit of tokens may come in the middle of a character: its bytes are then
    `unfinished`, for a generation that goes on from there.
    """

    def __init__(
        self,
        source: TokenSource,
        tokenizer: Tokenizer | None,
        stop: Sequence[str] = (),
        *,
        splitter: ThoughtSplitter | None = None,
        unfinished: bytes = b"",
    ) -> None:
        """`source` gives the tokens that follow a prompt. Raises UsageError for stop strings that cannot be.

        `splitter` tells thoughts from the answer; without one, all text is the answer. `unfinished` are the bytes of a
        character that was read half of before.
        """
        self._source, self.stop = source, tuple(stop)
        self._stream = TextStream(tokenizer, stop, unfinished)
        self._splitter = splitter
        self._tokenizer = tokenizer
        # To take back what must not be read: where the session last stood with no text held back, if tokens were read
        # since; and what was shown of their text.
        self._mark: Snapshot | None = None
        self._marked = 0  # tokens that the mark has read of those generated
        self._shown = ""
        self._read_before = unfinished  # of the first character of what was shown
        self._left: bytes | None = None  # of a character, once the session was taken back to before its end
        self._given: list[str] = []  # the text of all steps, and what was held back
        self._has_begun = False

    def __repr__(self) -> str:
        if not self._has_begun:
            return f"<Generation: not begun, {pluralize(self.usage.prompt_tokens, 'token')} of prompt>"
        text, count = "".join(self._given), pluralize(self.usage.generated_tokens, "token")
        shown = f"…{text[-_LAST:]}" if len(text) > _LAST else text
        return f"<Generation: {count}, {self.finish or 'not ended'}: {shown!r}>"

    @property
    def text(self) -> str:
        """The text so far; of a generation that nobody has iterated over, all of it, which is generated now.

        It is what the model wrote, thoughts and their tags included.
        """
        if not self._has_begun:
            for _ in self:
                pass
        return "".join(self._given)

    @property
    def prompt(self) -> Sequence[int]:
        """The tokens that it follows."""
        return self._source.prompt

    @property
    def session(self) -> Session:
        """Where the text stands. Raises UsageError while a scheduler runs it."""
        return self._source.session

    @property
    def usage(self) -> Usage:
        """Counts and times so far."""
        return self._source.usage

    @property
    def sampler(self) -> Sampler:
        """What chooses the tokens."""
        return self._source.sampler

    @property
    def finish(self) -> Finish | None:
        """Why it ended; None while it has not."""
        return "stop" if self._stream.is_stopped else self._source.finish

    @property
    def is_in_thought(self) -> bool:
        """Whether the text so far ends inside a thought."""
        return self._splitter is not None and self._splitter.is_in_thought

    def report_to(self, progress: Progress) -> None:
        """Report the tokens of the prompt as they are read."""
        self._source.progress = progress

    def __next__(self) -> Step:
        self._has_begun = True
        if self.finish:
            raise StopIteration
        if self._source.keeps and self._mark is None and self._stream.is_holding:
            self._mark = self._source.snapshot()
            self._marked = self.usage.generated_tokens - 1  # without the pending one
        choice = next(self._source)
        text = "" if self._is_ended_by_token else self._stream.feed(choice.token)
        if self._stream.is_holding:
            self._shown += text
        else:
            self._forget_mark()
        parts = self._split(text)
        if self.finish:
            self._source.close()  # after a stop string, it would go on
            rest = self._rest(self._stream.rest() if self.finish == "length" else self._stream.flush())
            text, parts = text + rest.text, (*parts, *rest.parts)
        self._given.append(text)
        return Step(text=text, parts=parts, token=choice.token, logprob=choice.logprob, finish=self.finish)

    def flush(self) -> str:
        """The text held back so far, once no more will come."""
        rest = self._rest(self._stream.flush()).text
        self._given.append(rest)
        return rest

    def rest(self) -> Shown:
        """The text held back so far, where it ends early: without half a character, which `commit` takes back."""
        rest = self._rest("" if self.is_inside_character else self._stream.flush())
        self._given.append(rest.text)
        return rest

    def _rest(self, rest: str) -> Shown:
        self._shown += rest
        parts = self._split(rest)
        held = self._splitter.flush() if self._splitter else []
        return Shown(text=rest, parts=(*parts, *held))

    def _split(self, text: str) -> tuple[Part, ...]:
        if self._splitter:
            return tuple(self._splitter.feed(text))
        return (Part(text),) if text else ()

    @property
    def is_inside_character(self) -> bool:
        """Whether the tokens so far end in the middle of a character."""
        return self._stream.is_inside_character

    @property
    def unfinished(self) -> bytes:
        """The first bytes of a character that the tokens so far end in the middle of; they are in no step's text."""
        return self._stream.unfinished if self._left is None else self._left

    @property
    def _is_ended_by_token(self) -> bool:
        """Whether the last token is one that ends the text: it has no text, and is not read."""
        return self._source.finish in ("end", "stop") and not self._source.is_complete

    def commit(self, *, whole_characters: bool = False) -> Snapshot:
        """The place after the text as it stands; no more steps may follow.

        All tokens were read but one that ended the text. After a stop string, or an interruption in the middle of a
        character, the session is taken back to what was shown: the model never sees the stop string. At the limit of
        tokens it has read what is `unfinished` too, unless `whole_characters` are wanted.
        """
        self._has_begun = True
        self._source.close()
        if not self.usage.generated_tokens:
            self._source.read_prompt()
        elif self._is_ended_by_token:
            self.session.drop_pending()
        elif self._stream.is_stopped or (
            self.is_inside_character and (self.finish is None or whole_characters)
        ):
            self._take_back()
        return self.session.freeze()

    def _take_back(self) -> None:
        taken = self.usage.generated_tokens - self._marked if self._mark else 1
        self.session.drop_pending()
        if self._mark:
            self.session.rewind(self._mark)
        self._left = b"" if self._shown else self._read_before
        shown = self._tokenizer.encode(self._unread()) if self._shown and self._tokenizer else []
        self.session.feed(shown)
        if self._stream.is_stopped:
            self.sampler.constraint = None  # what was cut off may be a part of what it demands
        elif self.sampler.constraint:
            self.sampler.constraint.rollback(taken)
            for token in shown:
                self.sampler.constraint.accept(token)
        self._forget_mark()

    def _unread(self) -> str:
        """What was shown since the mark, without those bytes of its first character that were read before."""
        shown = self._shown.encode()
        if not shown.startswith(self._read_before):  # it never became a character
            return self._shown[1:]
        return shown[len(self._read_before) :].decode("utf-8", "surrogateescape")

    def _forget_mark(self) -> None:
        self._mark, self._shown, self._read_before = None, "", b""
