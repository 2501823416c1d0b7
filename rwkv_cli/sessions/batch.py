"""Many prompts, each answered as if it were alone, and many at once where a backend can do that.

There each one leaves the batch when it is done, and the next one joins.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from rwkv_cli.engine.generate import Finish, Generation
from rwkv_cli.engine.sampling import Choice, Sampler, exempt_tokens
from rwkv_cli.engine.state import Position, State
from rwkv_cli.errors import UsageError
from rwkv_cli.model import Model
from rwkv_cli.text.template import Template

Array = NDArray[np.float32]

AT_ONCE = 64
"""Sequences of a batch, if nobody says otherwise."""


class Batch(Protocol):
    """Sequences that are read together: see `rwkv_cli.engine.gpu.batch.Batch`."""

    def join(self, state: State | None = None) -> int:
        """Let a sequence in: its slot."""
        ...

    def drop(self, slot: int) -> None:
        """Let it go."""
        ...

    def choose(self, parts: Mapping[int, Sequence[int]], samplers: Sequence[Sampler]) -> list[Choice]:
        """Read some tokens of each sequence, by its slot; the next token of each, as its sampler chooses it."""
        ...


@runtime_checkable
class Batching(Protocol):
    """What a backend has besides if it can read many sequences at once."""

    def batch(self, slots: int) -> Batch:
        """Room for so many sequences. Raises DeviceError if there is too little memory."""
        ...


@dataclass(frozen=True)
class Prompt:
    """A text to answer."""

    text: str
    system: str | None = None
    where: str = ""  # it comes from, such as a line of a file: errors begin with that


@dataclass(frozen=True)
class Answer:
    """A whole answer."""

    index: int  # of the prompt
    text: str
    finish: Finish
    prompt_tokens: int
    generated_tokens: int


def answers(
    model: Model,
    prompts: Sequence[Prompt],
    *,
    at_once: int = AT_ONCE,
    max_tokens: int = 256,
    template: Template | None = None,
    stop: Sequence[str] = (),
    **sampling: Any,
) -> Iterator[Answer]:
    """Iterate over the answers to prompts, as they are complete: `at_once` on a backend with batches, one elsewhere.

    Each is what `Model.generate` gives for the prompt alone; in a batch, up to rounding. `seed`, if there is one, is
    that of the first prompt, and each has one more than the one before. `template` is None for the model's own. Raises
    UsageError, before anything is read, for prompts and settings that cannot be right.
    """
    layout = template or model.template
    seed = sampling.pop("seed", None)
    exempt = exempt_tokens(model.tokenizer) if model.tokenizer else frozenset[int]()
    tokens = [_laid_out(model, prompt, layout) for prompt in prompts]

    def begin(index: int, position: Position) -> Generation:
        own = None if seed is None else seed + index
        sampler = Sampler(model.sampling_settings(layout, seed=own, **sampling), exempt)
        stops = (*layout.stop, *stop)
        return Generation(model.backend, model.tokenizer, tokens[index], position, sampler, max_tokens, stops)

    if tokens:
        begin(0, Position(_nowhere()))  # raises for what is wrong with all
    if tokens and max_tokens and isinstance(model.backend, Batching):
        slots = min(at_once, len(tokens))
        return _together(model.backend.batch(slots), slots, begin, len(tokens))
    return _in_turn(model, begin, len(tokens))


def _laid_out(model: Model, prompt: Prompt, layout: Template) -> list[int]:
    try:
        return model.lay_out(prompt.text, layout, prompt.system)
    except UsageError as error:
        raise UsageError(f"{prompt.where}: {error}" if prompt.where else str(error)) from None


_Begin = Callable[[int, Position], Generation]


def _in_turn(model: Model, begin: _Begin, count: int) -> Iterator[Answer]:
    """One after another."""
    for index in range(count):
        generation = begin(index, Position.beginning(model.config))
        yield _answer(index, "".join(step.text for step in generation), generation)


def _together(batch: Batch, slots: int, begin: _Begin, count: int) -> Iterator[Answer]:
    """Many at once."""
    waiting = iter(range(count))
    seats: dict[int, _Seat] = {}  # by slot
    while True:
        for index in itertools.islice(waiting, slots - len(seats)):
            # The state is in the batch. A generation takes copies of its own, and they should cost nothing.
            seats[batch.join()] = _Seat(index, begin(index, Position(_nowhere())))
        if not seats:
            return
        parts = {slot: seat.tokens for slot, seat in seats.items()}
        choices = batch.choose(parts, [seat.generation.sampler for seat in seats.values()])
        for (slot, seat), choice in zip([*seats.items()], choices, strict=True):
            if answer := seat.go_on(choice):
                batch.drop(slot)
                del seats[slot]
                yield answer


class _Seat:
    """One generation in a batch."""

    def __init__(self, index: int, generation: Generation) -> None:
        self.index, self.generation = index, generation
        self.tokens = generation.tokens  # to be read next
        self._pieces: list[str] = []

    def go_on(self, choice: Choice) -> Answer | None:
        """Take the next token: the answer, if it is complete, and otherwise there is something to be read."""
        step = self.generation.take(choice)
        self._pieces.append(step.text)
        self.tokens = [step.token]
        return _answer(self.index, "".join(self._pieces), self.generation) if step.finish else None


def _nowhere() -> State:
    """A state of nothing."""
    return State(*(np.empty(shape, np.float32) for shape in ((0, 0), (0, 0, 0, 0), (0, 0))))


def _answer(index: int, text: str, generation: Generation) -> Answer:
    finish = generation.finish or "length"  # without one, no tokens were wanted
    usage = generation.usage
    return Answer(index, text, finish, usage.prompt_tokens, usage.generated_tokens)
