"""What a sample says about the whole: 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

BLOCK = 64
"""Neighbouring predictions that are drawn together: what follows in a text is not independent of what precedes."""

DRAWS = 400
_Z = 1.959964  # of the normal distribution, for 95 %


class Interval(NamedTuple):
    """A measured value, and the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def map(self, function: Callable[[float], float]) -> Interval:
        """The interval of an increasing function of the value."""
        return Interval(*(function(part) for part in self))


def bootstrap(
    n: int, statistic: Callable[[NDArray[Any]], float], block: int = BLOCK, draws: int = DRAWS
) -> Interval:
    """The interval of a statistic of n observations: those of its values on samples drawn anew, block by block.

    `statistic` gets the indices of a sample. Percentile bootstrap over blocks of consecutive observations (Künsch,
    1989, without overlap); the draws are the same in every run. NaN at both ends where there is a single block.
    """
    everything = np.arange(n)
    blocks = np.array_split(everything, max(1, n // block))
    if len(blocks) == 1:
        return Interval(statistic(everything), math.nan, math.nan)
    rng = np.random.default_rng(0)
    values = [
        statistic(np.concatenate([blocks[i] for i in rng.integers(len(blocks), size=len(blocks))]))
        for _ in range(draws)
    ]
    low, high = np.percentile(values, (2.5, 97.5))
    return Interval(statistic(everything), float(low), float(high))


def share(successes: int, n: int) -> Interval:
    """The interval of a proportion, by Wilson's score: also right near 0 and 1."""
    p = successes / n
    scale = 1 / (1 + _Z**2 / n)
    centre = scale * (p + _Z**2 / (2 * n))
    half = scale * _Z * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2))
    # Exact at the ends, where rounding would put the value outside its interval.
    return Interval(p, centre - half if successes else 0.0, centre + half if successes < n else 1.0)
