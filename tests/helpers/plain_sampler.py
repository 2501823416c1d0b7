"""A plain sampler in float64 that sorts everything, and cases to compare other samplers with it."""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from hypothesis import strategies as st
from numpy.typing import ArrayLike, NDArray

from rwkv_cli.engine.sampling import Sampler, SamplerMemory
from rwkv_cli.sampling_settings import SamplingSettings

Counts = Mapping[int, float]
"""Token -> how often it was used."""

NO_COUNTS: Counts = MappingProxyType({})


def float32(values: ArrayLike) -> NDArray[np.float32]:
    """The values as an array of float32."""
    return np.asarray(values, np.float32)


def naive_distribution(
    logits: NDArray[np.float32], settings: SamplingSettings, counts: Counts = NO_COUNTS
) -> tuple[NDArray[np.float64], float]:
    """The probability of every token [V], and the smallest distance of a cumulative sum from top-p.

    The rules one after another, on fully sorted float64 probabilities. Where a sum equals top-p up to rounding, it is
    rounding that decides whether the next token is kept, and neither answer is wrong.
    """
    logits = logits.copy()
    for token, count in counts.items():
        logits[token] -= settings.presence_penalty + count * settings.frequency_penalty
    for token, bias in settings.logit_bias.items():
        logits[token] += bias
    for token in settings.banned:
        logits[token] = -np.inf
    weights = np.exp(logits.astype(np.float64) - float(logits.max()))
    probabilities = weights / weights.sum()
    ranked = sorted(range(len(logits)), key=lambda token: (-probabilities[token], token))
    reached = np.cumsum(probabilities[ranked])
    cutoff, margin = 0.0, 1.0
    if settings.top_p < 1:
        cutoff = probabilities[ranked[int(np.argmax(reached >= settings.top_p))]]
        margin = float(np.abs(reached - settings.top_p).min())
    kept = probabilities >= cutoff
    if settings.top_k:
        kept[ranked[settings.top_k :]] = False
    kept &= probabilities >= settings.min_p * probabilities.max()
    powers = kept * weights ** (1 / settings.temperature)
    return powers / powers.sum(), margin


class FixedRandom:
    """A random generator that always gives the same number."""

    def __init__(self, number: float) -> None:
        self.number = number

    def random(self) -> float:
        """The number."""
        return self.number


def sampler_with(settings: SamplingSettings, number: float, counts: Counts = NO_COUNTS) -> Sampler:
    """A sampler that has counted tokens, and whose random number is known."""
    sampler = Sampler(settings, memory=SamplerMemory(counts, None))
    sampler.rng = FixedRandom(number)  # type: ignore[assignment]  # has all of a generator that a sampler uses
    return sampler


def steps(low: int, high: int) -> st.SearchStrategy[float]:
    """Numbers on a grid: equal or far apart, so that no rule depends on rounding."""
    return st.integers(low * 1024, high * 1024).map(lambda step: step / 1024)


def some_logits(most: int) -> st.SearchStrategy[NDArray[np.float32]]:
    """Logits of 2 to `most` tokens, with ties."""
    return st.lists(st.integers(-12, 12) | steps(-12, 12), min_size=2, max_size=most).map(float32)


@st.composite
def cases(draw: st.DrawFn, most: int = 8) -> tuple[NDArray[np.float32], SamplingSettings, dict[int, float]]:
    """Logits with ties, settings, and counts of the tokens used so far."""
    logits = draw(some_logits(most))
    tokens = st.integers(0, len(logits) - 1)
    settings = SamplingSettings(
        temperature=draw(st.sampled_from([0.3, 0.8, 1.0, 2.5])),
        top_p=draw(st.just(1.0) | st.floats(0.01, 0.999)),
        top_k=draw(st.sampled_from([0, 0, 2, 3, 100])),
        min_p=draw(st.sampled_from([0, 0, 0.013, 0.47, 1])),
        presence_penalty=draw(st.sampled_from([0, 0.5, -1])),
        frequency_penalty=draw(st.sampled_from([0, 0.25])),
        logit_bias=draw(st.dictionaries(tokens, st.sampled_from([-3.0, 1.5, 50.0]), max_size=2)),
        banned=draw(st.frozensets(tokens, max_size=len(logits) - 1)),
    )
    return logits, settings, draw(st.dictionaries(tokens, steps(0, 4), max_size=3))
