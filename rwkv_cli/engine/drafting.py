"""Drafters propose the tokens that may come next, for the model to check several of them in one pass.

A proposal costs time if it is wrong, and changes nothing else: each token is chosen from the model's own logits, with
the random number that it would have had. A drafter that chooses with a copy of the sampler draws with the same numbers,
and so finds the model's tokens wherever both give the places of these numbers to the same tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from rwkv_cli.engine.backends.base import Backend
from rwkv_cli.engine.sampling import Sampler
from rwkv_cli.engine.state import State
from rwkv_cli.errors import RwkvError


class Drafter(ABC):
    """Proposes tokens for one text."""

    @abstractmethod
    def observe(self, tokens: Sequence[int]) -> None:
        """Take note of tokens that the model has read."""

    @abstractmethod
    def propose(self, token: int, state: State, sampler: Sampler, most: int, /) -> list[int]:
        """At most `most` tokens that may follow `token`, which comes next; perhaps none.

        `state` is the model's own before the token. Like `sampler`, which has accepted the token, it stays as it is.
        """


class LookupDrafter(Drafter):
    """Proposes what came after the last tokens when they came before: for text that repeats its source."""

    LENGTHS = (4, 3, 2)
    """Tokens that have to be the same as before, the most first."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._places: dict[tuple[int, ...], int] = {}  # after the last time that some tokens came

    def observe(self, tokens: Sequence[int]) -> None:
        """See `Drafter`."""
        for token in tokens:
            self._tokens.append(token)
            end = len(self._tokens)
            for n in self.LENGTHS:
                if n < end:  # the tokens before this one: what follows them is known now
                    self._places[tuple(self._tokens[end - 1 - n : end - 1])] = end - 1

    def propose(self, token: int, _state: State, _sampler: Sampler, most: int) -> list[int]:
        """See `Drafter`."""
        for n in self.LENGTHS:
            last = (*self._tokens[len(self._tokens) - n + 1 :], token)
            if len(last) == n and (place := self._places.get(last)) is not None:
                return self._tokens[place : place + most]
        return []


class ModelDrafter(Drafter):
    """Proposes what another model says, from a state of its own."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._state = State.zeros(backend.config)
        self._scratch = State.zeros(backend.config)
        self._unread: list[int] = []

    def observe(self, tokens: Sequence[int]) -> None:
        """See `Drafter`."""
        self._unread += tokens

    def propose(self, token: int, _state: State, sampler: Sampler, most: int) -> list[int]:
        """See `Drafter`."""
        if self._unread:
            self._backend.forward(self._unread, self._state)
            self._unread = []
        return self._continue(token, self._state, sampler, most)

    def _continue(self, token: int, state: State, sampler: Sampler, most: int) -> list[int]:
        """What the model says after a token that follows a state; the state stays as it is."""
        sampler, found = sampler.copy(), list[int]()
        self._scratch.assign(state)
        try:
            while len(found) < most:
                choice = self._backend.choose(token, self._scratch, sampler).choice
                sampler.accept(choice.token)
                found.append(token := choice.token)
        except RwkvError:  # nothing to choose: the model itself will say so, if it finds the same
            pass
        return found


class SelfDrafter(ModelDrafter):
    """Proposes what the same weights say in a smaller type, from the state of the model itself."""

    def observe(self, tokens: Sequence[int]) -> None:
        """See `Drafter`: the state of the model has it all."""

    def propose(self, token: int, state: State, sampler: Sampler, most: int) -> list[int]:
        """See `Drafter`."""
        return self._continue(token, state, sampler, most)
