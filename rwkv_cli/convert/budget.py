"""A number of bits for each weight of the big matrices: which get int4, and which int8, by measured sensitivity.

Each matrix, or the same one of neighbouring layers of a large model, is measured alone: how far the next-token
distribution moves (KL divergence) when it is int4 and all else int8. Those that keep the budget and move it least in
sum become int4. That effects add up is assumed for the choice alone: what is shown was measured.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cpu_kernels.runtime.leftovers import temporary_beside
from rwkv_cli.config import ModelConfig
from rwkv_cli.convert import own_text
from rwkv_cli.convert.conversion import Source, convert
from rwkv_cli.convert.template_choice import ChosenTemplate
from rwkv_cli.engine.backends import registry
from rwkv_cli.engine.backends.base import Backend
from rwkv_cli.engine.perplexity import CHUNK
from rwkv_cli.engine.state import State
from rwkv_cli.errors import UsageError
from rwkv_cli.evaluation.text import windows_of
from rwkv_cli.files.atomic import storage_error
from rwkv_cli.files.mixed import Mix
from rwkv_cli.files.model_file import ModelFile
from rwkv_cli.files.weight_layouts import Rounder, can_be_narrow
from rwkv_cli.reporting import Progress, Reporter

NARROW, WIDE = 4.25, 8.25
"""Bits of a weight in int4 and in int8, with a scale of 16 bits for 64 of them."""

LEAST, MOST = 4.5, 8.0
"""What a budget may be: less is int4, more int8."""

WINDOWS, LENGTH = 16, 128
"""Pieces of the text that is measured with, and predictions of each."""

LARGE = 300_000_000
"""Weights from which on a quarter of the pieces has to do."""

MOST_GROUPS = 80
"""Measurements of one matrix, or of several together."""

STEPS = 6
"""Measured mixes between int8 and int4, to see what another budget would give."""

_UNITS = 100_000

Counting = Callable[[str, int], AbstractContextManager[Progress | None]]
"""Shows how many of a number of things are done, see `cli.terminal.progress.counting`."""


@dataclass(frozen=True)
class Sensitivity:
    """What int4 does to some matrices, alone."""

    names: tuple[str, ...]
    weights: int
    divergence: float  # from int8, mean in nats


@dataclass(frozen=True)
class Point:
    """A mix that was measured."""

    bits: float  # of a weight of the big matrices
    narrow: int  # matrices that are int4
    bytes: int  # of all weights
    divergence: float  # from int8, mean in nats
    perplexity: float  # of the text
    is_chosen: bool = False


@dataclass(frozen=True)
class Outcome:
    """What was measured and chosen."""

    chosen: Point
    points: Sequence[Point]  # by size, the largest first, the chosen one among them
    sensitivities: Sequence[Sensitivity]  # the least sensitive ones first
    is_own_text: bool  # whether the text was written by the model itself


def check(bits: float) -> None:
    """Raise UsageError for a budget that cannot be."""
    if not LEAST <= bits <= MOST:
        raise UsageError(f"{{budget}} is {bits:g} bits: it must be from {LEAST:g} to {MOST:g}")


def write_within(
    source: Source,
    target: Path,
    bits: float,
    tokens: Sequence[int] | None,
    reporter: Reporter,
    counting: Counting,
    template: ChosenTemplate | None = None,
    rounder: Rounder | None = None,
) -> Outcome:
    """Write a mixed model file of at most `bits` a weight of its big matrices; all or nothing.

    It is measured with `tokens`, None for a text that the model itself writes. `template` and `rounder` are as
    for `conversion.convert`. Raises UsageError for an invalid budget, and what `convert` raises.
    """
    check(bits)
    with _both_types(source, target.parent, reporter, template, rounder) as (int8, int4):
        measured = _Measured(int8, int4, tokens, reporter)
        groups = _groups(source.config)
        found = list[Sensitivity]()
        with counting("measuring", len(groups) + STEPS + 2) as progress:
            for names in groups:
                found.append(Sensitivity(names, _weights(source.config, names), measured.divergence(names)))
                if progress:
                    progress(1)
            found.sort(key=lambda each: each.divergence / each.weights)
            chosen = chosen_within(found, bits)
            points = []
            for mix in (chosen, *(found[:count] for count in _evenly(len(found)))):
                points.append(measured.point([name for each in mix for name in each.names], mix is chosen))
                if progress:
                    progress(1)
        Mix(int8, int4, (name for each in chosen for name in each.names)).write(target)
    points.sort(key=lambda point: -point.bytes)
    return Outcome(
        next(point for point in points if point.is_chosen), points, found, is_own_text=tokens is None
    )


def chosen_within(found: Sequence[Sensitivity], bits: float) -> list[Sensitivity]:
    """What becomes int4 so that a weight has at most `bits` on average, with the least sum of divergences.

    A knapsack, solved exactly up to rounding sizes to `_UNITS` parts of the model.
    """
    total = sum(each.weights for each in found)
    unit = max(math.gcd(*(each.weights for each in found)), -(-total // _UNITS))
    needed = math.ceil(total * (WIDE - bits) / (WIDE - NARROW) / unit)
    units = np.arange(needed + 1)
    least = np.where(units == 0, 0.0, np.inf)  # the sum, by how many units at least are int4
    takes = np.zeros((len(found), needed + 1), bool)
    for i, each in enumerate(found):
        with_it = each.divergence + least[np.maximum(units - each.weights // unit, 0)]
        takes[i] = with_it < least
        least = np.minimum(least, with_it)
    chosen, left = list[Sensitivity](), needed
    for i in reversed(range(len(found))):
        if takes[i, left]:
            chosen.append(found[i])
            left = max(left - found[i].weights // unit, 0)
    # Rounding may have left too little: everything is then closer to int4 than to the budget.
    return chosen[::-1] if left == 0 else [*found]


def _evenly(groups: int) -> list[int]:
    """Numbers of groups, from none to all."""
    return [round(groups * step / STEPS) for step in range(STEPS + 1)]


def _groups(config: ModelConfig) -> list[tuple[str, ...]]:
    """The matrices to be measured together: the same one of as few neighbouring layers as may be."""
    names = [name for name in config.tensor_shapes() if can_be_narrow(name)]
    together = 1
    while True:
        groups = dict[tuple[str, int], list[str]]()
        for name in names:
            block, _, rest = name.removeprefix("blocks.").partition(".")
            place = int(block) // together if name.startswith("blocks.") else 0
            groups.setdefault((rest, place), []).append(name)
        if len(groups) <= MOST_GROUPS or together >= config.n_layer:
            return [tuple(group) for group in groups.values()]
        together += 1


def _weights(config: ModelConfig, names: Iterable[str]) -> int:
    shapes = config.tensor_shapes()
    return sum(int(np.prod(shapes[name])) for name in names)


@contextmanager
def _both_types(
    source: Source,
    folder: Path,
    reporter: Reporter,
    template: ChosenTemplate | None,
    rounder: Rounder | None,
) -> Iterator[tuple[ModelFile, ModelFile]]:
    """The model in int8 and in int4, in temporary files."""
    temporary = temporary_beside(folder / "budget")
    try:
        temporary.mkdir()
    except OSError as error:
        raise storage_error(folder, error) from None
    try:
        int8, int4 = temporary / "int8.safetensors", temporary / "int4.safetensors"
        convert(source, int8, "int8", reporter, template)
        convert(source, int4, "int4", reporter, template, rounder)
        yield ModelFile(int8), ModelFile(int4)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


class _Measured:
    """Mixes of two files, compared with the first one on a text."""

    def __init__(
        self, int8: ModelFile, int4: ModelFile, tokens: Sequence[int] | None, reporter: Reporter
    ) -> None:
        self._int8, self._int4, self._reporter = int8, int4, reporter
        backend = self._backend(())
        windows = WINDOWS if backend.config.n_params < LARGE else WINDOWS // 4
        self._windows = (
            own_text.pieces(backend, windows, LENGTH + 1)
            if tokens is None
            else windows_of(tokens, LENGTH, windows)
        )
        self._expected = [_log_probabilities(backend, window) for window in self._windows]

    def divergence(self, narrow: Iterable[str]) -> float:
        """The mean KL divergence of a mix from int8."""
        return self._compared(narrow)[0]

    def point(self, narrow: Sequence[str], is_chosen: bool) -> Point:
        """All measures of a mix."""
        divergence, perplexity = self._compared(narrow)
        mix = Mix(self._int8, self._int4, narrow)
        every = [name for name in mix.config.tensor_shapes() if can_be_narrow(name)]
        share = _weights(mix.config, narrow) / _weights(mix.config, every)
        bits = WIDE - (WIDE - NARROW) * share
        return Point(bits, len(narrow), mix.weight_bytes, divergence, perplexity, is_chosen)

    def _backend(self, narrow: Iterable[str]) -> Backend:
        mix = Mix(self._int8, self._int4, narrow)
        return registry.open_backend("cpu", mix, None, self._reporter.compiling).backend

    def _compared(self, narrow: Iterable[str]) -> tuple[float, float]:
        """The mean KL divergence, and the perplexity."""
        backend = self._backend(narrow)
        divergences, losses = [], []
        for window, p in zip(self._windows, self._expected, strict=True):
            q = _log_probabilities(backend, window)
            divergences.append((np.exp(p) * (p - q)).sum(axis=1, dtype=np.float64))
            losses.append(-q[np.arange(len(q)), window[1:]])
        return max(0.0, float(np.concatenate(divergences).mean())), float(
            np.exp(np.concatenate(losses).mean())
        )


def _log_probabilities(backend: Backend, window: Sequence[int]) -> NDArray[np.float32]:
    """ln p [n, V] of what may follow each token of a piece but the last, from an empty state."""
    state, parts = State.zeros(backend.config), []
    for start in range(0, len(window) - 1, CHUNK):
        logits = backend.forward_all(window[start : min(start + CHUNK, len(window) - 1)], state)
        logits -= logits.max(axis=1, keepdims=True)
        logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True, dtype=np.float64)).astype(np.float32)
        parts.append(logits)
    return np.concatenate(parts)
