"""Many prompts, each answered as if it were alone: a scheduler reads and answers as many at once as fit."""

from __future__ import annotations

import itertools
import secrets
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import Final, Literal, Unpack

import numpy as np
from numpy.typing import NDArray

from rwkv_cli.engine.constraints.grammar import Grammar
from rwkv_cli.engine.generate import Finish, check_limit
from rwkv_cli.engine.scheduler import Handle, Request, Scheduler
from rwkv_cli.engine.session import Snapshot
from rwkv_cli.errors import DeviceError, RwkvError, UsageError, literal
from rwkv_cli.generation import Generation
from rwkv_cli.model import Model
from rwkv_cli.sampling_settings import MAX_TOKENS, SamplingOverrides, combined
from rwkv_cli.sessions.prompt_cache import PromptCache
from rwkv_cli.text.template import Template
from rwkv_cli.text.templates import get_template
from rwkv_cli.text.text_stream import TextStream
from rwkv_cli.text.thinking import Part, joined

Tokens = NDArray[np.int32]

AHEAD = 256
"""Prompts that are looked at before there is room for them: those that begin alike are found among them."""

MOST_AHEAD_BYTES = 512_000_000
"""Of prompts that are not answered yet, with the states that they start from: fewer are looked at if they are long."""

MOST_WAITING_BYTES = 64_000_000
"""Of answers, with their prompts, that wait for those before them: no more are begun until these are complete."""

_MOST_PLACES = 16
_TOKEN_BYTES, _ANSWER_BYTES = 40, 1000  # of a token in a list, and of an answer without its texts


@dataclass(frozen=True)
class Prompt:
    """A text to answer, perhaps with options of its own."""

    text: str
    system: str | None = None
    where: str = ""  # it comes from, such as a line of a file: errors begin with that
    think: str | None = None  # a mode of the template
    max_tokens: int | None = None  # None for that of all
    stop: Sequence[str] = ()  # beside those of all
    sampling: SamplingOverrides = field(default_factory=SamplingOverrides)  # over that of all
    constraint: Grammar | None = None  # what the answer has to look like
    start: Snapshot | None = None  # where it continues, None for where all do
    after_document: bool = False  # whether that start is a document, and not a conversation in this template
    template: Template | None = None  # None for that of all
    error: str = ""  # why it is none: it cannot be answered


@dataclass(frozen=True)
class Answer:
    """A whole answer."""

    index: int  # of the prompt
    text: str  # without the thought
    finish: Finish | Literal["error"]
    prompt_tokens: int
    generated_tokens: int
    thought: str = ""  # before the answer
    error: str = ""  # why there is none, in one sentence


def batch(
    model: Model,
    prompts: Sequence[str | Prompt],
    *,
    batch_size: int | None = None,
    max_tokens: int = MAX_TOKENS,
    template: str | Template | None = None,
    stop: Sequence[str] = (),
    start: Snapshot | None = None,
    **sampling: Unpack[SamplingOverrides],
) -> list[Answer]:
    """All answers to prompts, in the order of these; the rest is as for `answers`."""
    found = answers(
        model,
        prompts,
        batch_size=batch_size,
        max_tokens=max_tokens,
        template=template,
        stop=stop,
        start=start,
        in_order=True,
        **sampling,
    )
    return list(found)


def answers(
    model: Model,
    prompts: Iterable[str | Prompt | None],
    *,
    batch_size: int | None = None,
    max_tokens: int = MAX_TOKENS,
    template: str | Template | None = None,
    stop: Sequence[str] = (),
    start: Snapshot | None = None,
    after_document: bool = False,
    cache: PromptCache | None = None,
    lenient: bool = False,
    in_order: bool = False,
    **sampling: Unpack[SamplingOverrides],
) -> Iterator[Answer]:
    """Iterate over the answers to prompts, as they are complete; up to `batch_size` are generated together.

    None takes the backend's own batch size. Each answer is what `Model.generate` gives for the prompt alone; in a batch
    on a GPU, up to rounding. A `seed` is that of the first prompt, and each prompt has one more than the one before.
    `template` is a name or a `Template`, None for the model's own. All prompts continue from `start`, if there is one:
    a conversation in this template, or a document. What prompts have in common at their beginning is read once;
    `cache` keeps such beginnings for the next run. With `in_order`, answers wait for those before them, in bounded
    memory. A prompt that fails while it is answered has an error in place of its text. Raises UsageError, before
    anything is read, for prompts and settings that are invalid: with `lenient`, these prompts have an error too, and
    are only looked at when their turn comes; None among them then says that there is no prompt yet, and another one may
    follow. Raises DeviceError if the device fails.
    """
    layout = get_template(template) if isinstance(template, str) else template or model.template
    check_limit(max_tokens)
    TextStream(model.tokenizer, (*layout.stop, *stop))  # which refuses what cannot be
    run = _Run(model, layout, max_tokens, stop, start, after_document, cache, sampling)
    slots = model.backend.batch_size if batch_size is None else batch_size
    asked = (Prompt(each) if isinstance(each, str) else each for each in prompts)
    coming: Iterator[Asked | None] = ((each, None) if each else None for each in asked)
    if not lenient:
        coming = iter([run.checked(each) for each in asked if each])
    # No more slots than there are prompts, as far as that can be known.
    first = [*islice(coming, slots)]
    n = slots if None in first else len(first) or 1
    return run.answers(chain(first, coming), min(slots, n), _Turns(in_order))


Asked = tuple[Prompt, Tokens | None]
"""A prompt, perhaps encoded."""

_OVER: Final = "over"


class _Run:
    """What all prompts have in common."""

    def __init__(
        self,
        model: Model,
        layout: Template,
        max_tokens: int,
        stop: Sequence[str],
        start: Snapshot | None,
        after_document: bool,
        cache: PromptCache | None,
        sampling: SamplingOverrides,
    ) -> None:
        self._model, self._layout, self._max_tokens, self._stop = model, layout, max_tokens, stop
        self._start, self._after_document, self._cache = start, after_document, cache
        self._places = OrderedDict[int, tuple[Snapshot, Snapshot]]()
        seed = sampling.get("seed")
        self._sampling: SamplingOverrides = {
            **combined(sampling),
            "seed": secrets.randbits(32) if seed is None else seed,
        }
        model.sampling_settings(layout, **self._sampling)

    def checked(self, prompt: Prompt) -> Asked:
        """A prompt with its tokens. Raises UsageError, with where it comes from, if it cannot be answered."""
        try:
            return prompt, np.array(self._encoded(prompt), np.int32)
        except UsageError as error:
            where = f"{literal(prompt.where)}: " if prompt.where else ""
            raise UsageError(where + error.args[0]) from None

    def answers(self, coming: Iterator[Asked | None], slots: int, turns: _Turns) -> Iterator[Answer]:
        """The answers to prompts, when it is their turn. Those without tokens are encoded once there is room."""
        scheduler = Scheduler(self._model.backend, slots)
        numbers, running = itertools.count(), dict[Handle, _Text]()
        n_bytes = 0  # of those that are not answered yet
        found: Asked | Literal["over"] | None = None
        while True:
            while not turns.are_full and scheduler.waiting < AHEAD and n_bytes < MOST_AHEAD_BYTES:
                if (found := next(coming, _OVER)) is None or found == _OVER:
                    break
                index, (prompt, tokens) = next(numbers), found
                try:
                    text = self._begun(index, prompt, tokens, scheduler)
                except RwkvError as error:
                    yield from turns.take(
                        Answer(index, "", "error", 0, 0, error=_told(prompt, error)), prompt
                    )
                else:
                    running[text.handle] = text
                    n_bytes += text.nbytes
            if not running and found == _OVER:
                return
            for handle in scheduler.step():
                if answer := running[handle].advance():
                    text = running.pop(handle)
                    n_bytes -= text.nbytes
                    yield from turns.take(answer, text.prompt)

    def _encoded(self, prompt: Prompt) -> list[int]:
        """The tokens of a prompt. Raises UsageError for one that cannot be answered."""
        if prompt.error:
            raise UsageError(literal(prompt.error))
        layout = prompt.template or self._layout
        check_limit(prompt.max_tokens or 0)
        TextStream(self._model.tokenizer, prompt.stop)
        self._model.sampling_settings(layout, prompt.think, **combined(self._sampling, prompt.sampling))
        start = prompt.start or self._start
        return self._model.encode_prompt(
            prompt.text,
            layout,
            prompt.system,
            prompt.think,
            continued=start is not None and start.logits is not None,
            after_document=prompt.after_document if prompt.start else self._after_document,
        )

    def _begun(self, index: int, prompt: Prompt, encoded: Tokens | None, scheduler: Scheduler) -> _Text:
        """Have a prompt answered. Raises UsageError, like `_encoded`."""
        tokens = self._encoded(prompt) if encoded is None else encoded.tolist()
        start = prompt.start or self._start
        beginnings = self._cache.beginnings(tokens) if self._cache and not start else None
        handles = list[Handle]()

        def submit(request: Request) -> Handle:
            handles.append(scheduler.submit(replace(request, beginnings=beginnings)))
            return handles[0]

        sampling = combined(self._sampling, prompt.sampling)
        if prompt.sampling.get("seed") is None:
            sampling["seed"] = (self._sampling["seed"] or 0) + index
        generation = self._model.generate(
            tokens,
            max_tokens=self._max_tokens if prompt.max_tokens is None else prompt.max_tokens,
            template=prompt.template or self._layout,
            think=prompt.think,
            stop=(*self._stop, *prompt.stop),
            constraint=prompt.constraint,
            start=self._place(start) if start else None,
            submit=submit,
            **sampling,
        )
        return _Text(index, prompt, handles[0], generation)

    def _place(self, start: Snapshot) -> Snapshot:
        """The same place for answers that each have a random generator of their own; one for all that start there."""
        known = self._places.pop(id(start), None)
        if known is None:
            memory = replace(start.memory, generator=None) if start.memory else None
            known = start, replace(start, memory=memory)
        self._places[id(start)] = known
        while len(self._places) > _MOST_PLACES:
            self._places.popitem(last=False)
        return known[1]


@dataclass
class _Text:
    """An answer on its way."""

    index: int
    prompt: Prompt
    handle: Handle
    generation: Generation

    def __post_init__(self) -> None:
        self._parts = list[Part]()

    @property
    def nbytes(self) -> int:
        """The memory of what is not answered yet, about."""
        start = self.prompt.start.nbytes if self.prompt.start else 0
        return self.generation.usage.prompt_tokens * _TOKEN_BYTES + len(self.prompt.text) + start

    def advance(self) -> Answer | None:
        """Take the tokens that have come: the answer, once it is complete. Raises DeviceError."""
        try:
            while self.handle.has_tokens and (step := next(self.generation, None)):
                self._parts += step.parts
        except DeviceError:  # which is nothing of this prompt
            raise
        except RwkvError as error:
            return self._answer("error", _told(self.prompt, error))
        finish = self.generation.finish or self.handle.finish
        return self._answer(finish) if finish else None

    def _answer(self, finish: Finish | Literal["error"], error: str = "") -> Answer:
        text, thought = (joined(self._parts, thought=kind) for kind in (False, True))
        usage = self.generation.usage
        return Answer(self.index, text, finish, usage.prompt_tokens, usage.generated_tokens, thought, error)


class _Turns:
    """When each answer is given: at once, or after those before it, for which it waits here."""

    def __init__(self, in_order: bool) -> None:
        self._in_order = in_order
        self._waiting = dict[int, tuple[Answer, int]]()
        self._next = self._n_bytes = 0

    @property
    def are_full(self) -> bool:
        """Whether so much waits that nothing more may be begun."""
        return self._n_bytes >= MOST_WAITING_BYTES

    def take(self, answer: Answer, prompt: Prompt) -> Iterator[Answer]:
        """Those whose turn it is, now that this one is complete."""
        if not self._in_order:
            yield answer
            return
        n_bytes = _ANSWER_BYTES + len(answer.text) + len(answer.thought) + len(prompt.text)
        self._waiting[answer.index] = answer, n_bytes
        self._n_bytes += n_bytes
        while self._next in self._waiting:
            found, n_bytes = self._waiting.pop(self._next)
            self._n_bytes -= n_bytes
            self._next += 1
            yield found


def _told(prompt: Prompt, error: RwkvError) -> str:
    """An error of a prompt, with where that comes from."""
    return f"{prompt.where}: {error}" if prompt.where else str(error)
