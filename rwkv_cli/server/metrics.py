"""Counts and times of the server, in the text format of Prometheus."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


@dataclass
class Histogram:
    """How many values were at most so large, their sum and their number."""

    counts: list[int] = field(default_factory=lambda: [0] * len(_BUCKETS))
    total: float = 0.0
    n: int = 0

    def add(self, value: float) -> None:
        """Count a value."""
        self.total += value
        self.n += 1
        for place, bound in enumerate(_BUCKETS):
            self.counts[place] += value <= bound

    def lines(self, name: str) -> Iterator[str]:
        """As Prometheus reads it."""
        for bound, count in zip(_BUCKETS, self.counts, strict=True):
            yield f'{name}_bucket{{le="{bound:g}"}} {count}'
        yield f'{name}_bucket{{le="+Inf"}} {self.n}'
        yield f"{name}_sum {self.total:.6f}"
        yield f"{name}_count {self.n}"


@dataclass(frozen=True)
class Gauges:
    """How things stand with one model now."""

    model: str
    running: int
    waiting: int
    state_bytes: int


class Metrics:
    """What has happened since the server was started."""

    def __init__(self) -> None:
        self.started = time.time()
        self.requests = Counter[tuple[str, int]]()  # by path and status
        self.tokens = Counter[str]()  # prompt, cached, generated
        self.hits = Counter[str]()  # hit, miss: histories of which a part was known
        self.first = Histogram()  # seconds to the first token
        self.seconds = Histogram()  # of whole answers

    def note_answer(
        self, prompt: int, cached: int, generated: int, first: float | None, seconds: float
    ) -> None:
        """Count an answer."""
        self.tokens.update(prompt=prompt, cached=cached, generated=generated)
        self.hits["hit" if cached else "miss"] += 1
        self.seconds.add(seconds)
        if first is not None:
            self.first.add(first)

    def text(self, gauges: Sequence[Gauges]) -> str:
        """Everything, as Prometheus reads it."""
        return "\n".join([*self._lines(gauges), ""])

    def _lines(self, gauges: Sequence[Gauges]) -> Iterator[str]:
        yield from _head("rwkv_requests_total", "counter", "Requests, by route and status.")
        for (path, status), count in sorted(self.requests.items()):
            yield f'rwkv_requests_total{{route="{path}",status="{status}"}} {count}'
        yield from _head(
            "rwkv_tokens_total", "counter", "Tokens of prompts, of them not read again, and generated."
        )
        for kind in ("prompt", "cached", "generated"):
            yield f'rwkv_tokens_total{{kind="{kind}"}} {self.tokens[kind]}'
        yield from _head("rwkv_history_total", "counter", "Prompts of which a beginning was known, or not.")
        for kind in ("hit", "miss"):
            yield f'rwkv_history_total{{result="{kind}"}} {self.hits[kind]}'
        for name, attribute, what in (
            ("rwkv_running", "running", "Sequences that are being read or answered."),
            ("rwkv_waiting", "waiting", "Requests that wait for a slot."),
            ("rwkv_state_bytes", "state_bytes", "Bytes of states in memory."),
        ):
            yield from _head(name, "gauge", what)
            for each in gauges:
                yield f'{name}{{model="{each.model}"}} {getattr(each, attribute)}'
        yield from _head("rwkv_first_token_seconds", "histogram", "From a request to its first token.")
        yield from self.first.lines("rwkv_first_token_seconds")
        yield from _head("rwkv_answer_seconds", "histogram", "From a request to the end of its answer.")
        yield from self.seconds.lines("rwkv_answer_seconds")
        yield from _head(
            "rwkv_start_time_seconds", "gauge", "When the server was started, in seconds since 1970."
        )
        yield f"rwkv_start_time_seconds {self.started:.0f}"


def _head(name: str, kind: str, what: str) -> Iterator[str]:
    yield f"# HELP {name} {what}"
    yield f"# TYPE {name} {kind}"
