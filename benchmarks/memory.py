#!/usr/bin/env python3
"""Generate a long text and watch memory and speed: neither may grow.

    python benchmarks/memory.py
    python benchmarks/memory.py --model 0.1b-int8.safetensors --tokens 20000

The verdict is on a promise: the peak resident size is at most the model file, the state and 150 MB. Linux only.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import results

import rwkv_cli
from rwkv_cli.errors import RwkvError
from rwkv_cli.model import Model

ALLOWANCE = 150_000_000
SAMPLES = 200

STATUS = {"resident": "VmRSS", "peak": "VmHWM", "file": "RssFile", "anonymous": "RssAnon"}
"""What is sampled, and how /proc calls it."""


def main() -> None:
    """Generate, then write a picture and the samples, and print the verdict."""
    options = _options()
    before = resident()
    try:
        model = rwkv_cli.load(options.model, threads=options.threads)
        samples = watch(model, options.tokens)
    except RwkvError as error:
        raise SystemExit(f"error: {error}") from None
    facts = results.circumstances() | {
        "model": model.path.name,
        "backend": model.backend.description,
        "tokens": options.tokens,
        "resident_before_loading": before["resident"],
        **verdict(model, samples),
        "samples": samples,
    }
    folder = results.folder(options.results)
    results.write_json(folder / f"memory-{model.path.stem}.json", facts)
    results.write_text(folder / f"memory-{model.path.stem}.md", report(facts))
    draw_samples(folder / f"memory-{model.path.stem}.png", facts, "tokens generated")
    print(report(facts), end="")


def watch(model: Model, n_tokens: int) -> list[dict[str, float]]:
    """Generate so many tokens and sample memory and milliseconds a token at even distances; never stops early."""
    end = model.tokenizer.end_of_document if model.tokenizer else 0
    generation = model.generate([end], max_tokens=n_tokens, seed=1, banned=frozenset([end]), temperature=1)
    every = max(1, n_tokens // SAMPLES)
    samples = []
    start = time.perf_counter()
    for position, _ in enumerate(generation, start=1):
        if position % every == 0:
            milliseconds = 1000 * (time.perf_counter() - start) / every
            samples.append({"position": position, "milliseconds": round(milliseconds, 4), **resident()})
            start = time.perf_counter()
    return samples


def verdict(model: Model, samples: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """The peak against the promise, and the growth of memory and time from the first tenth to the last."""
    file_bytes, state_bytes = model.path.stat().st_size, model.config.state_bytes
    tenth = max(1, len(samples) // 10)
    first, last = samples[:tenth], samples[-tenth:]

    def growth(kind: str) -> tuple[float, float]:
        return median(sample[kind] for sample in first), median(sample[kind] for sample in last)

    peak, limit = samples[-1]["peak"], file_bytes + state_bytes + ALLOWANCE
    return {
        "file_bytes": file_bytes,
        "state_bytes": state_bytes,
        "peak_bytes": peak,
        "limit_bytes": limit,
        "beyond_file_and_state_bytes": peak - file_bytes - state_bytes,
        "kept": peak <= limit,
        "resident_first_and_last_tenth": growth("resident"),
        "milliseconds_first_and_last_tenth": growth("milliseconds"),
    }


def resident() -> dict[str, int]:
    """Bytes of this process in memory: now, at most so far, and in two kinds."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    kilobytes = dict(re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE))
    return {ours: 1024 * int(kilobytes[theirs]) for ours, theirs in STATUS.items()}


def report(facts: Mapping[str, Any]) -> str:
    """The verdict, and what it rests on, in Markdown."""
    size_before, size_after = facts["resident_first_and_last_tenth"]
    time_before, time_after = facts["milliseconds_first_and_last_tenth"]
    last = facts["samples"][-1]
    lines = [
        f"{facts['model']}, {facts['tokens']:,} tokens generated: the promise is "
        f"{'kept' if facts['kept'] else '**broken**'}.",
        "",
        "| | |",
        "|---|---:|",
        f"| peak resident size | {mb(facts['peak_bytes'])} |",
        f"| promised: model file, state and {mb(ALLOWANCE)} | {mb(facts['limit_bytes'])} |",
        f"| model file | {mb(facts['file_bytes'])} |",
        f"| state | {mb(facts['state_bytes'])} |",
        f"| all else | {mb(facts['beyond_file_and_state_bytes'])} |",
        f"| resident at the end, pages of files (the model, libraries) | {mb(last['file'])} |",
        f"| resident at the end, other | {mb(last['anonymous'])} |",
        f"| resident, first and last tenth | {mb(size_before)}, {mb(size_after)} |",
        f"| a token with sampling, first and last tenth | {time_before:.3f} ms, {time_after:.3f} ms |",
        "",
        f"{facts['backend']}. {results.sentence(facts)}.",
    ]
    return "\n".join(lines) + "\n"


def mb(n_bytes: float) -> str:
    """A size for people."""
    return f"{n_bytes / 1e6:.1f} MB"


def draw_samples(path: Path, facts: Mapping[str, Any], unit: str) -> None:
    """Memory over the position, in two kinds, and the time of a token below; with its limit, if there is one."""
    pyplot = results.pyplot()
    if pyplot is None:
        return
    samples = facts["samples"]
    positions = [sample["position"] for sample in samples]
    figure, (sizes, times) = pyplot.subplots(2, 1, figsize=(9, 6.5), sharex=True, height_ratios=(3, 2))
    kinds = {kind: [sample[kind] / 1e6 for sample in samples] for kind in STATUS}
    sizes.stackplot(
        positions,
        kinds["file"],
        kinds["anonymous"],
        labels=["of files (the model, libraries)", "other"],
        colors=[results.OURS, results.OTHERS],
    )
    limit = facts.get("limit_bytes", 0)
    if limit:
        sizes.axhline(limit / 1e6, color=results.LIMIT, linestyle="dashed", label="file, state and 150 MB")
    sizes.set_ylabel("resident size, MB")
    sizes.set_ylim(0, 1.5 * max(limit, facts["peak_bytes"]) / 1e6)
    sizes.legend(frameon=False, fontsize=9, loc="upper right", ncols=3)
    times.plot(positions, [sample["milliseconds"] for sample in samples], color=results.OURS)
    times.set_ylabel("milliseconds a token")
    times.set_ylim(0)
    times.set_xlabel(unit)
    figure.suptitle(f"{facts['model']}, {facts['backend']}", fontsize=11)
    results.save_picture(figure, path)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="a model file; without it, the embedded model")
    parser.add_argument("--tokens", type=int, default=100_000, help="to generate")
    parser.add_argument("--threads", type=int, help="one for each core, if not given")
    parser.add_argument("--results", type=Path, help="the folder of results")
    return parser.parse_args()


if __name__ == "__main__":
    main()
