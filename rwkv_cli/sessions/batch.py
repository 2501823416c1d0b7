"""Many prompts, each answered as if it were alone: sequences leave the batch when they are done, and others join."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Unpack

import numpy as np

from rwkv_cli.engine.batch import Batch
from rwkv_cli.engine.constraints.grammar import Grammar
from rwkv_cli.engine.generate import PromptReader, check_limit, read_directly
from rwkv_cli.engine.sampling import Choice, Sampler
from rwkv_cli.engine.session import Session
from rwkv_cli.errors import UsageError
from rwkv_cli.generation import Finish
from rwkv_cli.model import Model
from rwkv_cli.sampling_settings import MAX_TOKENS, SamplingOverrides
from rwkv_cli.text.template import Template
from rwkv_cli.text.templates import get_template
from rwkv_cli.text.text_stream import TextStream
from rwkv_cli.text.thinking import Part, ThoughtSplitter, joined


@dataclass(frozen=True)
class Prompt:
    """A text to answer."""

    text: str
    system: str | None = None
    where: str = ""  # it comes from, such as a line of a file: errors begin with that
    think: str | None = None  # a mode of the template
    constraint: Grammar | None = None  # what the answer has to look like


@dataclass(frozen=True)
class Answer:
    """A whole answer."""

    index: int  # of the prompt
    text: str  # without the thought
    finish: Finish
    prompt_tokens: int
    generated_tokens: int
    thought: str = ""  # before the answer


def batch(
    model: Model,
    prompts: Sequence[str | Prompt],
    *,
    batch_size: int | None = None,
    max_tokens: int = MAX_TOKENS,
    template: str | Template | None = None,
    stop: Sequence[str] = (),
    **sampling: Unpack[SamplingOverrides],
) -> list[Answer]:
    """All answers to prompts, in the order of these; the rest is as for `answers`."""
    found = answers(
        model, prompts, batch_size=batch_size, max_tokens=max_tokens, template=template, stop=stop, **sampling
    )
    return sorted(found, key=lambda answer: answer.index)


def answers(
    model: Model,
    prompts: Sequence[str | Prompt],
    *,
    batch_size: int | None = None,
    max_tokens: int = MAX_TOKENS,
    template: str | Template | None = None,
    stop: Sequence[str] = (),
    reader: PromptReader = read_directly,
    **sampling: Unpack[SamplingOverrides],
) -> Iterator[Answer]:
    """Iterate over the answers to prompts, as they are complete; up to `batch_size` are generated together.

    None takes the backend's own batch size. Each answer is what `Model.generate` gives for the prompt alone; in a batch
    on a GPU, up to rounding. A `seed` is that of the first prompt, and each prompt has one more than the one before.
    `template` is a name or a `Template`, None for the model's own. `reader` reads each prompt on its own before it
    joins the batch, perhaps from a cache; `read_directly` leaves that to the batch. Raises UsageError, before anything
    is read, for prompts and settings that are invalid.
    """
    layout = get_template(template) if isinstance(template, str) else template or model.template
    asked = [Prompt(each) if isinstance(each, str) else each for each in prompts]
    check_limit(max_tokens)
    TextStream(model.tokenizer, (*layout.stop, *stop))  # which refuses what cannot be
    encoded = [np.array(_encoded(model, prompt, layout), np.int32) for prompt in asked]
    settings = {
        mode: model.sampling_settings(layout, mode, **sampling) for mode in {each.think for each in asked}
    }

    def job(index: int) -> _Job:  # only once its turn comes: it takes more memory than its prompt
        mode = asked[index].think
        chosen = settings[mode]
        if chosen.seed is not None:
            chosen = replace(chosen, seed=chosen.seed + index)
        grammar = asked[index].constraint
        constraint = model.constraint(grammar, layout, mode) if grammar else None
        sampler = model.sampler(chosen, constraint=constraint)
        text = _Text(model, layout, mode, stop, max_tokens, is_constrained=grammar is not None)
        return _Job(index, encoded[index].tolist(), sampler, text)

    jobs = map(job, range(len(asked)))
    if not max_tokens:
        return (job.answer() for job in jobs)
    slots = 1 if model.backend.batch_size == 1 else batch_size or model.backend.batch_size
    return _together(model, jobs, min(slots, len(asked)), reader)


def _encoded(model: Model, prompt: Prompt, layout: Template) -> list[int]:
    try:
        return model.encode_prompt(prompt.text, layout, prompt.system, prompt.think)
    except UsageError as error:
        raise UsageError(f"{prompt.where}: {error.args[0]}" if prompt.where else error.args[0]) from None


class _Text:
    """The text of one answer, and why it ended: what `Generation` does with the tokens of a loop of its own."""

    def __init__(
        self,
        model: Model,
        layout: Template,
        think: str | None,
        stop: Sequence[str],
        max_tokens: int,
        is_constrained: bool,
    ) -> None:
        self._stream = TextStream(model.tokenizer, stop if is_constrained else (*layout.stop, *stop))
        self._splitter = ThoughtSplitter(layout, think, trims=is_constrained)
        self._end = model.tokenizer.end_of_document if model.tokenizer else 0
        self._stop_tokens = model.stop_tokens(layout)
        self._max_tokens = max_tokens
        self.parts: list[Part] = []
        self.tokens = 0
        self.finish: Finish | None = None

    def add(self, token: int, is_complete: bool) -> None:
        """The next token; `is_complete` means that the constraint allows nothing after it."""
        self.tokens += 1
        if token == self._end:
            self.finish = "end"
        elif token in self._stop_tokens:
            self.finish = "stop"
        else:
            self.parts += self._splitter.feed(self._stream.feed(token))
        if self._stream.is_stopped or (is_complete and not self.finish):
            self.finish = "stop"
        elif not self.finish and self.tokens == self._max_tokens:
            self.finish = "length"
        if self.finish:
            rest = self._stream.rest() if self.finish == "length" else self._stream.flush()
            self.parts += [*self._splitter.feed(rest), *self._splitter.flush()]


@dataclass
class _Job:
    """A prompt and its answer so far."""

    index: int
    prompt: list[int]
    sampler: Sampler
    text: _Text

    def __post_init__(self) -> None:
        self.unread = self.prompt.copy()  # tokens to be read next

    def begin(self) -> Answer | None:
        """Take what has to follow the prompt: the answer if that is all of it."""
        self._take_forced()
        return self.finished()

    def accept(self, choice: Choice) -> Answer | None:
        """Take the next token: the answer if it is complete, otherwise tokens are to be read next."""
        self.unread = [choice.token]
        self.text.add(choice.token, self.sampler.is_complete)
        self._take_forced()
        return self.finished()

    def _take_forced(self) -> None:
        """Take what has to come next."""
        while not self.text.finish and (forced := self.sampler.forced()):
            for token in forced:
                self.sampler.accept(token)
                self.unread.append(token)
                self.text.add(token, self.sampler.is_complete)
                if self.text.finish:
                    break

    def finished(self) -> Answer | None:
        """The answer if it is complete."""
        return self.answer() if self.text.finish else None

    def answer(self) -> Answer:
        """The answer as it stands."""
        finish = self.text.finish or "length"  # without one, no tokens were wanted
        text, thought = (joined(self.text.parts, thought=kind) for kind in (False, True))
        return Answer(self.index, text, finish, len(self.prompt), self.text.tokens, thought)


def _together(model: Model, waiting: Iterator[_Job], slots: int, reader: PromptReader) -> Iterator[Answer]:
    """Answer jobs, `slots` at a time."""
    if not slots:
        return
    batch = model.backend.batch(slots)
    running = dict[int, _Job]()  # by slot
    while True:
        while len(running) < slots and (job := next(waiting, None)):
            if answer := job.begin():
                yield answer
            elif reader is read_directly:
                running[batch.join()] = job
            elif answer := _read_alone(model, job, reader, batch, running):
                yield answer
        if not running:
            return
        parts = {slot: job.unread for slot, job in running.items()}
        choices = batch.choose(parts, {slot: job.sampler for slot, job in running.items()})
        for slot, job in [*running.items()]:
            job.sampler.accept(choices[slot].token)
            if answer := job.accept(choices[slot]):
                batch.drop(slot)
                del running[slot]
                yield answer


def _read_alone(
    model: Model, job: _Job, reader: PromptReader, batch: Batch, running: dict[int, _Job]
) -> Answer | None:
    """Have a prompt read and its first token chosen, and let it join; the answer if that was the only one."""
    session = Session(model.backend, job.sampler)
    reader(session, job.prompt, None)
    session.feed(job.unread[len(job.prompt) :])
    if answer := job.accept(session.sample()):
        return answer
    running[batch.join(session.state)] = job
    return None
