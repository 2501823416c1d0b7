"""What a model writes after prompts, many at once: the text, without a thought, up to a stop string."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from rwkv_cli.engine.backends.base import Backend
from rwkv_cli.engine.generate import Ending
from rwkv_cli.engine.sampling import Sampler
from rwkv_cli.engine.scheduler import Handle, Request, Scheduler
from rwkv_cli.evaluation.harness.log_likelihoods import AHEAD
from rwkv_cli.sampling_settings import SamplingSettings
from rwkv_cli.text.stop_strings import StopFilter
from rwkv_cli.text.thinking import Part, ThoughtSplitter
from rwkv_cli.text.tokenizer import StreamDecoder, Tokenizer


@dataclass(frozen=True)
class Prompt:
    """Tokens to answer, and how."""

    tokens: Sequence[int]
    settings: SamplingSettings
    ending: Ending
    stop: Sequence[str] = ()  # strings before which the answer ends; in a thought they mean nothing


def answer_all(
    backend: Backend,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    new_splitter: Callable[[], ThoughtSplitter],
    done: Callable[[int, str], Any],
    slots: int | None = None,
) -> None:
    """Call `done` with the index and the text of each answer, as they are complete.

    `new_splitter` tells the thought of an answer from its text. Raises what reading raises.
    """
    scheduler = Scheduler(backend, slots)
    coming = iter(sorted(range(len(prompts)), key=lambda i: list(prompts[i].tokens)))
    open_ = dict[Handle, tuple[int, _Text]]()
    while True:
        for i in islice(coming, AHEAD - len(open_)):
            prompt = prompts[i]
            handle = scheduler.submit(Request(prompt.tokens, Sampler(prompt.settings), prompt.ending))
            open_[handle] = i, _Text(tokenizer, new_splitter(), prompt.stop)
        if not open_:
            return
        for handle in scheduler.step():
            if handle not in open_:  # it was cancelled below
                continue
            if handle.error:
                raise handle.error
            i, text = open_[handle]
            for token in _new_tokens(handle):
                text.feed(token)
            if text.is_stopped or handle.status == "done":
                scheduler.cancel(handle)
                del open_[handle]
                done(i, text.whole())


def _new_tokens(handle: Handle) -> Iterator[int]:
    """The tokens that a handle has now, without one that ends a document."""
    while handle.chosen:
        choice = handle.chosen.popleft()
        if handle.chosen or handle.reached not in ("end", "stop"):
            yield choice.token


class _Text:
    """The answer so far."""

    def __init__(self, tokenizer: Tokenizer, splitter: ThoughtSplitter, stop: Sequence[str]) -> None:
        self._decoder, self._splitter, self._filter = StreamDecoder(tokenizer), splitter, StopFilter(stop)
        self._pieces = list[str]()

    @property
    def is_stopped(self) -> bool:
        return self._filter.stopped is not None

    def feed(self, token: int) -> None:
        self._add(self._splitter.feed(self._decoder.feed(token)))

    def whole(self) -> str:
        """The text, at its end."""
        self._add(self._splitter.feed(self._decoder.flush()) + self._splitter.flush())
        return "".join([*self._pieces, self._filter.flush()])

    def _add(self, parts: Sequence[Part]) -> None:
        self._pieces += [self._filter.feed(part.text) for part in parts if not part.thought]
