#!/usr/bin/env python3
"""Compare rwkv-cli, llama.cpp and the package `rwkv` on the same weights, and with the memory bandwidth.

    python benchmarks/compare.py
    python benchmarks/compare.py --sizes 0.1b --repeat 5

Every program has its own process, and only one works at a time. A round visits each of them for one prompt and some
tokens, and measures the read bandwidth right after each visit. Ratios are computed within a round. Rounds in which
other processes used the CPU are discarded: programs that divide their work in advance would suffer most.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import report
import results
import synthetic
from programs import ENTRIES
from worker import PROBE, Neighbours, Worker, WorkerError

PAUSE = 0.05
"""Seconds between two programs, in which the threads of the first stop spinning."""

SLOW = ("rwkv fp32", "rwkv bf16")
"""Skipped for the larger sizes unless requested: a round would take minutes."""


def main() -> None:
    """Measure the sizes on the command line, one after another."""
    options = _parser().parse_args()
    folder = results.folder(options.results)
    for size in options.sizes:
        synthetic.build(options.folder, size)
        measured = measure(size, _chosen(size, options.programs), options)
        results.write_json(folder / f"compare-{size}.json", measured)
    report.write(folder)


def measure(size: str, names: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """All rounds of one size, with facts about the programs, and why some are missing."""
    facts: dict[str, Any] = results.circumstances() | {
        "size": size,
        "state_bytes": synthetic.SHAPES[size].state_bytes,
        "threads": options.threads,
        "prefill_tokens": options.prefill,
        "decode_tokens": options.decode,
        "most_others": options.most_others,
        "left_out": {name: "not requested" for name in ENTRIES if name not in names},
    }
    with contextlib.ExitStack() as stack:
        workers = {}
        for name in [*names, PROBE]:
            _say(size, f"starting {name}")
            try:
                worker = Worker(name, options.folder, size, options.threads)
            except WorkerError as error:
                _say(size, f"skipping {name}: {error}")
                facts["left_out"][name] = str(error)
                continue
            stack.callback(worker.close)
            workers[name] = worker
        facts["programs"] = {name: worker.facts for name, worker in workers.items() if name != PROBE}
        return facts | _rounds(size, workers, options)


def _rounds(size: str, workers: Mapping[str, Worker], options: argparse.Namespace) -> dict[str, Any]:
    """`repeat` undisturbed rounds, and the disturbed ones; gives up after three times as many in total."""
    quiet: list[dict[str, Any]] = []
    disturbed: list[dict[str, Any]] = []
    while len(quiet) < options.repeat and len(quiet) + len(disturbed) < 3 * options.repeat:
        visits = _round(len(quiet) + len(disturbed), workers, options)
        others = max(visit["others"] for visit in visits.values())
        (quiet if others <= options.most_others else disturbed).append(visits)
        _say(size, f"{_spoken(visits)}, others at most {others:.2f} cores")
    return {"rounds": quiet, "disturbed_rounds": disturbed}


def _round(
    number: int, workers: Mapping[str, Worker], options: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """A visit to each program, in another order every round, so that none always follows the same one."""
    names = [name for name in workers if name != PROBE]
    random.Random(number).shuffle(names)
    return {name: _visit(name, workers, options) for name in names}


def _visit(name: str, workers: Mapping[str, Worker], options: argparse.Namespace) -> dict[str, float]:
    """Tokens per second of a program, bytes per second read right after, and cores used by other processes."""
    neighbours = Neighbours([worker.pid for worker in workers.values()])
    time.sleep(PAUSE)
    prefill = workers[name].ask(f"prefill {options.prefill}")["seconds"]
    decode = workers[name].ask(f"decode {options.decode}")["seconds"]
    visit = {"prefill": options.prefill / prefill, "decode": options.decode / decode}
    if PROBE in workers:
        time.sleep(PAUSE)
        answer = workers[PROBE].ask("read")
        visit["read"] = answer["bytes"] / answer["seconds"]
    return visit | {"others": neighbours.cores()}


def _chosen(size: str, asked: Sequence[str] | None) -> list[str]:
    """The programs to start."""
    return [name for name in ENTRIES if (name in asked if asked else size == "0.1b" or name not in SLOW)]


def _spoken(visits: dict[str, dict[str, float]]) -> str:
    parts = [f"{name} {visits[name]['decode']:.0f}" for name in ENTRIES if name in visits]
    reads = [visit["read"] / 1e9 for visit in visits.values() if "read" in visit]
    if reads:
        parts.append(f"memory {min(reads):.0f} to {max(reads):.0f} GB/s")
    return "decode " + ", ".join(parts)


def _say(size: str, text: str) -> None:
    print(f"{size}: {text}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    sizes, programs = ",".join(synthetic.SHAPES), ",".join(ENTRIES)
    parser = results.parser(__doc__)
    parser.add_argument("--folder", type=Path, default=results.CHECKPOINTS, help="folder of the checkpoints")
    parser.add_argument("--sizes", type=results.some_of(synthetic.SHAPES), default=sizes, help=sizes)
    parser.add_argument("--programs", type=results.some_of(ENTRIES), help=f"some of {programs}")
    parser.add_argument("--repeat", type=int, default=15, help="rounds per size")
    parser.add_argument(
        "--most-others", type=float, default=0.1, help="cores that other processes may use in a round"
    )
    parser.add_argument("--threads", type=int, default=2, help="threads of each program")
    parser.add_argument("--prefill", type=int, default=512, help="prompt length in tokens")
    parser.add_argument("--decode", type=int, default=64, help="tokens to read after it, one by one")
    return parser


if __name__ == "__main__":
    main()
