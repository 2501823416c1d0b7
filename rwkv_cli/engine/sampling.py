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

from rwkv_cli.errors import RwkvError, UsageError
from rwkv_cli.lazy import lazy_property
from rwkv_cli.sampling_settings import SamplingSettings
from rwkv_cli.text.tokenizer import Tokenizer

Logits = NDArray[np.float32]

# Sorting the whole vocabulary would cost more than the rest of sampling. Candidates are the tokens whose
# logits are less than this below the highest; where they do not suffice, the next depth lets more in, and in
# the end all.
_DEPTHS = (3.0, 5.0, 7.0, 9.0, 11.0, 14.0)


class Choice(NamedTuple):
    """A chosen token and the natural logarithm of the probability that the model itself gave it."""

    token: int
    logprob: float


NOT_A_NUMBER, NOTHING_LEFT = -1, -2
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
    ) -> None:
        """`exempt` are the tokens that are never penalised; see `exempt_tokens`. `memory` is what to continue with.

        Raises ValueError for a memory that no sampler ever had.
        """
        self.settings = settings
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

    @property
    def memory(self) -> SamplerMemory:
        """What a sampler with the same settings needs to continue exactly as this one would."""
        return SamplerMemory(self._counts.frozen(), self.rng.bit_generator.state)

    def copy(self) -> Sampler:
        """An independent sampler that continues in the same way."""
        return Sampler(self.settings, self._exempt, self.memory)

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
        adjusted = self._adjust(logits)
        softmax = own if adjusted is logits else _Softmax(adjusted)
        if not math.isfinite(softmax.peak):
            return Choice(NOTHING_LEFT, 0.0)
        token = int(adjusted.argmax()) if self.settings.greedy else self._draw(softmax)
        return Choice(token, float(logits[token]) - own.peak - math.log(own.total))

    def check(self, vocab_size: int) -> None:
        """Raise UsageError if the settings name a token outside the vocabulary."""
        if self._named.size and self._named.max() >= vocab_size:
            raise UsageError(f"there is no token {self._named.max()}: the model has {vocab_size:,}")

    def request(self, vocab_size: int) -> SampleRequest:
        """What it takes to choose in place of `choose`; `accept` is to follow. It draws the random number.

        Raises UsageError if the settings name a token outside the vocabulary.
        """
        settings = self.settings
        tokens, amounts = self._adjustments(vocab_size)
        if settings.greedy:  # the first of those as likely as the likeliest
            return SampleRequest(tokens, amounts, True, 0.0, temperature=1.0, top_p=1.0, min_p=1.0, top_k=0)
        return SampleRequest(
            tokens,
            amounts,
            False,
            self.rng.random(),
            settings.temperature,
            settings.top_p,
            settings.min_p,
            settings.top_k,
        )

    def accept(self, token: int) -> None:
        """Record a token that was chosen. Raises like `sample` for a reason in its place."""
        _check_token(token)
        self._counts.decay()
        if not self._exempt(token):
            self._counts.add(token)

    def _adjust(self, logits: Logits) -> Logits:
        """The logits after penalties, bias and bans; the very same array if there are none."""
        tokens, amounts = self._adjustments(logits.size)
        if not tokens.size:
            return logits
        adjusted = logits.copy()
        with np.errstate(over="ignore"):
            adjusted[tokens] += amounts
        return adjusted

    def _adjustments(self, vocab_size: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Tokens, each once, and what penalties, bias and bans add to their logits."""
        settings, tokens, amounts = self.settings, self._named, self._bias
        if settings.presence_penalty or settings.frequency_penalty:
            counted, counts = self._counts.arrays()
            penalties = -settings.presence_penalty - counts * settings.frequency_penalty
            if tokens.size:
                tokens, places = np.unique(np.concatenate([counted, tokens]), return_inverse=True)
                each = np.concatenate([penalties, amounts])
                amounts = np.zeros(len(tokens))
                np.add.at(amounts, places, each)
            else:
                tokens, amounts = counted, penalties
        if tokens.size and tokens.max() >= vocab_size:
            raise UsageError(f"there is no token {tokens.max()}: the model has {vocab_size:,}")
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


def _check_token(token: int) -> None:
    """Raise the error for a reason in place of a token."""
    if token == NOT_A_NUMBER:
        raise RwkvError("the model's output is not a number: its weights or its state are damaged")
    if token == NOTHING_LEFT:
        raise UsageError("no token can be chosen: all are banned, or a penalty or bias is far too large")


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
    """How often each token came; every count shrinks by a factor with each token. Arrays, to be fast."""

    def __init__(self, factor: float, counts: Mapping[int, float]) -> None:
        self._factor = factor
        self._row = {token: row for row, token in enumerate(counts)}
        self._tokens = np.array(list(counts), np.int64)  # [capacity], used up to len(self)
        self._values = np.array(list(counts.values()), np.float64)  # [capacity]

    def __len__(self) -> int:
        return len(self._row)

    def arrays(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The tokens and their counts: views."""
        return self._tokens[: len(self)], self._values[: len(self)]

    def frozen(self) -> TokenCounts:
        """A copy that does not change."""
        tokens, values = self.arrays()
        return TokenCounts(tokens.astype(np.int32), values.copy())

    def decay(self) -> None:
        self.arrays()[1][:] *= self._factor

    def add(self, token: int) -> None:
        """Count a token once more."""
        row = self._row.setdefault(token, len(self._row))
        if row == len(self._tokens):
            room = np.zeros(row + 64, np.int64)
            self._tokens = np.concatenate([self._tokens, room])
            self._values = np.concatenate([self._values, room.astype(np.float64)])
        self._tokens[row] = token
        self._values[row] += 1


def exempt_tokens(tokenizer: Tokenizer) -> Callable[[int], bool]:
    """Whether a token is white space, or a number with or without it: those repeat in any text."""

    @functools.cache
    def exempt(token: int) -> bool:
        data = tokenizer.token_bytes(token)
        text = data.decode("utf-8", "replace").strip()
        return bool(data) and (not text or (text.isascii() and text.isdigit()))

    return exempt
