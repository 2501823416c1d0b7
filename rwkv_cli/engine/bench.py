"""How fast a model runs: tokens per second, and how close decoding comes to the memory bandwidth.

To decode a token, a model reads its weights once, and nothing else takes as long: `bytes * tokens/s` is a bandwidth,
to be compared with the highest that the memory gives. The two are measured in turns, since a machine's speed
drifts; each decode run is compared with the memory just before and just after it.

Functions take a clock, which gives seconds, so that tests need no time. Speeds are in tokens per second.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

import numpy as np

from rwkv_cli.engine.backends.base import Backend
from rwkv_cli.engine.state import State
from rwkv_cli.errors import UsageError

Clock = Callable[[], float]
Announce = Callable[[str], None]
"""Called between two measurements, with what comes next."""

LONG = 50_000  # tokens of a long run
STRETCH = 1_000  # tokens of it that are reported together
TURN = 50  # tokens that are decoded in turns, where two runs are compared
MOST = 10_000_000  # tokens of a prompt or a run, or repetitions
MOST_LONG = 1_000_000_000  # tokens of a long run
WARM_UP = 64  # tokens of a prompt that are read before the clock starts
READS = 8  # of the memory, in a row
SEED = 0  # of the tokens


@dataclass(frozen=True)
class Plan:
    """What to measure. Raises UsageError for invalid numbers."""

    prefill: Sequence[int] = (512,)  # lengths of prompts
    decode: int = 128  # tokens of a run
    repeat: int = 5  # times each
    long: int | None = None  # tokens of a long run

    def __post_init__(self) -> None:
        sizes = [("prefill", size) for size in self.prefill]
        for name, number in [*sizes, ("decode", self.decode), ("repeat", self.repeat)]:
            _check(name, number, 1, MOST)
        if self.long is not None:
            _check("long_tokens", self.long, 2, MOST_LONG)


def _check(name: str, number: int, least: int, most: int) -> None:
    if number < least:
        raise UsageError(f"{{{name}}} is {number}: it must be at least {least}")
    if number > most:
        raise UsageError(f"{{{name}}} is larger than {most:,}, the most that is measured")


@dataclass(frozen=True)
class Stretch:
    """Tokens of a long run; its first token is number 1."""

    begin: int
    end: int
    speed: float


@dataclass
class Results:
    """What has been measured so far."""

    prefill: dict[int, list[float]] = field(default_factory=dict)  # speeds, by length of the prompt
    decode: list[float] = field(default_factory=list)  # speeds
    memory: list[float] = field(default_factory=list)  # bytes/s, before and after each decode run
    long: list[Stretch] = field(default_factory=list)
    again: Stretch | None = None  # the beginning of another run, in turns with the end of the long one
    constancy: float | None = None  # speed of the end / speed of that beginning, the median of all turns
    interrupted: bool = False


def run(
    backend: Backend,
    plan: Plan,
    results: Results,
    clock: Clock = time.perf_counter,
    announce: Announce = lambda _: None,
) -> None:
    """Measure all that is planned, into `results`, which also holds something if this is interrupted."""
    rng = np.random.default_rng(SEED)

    def draw(n: int) -> list[int]:
        tokens: list[int] = rng.integers(backend.config.vocab_size, size=n).tolist()
        return tokens

    for size in plan.prefill:
        backend.forward(draw(min(size, WARM_UP)), State.zeros(backend.config))
        for i in range(plan.repeat):
            announce(f"prefill {size:,}, {i + 1} of {plan.repeat}")
            speed = prefill_speed(backend, draw(size), clock)
            results.prefill.setdefault(size, []).append(speed)

    announce("memory")
    read = backend.memory_reader()
    if read:
        results.memory.append(memory_speed(read, clock))
    state = State.zeros(backend.config)
    for i in range(plan.repeat):
        announce(f"decode {plan.decode:,}, {i + 1} of {plan.repeat}")
        backend.forward(draw(1), state)  # brings back into the caches what reading the memory has displaced
        results.decode.append(decode_speed(backend, draw(plan.decode), state, clock))
        if read:
            results.memory.append(memory_speed(read, clock))

    if plan.long:
        _run_long(backend, plan.long, results, draw, clock, announce)


def _run_long(
    backend: Backend,
    n: int,
    results: Results,
    draw: Callable[[int], list[int]],
    clock: Clock,
    announce: Announce,
) -> None:
    """Decode n tokens, the last of them in turns with as many from the beginning of another run."""
    state, other = State.zeros(backend.config), State.zeros(backend.config)
    backend.forward(draw(1), State.zeros(backend.config))
    *begun, (begin, end) = stretches(n)
    for first, last in begun:
        announce(f"tokens {first:,} to {last:,} of {n:,}")
        speed = decode_speed(backend, draw(last - first + 1), state, clock)
        results.long.append(Stretch(first, last, speed))
    announce(f"tokens {begin:,} to {end:,} of {n:,}")
    size = end - begin + 1
    turns = [min(TURN, size - done) for done in range(0, size, TURN)]
    late, early = [], []
    for tokens in map(draw, turns):
        late.append(decode_speed(backend, tokens, state, clock))
        early.append(decode_speed(backend, tokens, other, clock))
    results.long.append(Stretch(begin, end, statistics.harmonic_mean(late, turns)))
    results.again = Stretch(1, size, statistics.harmonic_mean(early, turns))
    results.constancy = statistics.median(a / b for a, b in zip(late, early, strict=True))


def stretches(n: int) -> list[tuple[int, int]]:
    """The first and last token of each part of a run of n tokens: the first part and the last one are equally long."""
    size = min(STRETCH, n // 2)
    begins = [*range(1, n - size + 1, size), n - size + 1]
    ends = [begin - 1 for begin in begins[1:]]
    return list(zip(begins, [*ends, n], strict=True))


def prefill_speed(backend: Backend, tokens: Sequence[int], clock: Clock) -> float:
    """Tokens of a prompt read per second, from an empty state."""
    state = State.zeros(backend.config)
    start = clock()
    backend.forward(tokens, state)
    return len(tokens) / (clock() - start)


def decode_speed(backend: Backend, tokens: Sequence[int], state: State, clock: Clock) -> float:
    """Tokens read one after another, per second; advances `state`."""
    start = clock()
    for token in tokens:
        backend.forward([token], state)
    return len(tokens) / (clock() - start)


def memory_speed(read: Callable[[], int], clock: Clock) -> float:
    """Bytes read from memory per second; `read` reads some once and returns their number."""
    start = clock()
    n_bytes = sum(read() for _ in range(READS))
    return n_bytes / (clock() - start)


def shares(results: Results, bytes_per_token: int) -> list[float]:
    """The share of the memory bandwidth that each decode run reached: 1 if it read all bytes and waited for nothing."""
    runs = zip(results.decode, results.memory, results.memory[1:], strict=False)  # the last may lack its end
    return [bytes_per_token * speed / ((before + after) / 2) for speed, before, after in runs]


class Spread(TypedDict):
    """Of some values; the standard deviation is that of the sample, None for a single value."""

    mean: float
    standard_deviation: float | None
    min: float
    max: float


class SpeedSummary(TypedDict):
    """Of runs over so many tokens."""

    tokens: int
    repeats: int
    tokens_per_second: Spread


class MemorySummary(TypedDict):
    """How close decoding comes to the memory bandwidth."""

    bytes_per_token: int
    bytes_per_second: Spread
    share_of_dense_limit: float


class LongSummary(TypedDict):
    """Of a long run: speeds by position."""

    tokens: int | None
    stretches: list[dict[str, float]]
    first_again: dict[str, float] | None
    last_relative_to_first_again: float | None


class Summary(TypedDict):
    """All results as JSON values; what was not measured is None."""

    prefill: list[SpeedSummary]
    decode: SpeedSummary | None
    memory: MemorySummary | None
    long: LongSummary | None
    interrupted: bool


def spread(values: Sequence[float]) -> Spread:
    """Mean, standard deviation, minimum and maximum."""
    return {
        "mean": statistics.fmean(values),
        "standard_deviation": statistics.stdev(values) if len(values) > 1 else None,
        "min": min(values),
        "max": max(values),
    }


def summary(backend: Backend, plan: Plan, results: Results) -> Summary:
    """All results as JSON values; what was not measured is None."""
    bytes_per_token = backend.bytes_per_token
    reached = shares(results, bytes_per_token) if bytes_per_token else []

    def described(stretch: Stretch) -> dict[str, float]:
        return {"from": stretch.begin, "to": stretch.end, "tokens_per_second": stretch.speed}

    return {
        "prefill": [
            {"tokens": size, "repeats": len(speeds), "tokens_per_second": spread(speeds)}
            for size, speeds in results.prefill.items()
        ],
        "decode": {
            "tokens": plan.decode,
            "repeats": len(results.decode),
            "tokens_per_second": spread(results.decode),
        }
        if results.decode
        else None,
        "memory": {
            "bytes_per_token": bytes_per_token,
            "bytes_per_second": spread(results.memory),
            "share_of_dense_limit": statistics.median(reached),
        }
        if bytes_per_token and reached
        else None,
        "long": {
            "tokens": plan.long,
            "stretches": [described(stretch) for stretch in results.long],
            "first_again": described(results.again) if results.again else None,
            "last_relative_to_first_again": results.constancy,
        }
        if results.long
        else None,
        "interrupted": results.interrupted,
    }
