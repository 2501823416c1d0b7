#!/usr/bin/env python3
"""Generate a long text and check that neither memory nor the time per token grows.

    python benchmarks/memory.py
    python benchmarks/memory.py --model 0.1b-int8.safetensors --tokens 20000

The peak resident size (RSS) has to stay below the sum of the model file, the state and 150 MB. Linux only.
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
"""What is sampled -> its name in /proc/self/status."""


def main() -> None:
    """Generate, then write the samples and the report."""
    options = _parser().parse_args()
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
    path = results.folder(options.results) / f"memory-{model.path.stem}.json"
    results.write_json(path, facts)
    write_report(path, facts)
    print(report(facts), end="")


def watch(model: Model, n_tokens: int) -> list[dict[str, float]]:
    """Generate `n_tokens` tokens and sample memory and milliseconds per token at regular intervals."""
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
    """The peak and its limit, and the growth of memory and time from the first tenth to the last."""
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
    """Resident bytes of this process: now, at their peak, file-backed and anonymous."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    kilobytes = dict(re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE))
    return {ours: 1024 * int(kilobytes[theirs]) for ours, theirs in STATUS.items()}


def write_report(path: Path, facts: results.Facts) -> None:
    """Write the table and the picture beside the results at `path`."""
    results.write_text(path.with_suffix(".md"), report(facts))
    draw_samples(path.with_suffix(".png"), facts, "tokens generated")


def report(facts: results.Facts) -> str:
    """The verdict and its figures, in Markdown."""
    size_before, size_after = facts["resident_first_and_last_tenth"]
    time_before, time_after = facts["milliseconds_first_and_last_tenth"]
    last = facts["samples"][-1]
    lines = [
        f"{facts['model']}, {facts['tokens']:,} tokens generated: peak memory "
        f"{'is below the limit' if facts['kept'] else '**exceeds the limit**'}.",
        "",
        "| | |",
        "|---|---:|",
        f"| peak resident size (RSS) | {mb(facts['peak_bytes'])} |",
        f"| limit: model file, state and {mb(ALLOWANCE)} | {mb(facts['limit_bytes'])} |",
        f"| model file | {mb(facts['file_bytes'])} |",
        f"| state | {mb(facts['state_bytes'])} |",
        f"| everything else | {mb(facts['beyond_file_and_state_bytes'])} |",
        f"| RSS at the end, file-backed (model, libraries) | {mb(last['file'])} |",
        f"| RSS at the end, anonymous | {mb(last['anonymous'])} |",
        f"| RSS, first and last tenth | {mb(size_before)}, {mb(size_after)} |",
        f"| time per token with sampling, first and last tenth | {time_before:.3f} ms, {time_after:.3f} ms |",
        "",
        f"{facts['backend']}. {results.sentence(facts)}.",
    ]
    return "\n".join(lines) + "\n"


def mb(n_bytes: float) -> str:
    """A size for display."""
    return f"{n_bytes / 1e6:.1f} MB"


def draw_samples(path: Path, facts: results.Facts, unit: str) -> None:
    """RSS by kind over the position, with its limit if it has one, and the time per token below."""
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
        labels=["file-backed (model, libraries)", "anonymous"],
        colors=[results.OURS, results.OTHERS],
    )
    limit = facts.get("limit_bytes", 0)
    if limit:
        sizes.axhline(limit / 1e6, color=results.LIMIT, linestyle="dashed", label="limit")
    sizes.set_ylabel("RSS, MB")
    sizes.set_ylim(0, 1.5 * max(limit, facts["peak_bytes"]) / 1e6)
    sizes.legend(frameon=False, fontsize=9, loc="upper right", ncols=3)
    times.plot(positions, [sample["milliseconds"] for sample in samples], color=results.OURS)
    times.set_ylabel("milliseconds per token")
    times.set_ylim(0)
    times.set_xlabel(unit)
    figure.suptitle(f"{facts['model']}, {facts['backend']}", fontsize=11)
    results.save_picture(figure, path)


def _parser() -> argparse.ArgumentParser:
    parser = results.parser(__doc__, "--model", "--threads")
    parser.add_argument("--tokens", type=int, default=100_000, help="tokens to generate")
    return parser


if __name__ == "__main__":
    main()
