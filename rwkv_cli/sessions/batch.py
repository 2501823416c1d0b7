"""Many prompts, each answered as if it were alone: a scheduler reads and answers as many at once as fit."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Literal, Unpack

import numpy as np
from numpy.typing import NDArray

from rwkv_cli.engine.constraints.grammar import Grammar
from rwkv_cli.engine.generate import Finish, check_limit
from rwkv_cli.engine.scheduler import Handle, Request, Scheduler
from rwkv_cli.engine.session import Snapshot
from rwkv_cli.errors import RwkvError, UsageError
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
        **sampling,
    )
    return sorted(found, key=lambda answer: answer.index)


def answers(
    model: Model,
    prompts: Iterable[str | Prompt],
    *,
    batch_size: int | None = None,
    max_tokens: int = MAX_TOKENS,
    template: str | Template | None = None,
    stop: Sequence[str] = (),
    start: Snapshot | None = None,
    after_document: bool = False,
    cache: PromptCache | None = None,
    lenient: bool = False,
    **sampling: Unpack[SamplingOverrides],
) -> Iterator[Answer]:
    """Iterate over the answers to prompts, as they are complete; up to `batch_size` are generated together.

    None takes the backend's own batch size. Each answer is what `Model.generate` gives for the prompt alone; in a batch
    on a GPU, up to rounding. A `seed` is that of the first prompt, and each prompt has one more than the one before.
    `template` is a name or a `Template`, None for the model's own. All prompts continue from `start`, if there is one:
    a conversation in this template, or a document. What prompts have in common at their beginning is read once;
    `cache` keeps such beginnings for the next run. A prompt that fails while it is answered has an error in place of
    its text. Raises UsageError, before anything is read, for prompts and settings that are invalid: with `lenient`,
    these have an error too, and prompts are only looked at when their turn comes.
    """
    layout = get_template(template) if isinstance(template, str) else template or model.template
    check_limit(max_tokens)
    TextStream(model.tokenizer, (*layout.stop, *stop))  # which refuses what cannot be
    run = _Run(model, layout, max_tokens, stop, start, after_document, cache, sampling)
    asked = (Prompt(each) if isinstance(each, str) else each for each in prompts)
    if lenient:
        return run.answers((each, None) for each in asked)
    checked = [(each, np.array(run.encoded(each), np.int32)) for each in asked]
    slots = min(batch_size or model.backend.batch_size, len(checked) or 1)
    return run.answers(checked, slots)


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
        self._places = dict[int, tuple[Snapshot, Snapshot]]()
        seed = sampling.get("seed")
        self._sampling: SamplingOverrides = {
            **combined(sampling),
            "seed": secrets.randbits(32) if seed is None else seed,
        }
        model.sampling_settings(layout, **self._sampling)

    def encoded(self, prompt: Prompt) -> list[int]:
        """The tokens of a prompt. Raises UsageError, with where it comes from, for one that cannot be answered."""
        try:
            if prompt.error:
                raise UsageError(prompt.error)
            check_limit(prompt.max_tokens or 0)
            TextStream(self._model.tokenizer, prompt.stop)
            self._model.sampling_settings(
                self._layout, prompt.think, **combined(self._sampling, prompt.sampling)
            )
            start = prompt.start or self._start
            return self._model.encode_prompt(
                prompt.text,
                self._layout,
                prompt.system,
                prompt.think,
                continued=start is not None and start.logits is not None,
                after_document=prompt.after_document if prompt.start else self._after_document,
            )
        except UsageError as error:
            raise UsageError(f"{prompt.where}: {error.args[0]}" if prompt.where else error.args[0]) from None

    def answers(
        self, prompts: Iterable[tuple[Prompt, Tokens | None]], slots: int | None = None
    ) -> Iterator[Answer]:
        """The answers to prompts, as they are complete. Those without tokens are encoded when their turn comes."""
        scheduler = Scheduler(self._model.backend, slots)
        coming = enumerate(prompts)
        running = dict[Handle, _Text]()
        while True:
            for index, (prompt, tokens) in islice(coming, max(AHEAD - scheduler.waiting, 0)):
                try:
                    known = self.encoded(prompt) if tokens is None else tokens.tolist()
                    text = self._begun(index, prompt, known, scheduler)
                except UsageError as error:
                    yield Answer(index, "", "error", 0, 0, error=str(error))
                else:
                    running[text.handle] = text
            if not running:
                return
            for handle in scheduler.step():
                if answer := running[handle].advance():
                    del running[handle]
                    yield answer

    def _place(self, start: Snapshot) -> Snapshot:
        """The same place for answers that each have a random generator of their own; one for all that start there."""
        if id(start) not in self._places:
            memory = replace(start.memory, generator=None) if start.memory else None
            self._places[id(start)] = start, replace(start, memory=memory)
        return self._places[id(start)][1]

    def _begun(self, index: int, prompt: Prompt, tokens: list[int], scheduler: Scheduler) -> _Text:
        """Have a prompt answered."""
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
            template=self._layout,
            think=prompt.think,
            stop=(*self._stop, *prompt.stop),
            constraint=prompt.constraint,
            start=self._place(start) if start else None,
            submit=submit,
            **sampling,
        )
        return _Text(index, prompt.where, handles[0], generation)


@dataclass
class _Text:
    """An answer on its way."""

    index: int
    where: str
    handle: Handle
    generation: Generation

    def __post_init__(self) -> None:
        self._parts = list[Part]()

    def advance(self) -> Answer | None:
        """Take the tokens that have come: the answer, once it is complete."""
        try:
            while self.handle.has_tokens and (step := next(self.generation, None)):
                self._parts += step.parts
        except RwkvError as error:
            return self._answer("error", f"{self.where}: {error}" if self.where else str(error))
        finish = self.generation.finish or self.handle.finish
        return self._answer(finish) if finish else None

    def _answer(self, finish: Finish | Literal["error"], error: str = "") -> Answer:
        text, thought = (joined(self._parts, thought=kind) for kind in (False, True))
        usage = self.generation.usage
        return Answer(self.index, text, finish, usage.prompt_tokens, usage.generated_tokens, thought, error)
