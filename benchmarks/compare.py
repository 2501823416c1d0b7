#!/usr/bin/env python3
"""Compare the speed of rwkv-cli, llama.cpp and the package `rwkv` on the same weights, with the limit of the memory.

    python benchmarks/compare.py
    python benchmarks/compare.py --sizes 0.1b --repeat 5

Every program lives in a process of its own, and only one works at a time. A round visits each of them for one prompt
and some tokens, and measures right after each visit how fast memory is read. Ratios are formed within a round. A round
in which something else kept the processors busy does not count: programs that share their work out in advance suffer
most from that.
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
from neighbours import Neighbours
from programs import ENTRIES
from worker import PROBE, Worker, WorkerError

PAUSE = 0.05
"""Seconds between two programs, in which the threads of the first stop looking for work."""

SLOW = ("rwkv fp32", "rwkv bf16")
"""Left out of the larger sizes unless they are asked for: a round would take minutes."""


def main() -> None:
    """Measure the sizes that the command line asks for, one after another."""
    options = _options()
    folder = results.folder(options.results)
    for size in options.sizes:
        synthetic.build(options.folder, size)
        measured = measure(size, _chosen(size, options.programs), options)
        results.write_json(folder / f"compare-{size}.json", measured)
    report.write(folder)


def measure(size: str, names: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """All rounds of one size, with facts about the programs and what was left out."""
    facts: dict[str, Any] = results.circumstances() | {
        "size": size,
        "state_bytes": synthetic.SHAPES[size].state_bytes,
        "threads": options.threads,
        "prefill_tokens": options.prefill,
        "decode_tokens": options.decode,
        "most_others": options.most_others,
        "left_out": {name: "not asked for" for name in ENTRIES if name not in names},
    }
    with contextlib.ExitStack() as stack:
        workers = {}
        for name in [*names, PROBE]:
            _say(size, f"starting {name}")
            try:
                worker = Worker(name, options.folder, size, options.threads)
            except WorkerError as error:
                _say(size, f"{name} is left out: {error}")
                facts["left_out"][name] = str(error)
                continue
            stack.callback(worker.close)
            workers[name] = worker
        facts["programs"] = {name: worker.facts for name, worker in workers.items() if name != PROBE}
        return facts | _rounds(size, workers, options)


def _rounds(size: str, workers: Mapping[str, Worker], options: argparse.Namespace) -> dict[str, Any]:
    """As many quiet rounds as wanted, and the others; gives up after three times as many."""
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
    """A visit to each program, each round in another order, so that nobody always follows the same neighbour."""
    names = [name for name in workers if name != PROBE]
    random.Random(number).shuffle(names)
    return {name: _visit(name, workers, options) for name in names}


def _visit(name: str, workers: Mapping[str, Worker], options: argparse.Namespace) -> dict[str, float]:
    """Tokens a second of a program, bytes a second of the memory right after, and how much others computed."""
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


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=results.CHECKPOINTS, help="of the checkpoints")
    parser.add_argument("--results", type=Path, help="the folder of results")
    parser.add_argument("--sizes", type=_sizes, default=list(synthetic.SHAPES), help="0.1b,0.4b,1.5b")
    parser.add_argument("--programs", type=_programs, help=f"some of: {','.join(ENTRIES)}")
    parser.add_argument("--repeat", type=int, default=15, help="rounds of each size")
    parser.add_argument(
        "--most-others",
        type=float,
        default=0.1,
        help="processors that all else may use in a round that counts",
    )
    parser.add_argument("--threads", type=int, default=2, help="of each program")
    parser.add_argument("--prefill", type=int, default=512, help="tokens of the prompt")
    parser.add_argument("--decode", type=int, default=64, help="tokens that are then read one by one")
    return parser.parse_args()


def _sizes(text: str) -> list[str]:
    return _parts(text, synthetic.SHAPES)


def _programs(text: str) -> list[str]:
    return _parts(text, ENTRIES)


def _parts(text: str, known: Any) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if unknown := [name for name in names if name not in known]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of: {', '.join(known)}")
    return names


if __name__ == "__main__":
    main()
