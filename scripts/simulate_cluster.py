"""Simulate a batch on many replicas: only queues and times, no model.

    python scripts/simulate_cluster.py                       the tables of docs/cluster.md
    python scripts/simulate_cluster.py --replicas 1000 --rows 1e8 --shard-rows 9984

A driver hands out shards: one more for each replica than it can have in its slots. A replica answers its rows in slots,
`tokens_per_second` shared by all of them. Loading, slow replicas, lost nodes, and what the driver does for a shard are
in it. The time of a shard is drawn from what the lengths of its rows add up to.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

AHEAD = 2  # shards that a replica has at the same time, as rwkv_cli.ray.cluster.AHEAD


@dataclass(frozen=True)
class Cluster:
    """A cluster and a batch on it. Times are in seconds."""

    replicas: int = 1000
    rows: float = 1e8
    shard_rows: int = 1152  # what `rwkv batch` takes for 100 M rows and a thousand replicas
    tokens: float = 200.0  # of an answer, in the mean
    spread: float = 0.6  # of the logarithm of an answer's tokens
    prompt_tokens: float = 200.0
    decode_rate: float = (
        30_296.0  # tokens/s of a replica, all slots together: 2.9b fp16 on an H100, 512 in 16.9 ms
    )
    prefill_rate: float = 61_025.0  # tokens/s
    slots: int = 512
    load: float = 20.0  # until a replica has its model: the process, the file, the kernels
    load_bytes: float = 5.9e9  # that every replica reads for that
    storage_rate: float = 20e9  # bytes/s that the storage of the model gives all of them together
    driver: float = 0.002  # that the driver does for a shard
    slow_share: float = 0.01  # of replicas that are slow
    slow_factor: float = 3.0
    lost_per_hour: float = 0.0  # nodes per replica and hour: 0.01 is a node that runs for four days
    seed: int = 1


@dataclass(frozen=True)
class Outcome:
    """What came out."""

    seconds: float
    ideal: float  # if all replicas computed all the time
    driver_busy: float  # share of the time
    tail: float  # seconds from the first replica without work to the end
    lost: int  # shards that were computed again

    @property
    def efficiency(self) -> float:
        """The share of the time that was of use."""
        return self.ideal / self.seconds


def simulate(about: Cluster) -> Outcome:
    """Run it: the time of each event, in order."""
    chance = random.Random(about.seed)
    n_shards = math.ceil(about.rows / about.shard_rows)
    row_seconds = about.tokens / about.decode_rate + about.prompt_tokens / about.prefill_rate
    shard_seconds = about.shard_rows * row_seconds
    # The mean of a shard's rows varies less than they do; and its last row waits for its own tokens, one a step.
    deviation = about.tokens * math.sqrt(math.exp(about.spread**2) - 1) / math.sqrt(about.shard_rows)
    step = about.slots / about.decode_rate
    longest = math.exp(about.spread * math.sqrt(2 * math.log(about.shard_rows)) - about.spread**2 / 2)
    last_row = about.tokens * longest * step
    speed = [about.slow_factor if chance.random() < about.slow_share else 1.0 for _ in range(about.replicas)]
    reading = about.load_bytes * about.replicas / about.storage_rate  # of all, who share it
    ready = [about.load + reading * (i + 1) / about.replicas for i in range(about.replicas)]

    waiting = n_shards
    driver_free = driver_work = 0.0
    busy_until, idle_since = [0.0] * about.replicas, math.inf
    lost, end = 0, 0.0
    count = itertools.count()
    events: list[tuple[float, int, int]] = []  # when a replica can take another shard
    for i in range(about.replicas):
        for _ in range(AHEAD):
            heapq.heappush(events, (ready[i], next(count), i))
        busy_until[i] = ready[i]
    while events:
        now, _, i = heapq.heappop(events)
        if not waiting:
            idle_since = min(idle_since, max(now, busy_until[i]))
            continue
        waiting -= 1
        driver_free = max(driver_free, now) + about.driver
        driver_work += about.driver
        work = shard_seconds * max(0.1, chance.gauss(1, deviation / about.tokens)) * speed[i]
        begin = max(driver_free, busy_until[i])
        done = busy_until[i] = begin + work
        if chance.random() < about.lost_per_hour * work / 3600:  # what it has is lost with it
            busy_until[i] = done + about.load
            waiting += 1
            lost += 1
        end = max(end, done + last_row * speed[i])
        heapq.heappush(events, (done, next(count), i))
    ideal = about.rows * row_seconds / about.replicas
    return Outcome(end, ideal, driver_work / end, end - idle_since if waiting == 0 else 0.0, lost)


def table(rows: Sequence[tuple[str, Cluster]]) -> str:
    """What comes out of some clusters, in Markdown."""
    lines = [
        "| | time | of the ideal | driver busy | tail | shards again |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, about in rows:
        found = simulate(about)
        lines.append(
            f"| {name} | {duration(found.seconds)} | {found.efficiency:.0%} | {found.driver_busy:.0%} "
            f"| {duration(found.tail)} | {found.lost:,} |"
        )
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """A time as people read it."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def tables() -> str:
    """The tables of docs/cluster.md."""
    base = Cluster()
    small, large = replace(base, rows=1e6), replace(base, rows=1e10)
    sizes = [
        (f"{name} prompts, shards of {rows:,}", replace(about, shard_rows=rows))
        for name, about, choices in (
            ("1 M", small, (128, 384, 9984)),
            ("100 M", base, (128, 1152, 4992, 9984)),
            ("10 B", large, (9984, 99_840)),
        )
        for rows in choices
    ]
    faults = [
        ("as above, 100 M in shards of 1,152", base),
        ("no slow replicas", replace(base, slow_share=0)),
        ("a node is lost every 4 days", replace(base, lost_per_hour=0.01)),
        ("a node is lost every 4 hours", replace(base, lost_per_hour=0.25)),
        ("the driver takes 20 ms for a shard", replace(base, driver=0.02)),
        ("the driver takes 200 ms for a shard", replace(base, driver=0.2)),
        ("the model is read at 2 GB/s by all", replace(base, storage_rate=2e9)),
    ]
    return "\n\n".join((table(sizes), table(faults)))


def main() -> None:
    """Print what comes out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, value in vars(Cluster()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, default=value)
    chosen = parser.parse_args()
    whole = {name: int(getattr(chosen, name)) for name in ("replicas", "shard_rows", "slots", "seed")}
    about = Cluster(**{**vars(chosen), **whole})
    print(tables() if about == Cluster() else table([("this one", about)]))


if __name__ == "__main__":
    main()
