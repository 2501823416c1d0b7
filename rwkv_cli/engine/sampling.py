"""The choice of the next token from the model's logits.

The order is that of the published `rwkv` package (rwkv/utils.py, PIPELINE.generate and .sample_logits):
repetition penalties, logit bias and bans; softmax; top-p, top-k and min-p on those probabilities; only then
the temperature, p ** (1 / temperature); and one draw. Where that package lets a token that is exempt from
counting pay the presence penalty, here it pays nothing.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rwkv_cli.engine.constraint import Constraint, ConstraintMemory, Mask, unpacked
from rwkv_cli.errors import RwkvError, UsageError
from rwkv_cli.lazy import lazy_property
from rwkv_cli.sampling_settings import SamplingSettings
from rwkv_cli.text.tokenizer import Tokenizer

Logits = NDArray[np.float32]

# Sorting the whole vocabulary would cost more than the rest of sampling. Candidates are the tokens whose
# logits are less than this below the highest; where they do not suffice, the next depth lets more in, and in
# the end all.
_DEPTHS = (3.0, 5.0, 7.0, 9.0, 11.0, 14.0)


_MOST_WAITING = 4096
"""Tokens that have not been counted yet, which is memory."""


class Choice(NamedTuple):
    """A chosen token and the natural logarithm of the probability that the model itself gave it."""

    token: int
    logprob: float


NOT_A_NUMBER, NOTHING_LEFT, ALL_BANNED = -1, -2, -3
"""In place of a token: why none could be chosen."""


class SampleRequest(NamedTuple):
    """What it takes to choose a token where the logits are."""

    tokens: NDArray[np.int64]  # each once
    amounts: NDArray[np.float64]  # added to their logits; minus infinity for those that are banned
    is_greedy: bool  # the first of the likeliest tokens; the settings below have the same effect
    random: float  # uniform sample in [0, 1) for inverse-CDF sampling
    temperature: float
    top_p: float
    min_p: float
    top_k: int  # 0 for all
    mask: Mask | None = None  # the tokens that may be chosen; None for all


class TokenCounts(Mapping[int, float]):
    """Token -> how often it was used, decayed; compact, and never changed."""

    def __init__(self, tokens: NDArray[np.int32], counts: NDArray[np.float64]) -> None:
        """Arrays [n] that must not change."""
        self.tokens, self.counts = tokens, counts

    @classmethod
    def of(cls, counts: Mapping[int, float]) -> TokenCounts:
        """The same counts, whatever mapping they are in."""
        if isinstance(counts, cls):
            return counts
        return cls(np.array(list(counts), np.int32), np.array(list(counts.values()), np.float64))

    def __getitem__(self, token: int) -> float:
        (found,) = np.nonzero(self.tokens == token)
        if not len(found):
            raise KeyError(token)
        return float(self.counts[found[0]])

    def __iter__(self) -> Iterator[int]:
        return iter(self.tokens.tolist())

    def __len__(self) -> int:
        return len(self.tokens)

    def __repr__(self) -> str:
        return repr(dict(self.items()))


GeneratorState = Mapping[str, Any]
"""The state of a bit generator, in the types that NumPy gives."""


@dataclass(frozen=True)
class SamplerMemory:
    """What changes in a sampler from token to token."""

    counts: Mapping[int, float]  # of every token that is penalised
    generator: GeneratorState | None  # the state of NumPy's PCG64, {"state": ..., ...}; None for a new one
    constraint: ConstraintMemory | None = None  # that the text follows, unless it is complete

    @property
    def nbytes(self) -> int:
        """The size of the counts in memory, about."""
        return 12 * len(self.counts)


class Sampler:
    """Chooses tokens and remembers them for the repetition penalties.

    `rng` is the random generator; it gives one double per token, and none for greedy choices. Together with the counts
    it is everything that changes from token to token: `memory`.
    """

    def __init__(
        self,
        settings: SamplingSettings,
        exempt: Callable[[int], bool] | Collection[int] = frozenset(),
        memory: SamplerMemory | None = None,
        constraint: Constraint | None = None,
    ) -> None:
        """`exempt` are the tokens that are never penalised; see `exempt_tokens`. `memory` is what to continue with.

        `constraint` is what the tokens have to follow; that of the memory has to be built again by the caller. Raises
        ValueError for a memory that no sampler ever had.
        """
        self.settings = settings
        self.constraint = constraint
        self.rng = np.random.Generator(np.random.PCG64(settings.seed))
        self._exempt = exempt if callable(exempt) else exempt.__contains__
        self._counts = _DecayingCounts(settings.penalty_decay, memory.counts if memory else {})
        if memory and memory.generator is not None:
            try:
                self.rng.bit_generator.state = dict(memory.generator)
            except (KeyError, TypeError, OverflowError) as error:
                raise ValueError("not a valid PCG64 state") from error
        named = {**settings.logit_bias, **dict.fromkeys(settings.banned, -math.inf)}
        self._named = np.array(list(named), np.int64)
        self._bias = np.array(list(named.values()), np.float64)
        self._penalises = bool(settings.presence_penalty or settings.frequency_penalty)
        counted = memory.counts if memory and self._penalises else {}
        self._highest = max((*named, *counted), default=-1)  # of the tokens whose logits may change
        # Temperature, top-p, min-p and top-k of a request. The greedy choice is the first of those as likely as the
        # likeliest, and takes no random number.
        self._cuts = (1.0, 1.0, 1.0, 0)
        self._greedy = settings.greedy
        if not self._greedy:
            self._cuts = settings.temperature, settings.top_p, settings.min_p, settings.top_k

    @property
    def memory(self) -> SamplerMemory:
        """What a sampler with the same settings needs to continue exactly as this one would."""
        constraint = None if self.constraint is None or self.is_complete else self.constraint.save()
        return SamplerMemory(self._counts.frozen(), self.rng.bit_generator.state, constraint)

    @property
    def is_complete(self) -> bool:
        """Whether there is a constraint, and nothing but the end may follow."""
        return self.constraint is not None and self.constraint.is_complete

    def prepare(self) -> None:
        """Find out which tokens may come next, if there is a constraint. Raises UsageError if that is too complex."""
        if self.constraint is not None:
            self.constraint.mask()

    def forced(self) -> list[int]:
        """The tokens that have to come next, whatever the model says; `accept` is to follow for each."""
        return [] if self.constraint is None else self.constraint.forced()

    def copy(self) -> Sampler:
        """An independent sampler that continues in the same way."""
        constraint = None if self.constraint is None else self.constraint.copy()
        return Sampler(self.settings, self._exempt, self.memory, constraint)

    def sample(self, logits: Logits) -> Choice:
        """Choose from the logits, float32 [V], which stay as they are, and record the choice.

        Raises RwkvError if the model computed something else than numbers, and UsageError if the settings
        leave no token or name one that the model does not have.
        """
        choice = self.choose(logits)
        self.accept(choice.token)
        return choice

    def choose(self, logits: Logits) -> Choice:
        """Choose from the logits; `accept` is to follow, which raises if this gives a reason in place of a token."""
        own = _Softmax(logits)
        if not math.isfinite(own.peak):
            return Choice(NOT_A_NUMBER, 0.0)
        if self.constraint is not None and (mask := self.constraint.mask()) is not None:
            return self._choose_allowed(logits, own, mask)
        adjusted = self._adjust(logits)
        softmax = own if adjusted is logits else _Softmax(adjusted)
        if not math.isfinite(softmax.peak):
            return Choice(NOTHING_LEFT, 0.0)
        token = int(adjusted.argmax()) if self.settings.greedy else self._draw(softmax)
        return Choice(token, float(logits[token]) - own.peak - math.log(own.total))

    def check(self, vocab_size: int) -> None:
        """Raise UsageError if the settings, or counts that are penalised, name a token outside the vocabulary."""
        if self._highest >= vocab_size:
            raise UsageError(f"there is no token {self._highest}: the model has {vocab_size:,}")

    def _choose_allowed(self, logits: Logits, own: _Softmax, mask: Mask) -> Choice:
        """Choose among the tokens of a mask; only a ban makes one of them impossible, no penalty."""
        adjusted = self._adjust(logits)
        allowed = unpacked(mask, logits.size)
        allowed[[*self.settings.banned]] = False
        count = np.count_nonzero(allowed)
        if not count:
            return Choice(ALL_BANNED, 0.0)
        tokens = np.flatnonzero(allowed) if count < logits.size // 4 else None  # few are faster on their own
        values = _of_allowed(adjusted, allowed, tokens)
        if not math.isfinite(values.max()):
            values = _of_allowed(logits, allowed, tokens)
        is_certain = count == 1 or self.settings.greedy
        place = int(values.argmax()) if is_certain else self._draw(_Softmax(values))
        token = place if tokens is None else int(tokens[place])
        return Choice(token, float(logits[token]) - own.peak - math.log(own.total))

    def request(self, vocab_size: int) -> SampleRequest:
        """What it takes to choose in place of `choose`; `accept` is to follow. It draws the random number.

        Where it gives NOTHING_LEFT under a constraint, `choose` is to choose: it knows what to do. Raises UsageError if
        the settings name a token outside the vocabulary, or the constraint is too complex.
        """
        if self._highest >= vocab_size:
            self.check(vocab_size)
        tokens, amounts = self._adjustments() if self._penalises else (self._named, self._bias)
        number = 0.0 if self._greedy else self.rng.random()
        mask = None if self.constraint is None else self.constraint.mask()
        return SampleRequest._make((tokens, amounts, self._greedy, number, *self._cuts, mask))

    def accept(self, token: int) -> None:
        """Record a token that was chosen. Raises like `sample` for a reason in its place."""
        if token < 0:
            _raise_reason(token)
        if self.constraint is not None:
            self.constraint.accept(token)
        self._counts.append(-1 if self._exempt(token) else token)

    def _adjust(self, logits: Logits) -> Logits:
        """The logits after penalties, bias and bans; the very same array if there are none."""
        self.check(logits.size)
        tokens, amounts = self._adjustments()
        if not tokens.size:
            return logits
        adjusted = logits.copy()
        with np.errstate(over="ignore"):
            adjusted[tokens] += amounts
        return adjusted

    def _adjustments(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Tokens, each once, and what penalties, bias and bans add to their logits."""
        settings, tokens, amounts = self.settings, self._named, self._bias
        if not self._penalises:
            return tokens, amounts
        counted, counts = self._counts.arrays()
        penalties = -settings.presence_penalty - counts * settings.frequency_penalty
        if not tokens.size:
            return counted, penalties
        tokens, places = np.unique(np.concatenate([counted, tokens]), return_inverse=True)
        each = np.concatenate([penalties, amounts])
        amounts = np.zeros(len(tokens))
        np.add.at(amounts, places, each)
        return tokens, amounts

    def _draw(self, softmax: _Softmax) -> int:
        """One of the kept tokens, by the inverse of the distribution function in the order of their ids."""
        tokens, gaps = self._keep(softmax)
        with np.errstate(over="ignore"):  # with a tiny temperature a gap becomes -inf and its weight 0: right
            distribution = np.cumsum(np.exp(gaps / self.settings.temperature))
        # The generator gives at most 1 - 2**-53, so the product is below the total and the index in bounds.
        index = np.searchsorted(distribution, self.rng.random() * distribution[-1], side="right")
        return int(tokens[index])

    def _keep(self, softmax: _Softmax) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The tokens that top-p, top-k and min-p leave, by ascending id, and their gaps."""
        settings = self.settings
        tokens, gaps = self._candidates(softmax)
        if settings.top_p == 1 and not settings.top_k and not settings.min_p:
            return tokens, gaps
        falling = np.sort(gaps)[::-1]
        cutoff = falling[-1]
        if settings.top_p < 1:
            last = np.searchsorted(np.cumsum(np.exp(falling)), settings.top_p * softmax.total)
            cutoff = falling[min(int(last), len(falling) - 1)]
        if settings.top_k:
            cutoff = max(cutoff, falling[min(settings.top_k, len(falling)) - 1])
        cutoff = max(cutoff, _log(settings.min_p))
        kept = np.flatnonzero(gaps >= cutoff)  # all that are as likely as the last one needed stay
        surplus = len(kept) - settings.top_k
        if settings.top_k and surplus > 0:  # except for top-k, which counts: there the lower ids stay
            tied = np.flatnonzero(gaps[kept] == cutoff)
            kept = np.delete(kept, tied[len(tied) - surplus :])
        return tokens[kept], gaps[kept]

    def _candidates(self, softmax: _Softmax) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Tokens among which are surely all that the cuts leave, by ascending id, and their gaps."""
        settings = self.settings
        for depth in _DEPTHS:
            floor = np.float32(softmax.peak - depth)
            tokens = np.flatnonzero(softmax.logits > floor)
            gaps = softmax.gaps(tokens)
            if (
                0 < settings.top_k <= len(tokens)
                or float(floor) - softmax.peak < _log(settings.min_p)
                or (settings.top_p < 1 and np.exp(gaps).sum() >= settings.top_p * softmax.total)
            ):
                return tokens, gaps
        tokens = np.flatnonzero(softmax.logits > -np.inf)
        return tokens, softmax.gaps(tokens)


def _of_allowed(logits: Logits, allowed: NDArray[np.bool_], tokens: NDArray[np.int64] | None) -> Logits:
    """The logits of `tokens`; without them those of all, minus infinity where they are not allowed."""
    if tokens is not None:
        return logits[tokens]
    return np.where(allowed, logits, np.float32(-np.inf))


def _raise_reason(token: int) -> None:
    """Raise the error for a reason in place of a token."""
    if token == NOT_A_NUMBER:
        raise RwkvError("the model's output is not a number: its weights or its state are damaged")
    if token == NOTHING_LEFT:
        raise UsageError("no token can be chosen: all are banned, or a penalty or bias is far too large")
    if token == ALL_BANNED:
        raise UsageError("no token can be chosen: all that the constraint allows here are banned")


def _log(probability: float) -> float:
    return math.log(probability) if probability else -math.inf


class _Softmax:
    """softmax(logits) = exp(gaps) / total, where a gap is a logit less the highest one."""

    def __init__(self, logits: Logits) -> None:
        self.logits = logits
        self.peak = float(logits.max())  # nan if any logit is

    @lazy_property
    def total(self) -> float:
        with np.errstate(over="ignore"):  # a gap beyond float32 becomes -inf and its weight 0: right
            return float(np.exp(self.logits - np.float32(self.peak)).sum())

    def gaps(self, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
        """The logits of tokens less the highest one."""
        return self.logits[tokens].astype(np.float64) - self.peak


class _DecayingCounts:
    """How often each token came; every count shrinks by a factor with each token. Arrays, to be fast.

    Tokens are counted when someone asks, in their order and so with the same result as at once: where nothing is
    penalised, generating a text asks for no count.
    """

    def __init__(self, factor: float, counts: Mapping[int, float]) -> None:
        self._factor = factor
        self._row = {token: row for row, token in enumerate(counts)}
        self._tokens = np.array(list(counts), np.int64)  # [capacity], used up to the number of rows
        self._values = np.array(list(counts.values()), np.float64)  # [capacity]
        self._waiting: list[int] = []  # to be counted; -1 for a token that only lets the counts shrink

    def append(self, token: int) -> None:
        """Let the counts shrink, and count a token once more unless it is -1."""
        self._waiting.append(token)
        if len(self._waiting) == _MOST_WAITING:
            self._count()

    def arrays(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The tokens and their counts: views, up to the next `append`."""
        self._count()
        return self._tokens[: len(self._row)], self._values[: len(self._row)]

    def frozen(self) -> TokenCounts:
        """A copy that does not change."""
        tokens, values = self.arrays()
        return TokenCounts(tokens.astype(np.int32), values.copy())

    def _count(self) -> None:
        used = self._values[: len(self._row)]
        for token in self._waiting:
            np.multiply(used, self._factor, used)
            if token < 0:
                continue
            row = self._row.setdefault(token, len(self._row))
            if row == len(used):
                self._grow(row)
                self._tokens[row] = token
                used = self._values[: row + 1]
            self._values[row] += 1
        self._waiting.clear()

    def _grow(self, row: int) -> None:
        """Make sure that there is room for a row."""
        if row == len(self._tokens):
            room = np.zeros(row + 64, np.int64)
            self._tokens = np.concatenate([self._tokens, room])
            self._values = np.concatenate([self._values, room.astype(np.float64)])


def exempt_tokens(tokenizer: Tokenizer) -> Callable[[int], bool]:
    """Whether a token is white space, or a number with or without it: those repeat in any text."""

    @functools.cache
    def exempt(token: int) -> bool:
        data = tokenizer.token_bytes(token)
        text = data.decode("utf-8", "replace").strip()
        return bool(data) and (not text or (text.isascii() and text.isdigit()))

    return exempt
