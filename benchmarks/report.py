#!/usr/bin/env python3
"""The table and the picture of a comparison, from the compare-SIZE.json files of a results folder.

    python benchmarks/report.py benchmarks/results/MACHINE

`compare.py` writes them as well, and so does `page.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import results
import synthetic
from programs import ENTRIES


@dataclass(frozen=True)
class Row:
    """One program at one size. Ratios and shares are medians of those within a round."""

    name: str
    decode: float  # tokens per second, median
    prefill: float  # tokens per second, median
    decode_ratio: float | None  # to the baseline
    decode_range: tuple[float, float] | None  # the quartiles of that ratio
    prefill_ratio: float | None  # to the baseline
    token_bytes: int  # of all weights except the embedding, and of the state, read and written
    bandwidth_share: float | None  # of the memory bandwidth, used to move these
    limit: float | None  # tokens per second at the full bandwidth


def write(folder: Path) -> None:
    """The table and the picture of all sizes in a results folder."""
    files = [path for size in synthetic.SHAPES if (path := folder / f"compare-{size}.json").exists()]
    sizes = [facts for facts in map(results.read_json, files) if facts["rounds"]]
    if not sizes:
        raise SystemExit(
            f"{folder} has no compare-SIZE.json with an undisturbed round: was the machine busy?"
        )
    results.write_text(folder / "compare.md", "\n\n".join(map(table, sizes)) + "\n")
    _draw(folder / "compare.png", sizes)


def rows(facts: results.Facts) -> list[Row]:
    """The programs that ran, in the order of `ENTRIES`."""
    return [_row(facts, name) for name in ENTRIES if name in facts["programs"]]


def table(facts: results.Facts) -> str:
    """One size, in Markdown."""
    lines = [
        f"### {facts['size']}",
        "",
        "| program | decode, tokens/s | to llama.cpp | quartiles | prefill, tokens/s | to llama.cpp "
        "| MB per token | of the memory bandwidth |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
        *map(_line, rows(facts)),
        "",
        _explained(facts),
        "",
        f"Measured on {results.sentence(facts)}. {_versions(facts)}",
    ]
    lines += [f"Left out: {name} ({reason})." for name, reason in facts["left_out"].items()]
    return "\n".join(lines)


def _row(facts: results.Facts, name: str) -> Row:
    baseline = ENTRIES[name].baseline
    token_bytes = facts["programs"][name]["weight_bytes"] + 2 * facts["state_bytes"]
    decode, prefill, read = (_all(facts, name, kind) for kind in ("decode", "prefill", "read"))

    def ratios(speeds: list[float], kind: str) -> list[float]:
        others = _all(facts, baseline, kind)
        return [speed / other for speed, other in zip(speeds, others, strict=True)] if others else []

    decode_ratios, prefill_ratios = ratios(decode, "decode"), ratios(prefill, "prefill")
    shares = [token_bytes * speed / there for speed, there in zip(decode, read, strict=bool(read))]
    return Row(
        name=name,
        decode=median(decode),
        prefill=median(prefill),
        decode_ratio=median(decode_ratios) if decode_ratios else None,
        decode_range=_quartiles(decode_ratios) if decode_ratios else None,
        prefill_ratio=median(prefill_ratios) if prefill_ratios else None,
        token_bytes=token_bytes,
        bandwidth_share=median(shares) if shares else None,
        limit=median(read) / token_bytes if read else None,
    )


def _all(facts: results.Facts, name: str, kind: str) -> list[float]:
    """A figure of a program in every round; empty if the program did not run."""
    visits = [a_round[name] for a_round in facts["rounds"] if name in a_round]
    return [visit[kind] for visit in visits if kind in visit]


def _quartiles(values: Sequence[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = quantiles(values, n=4, method="inclusive")
    return low, high


def _line(row: Row) -> str:
    spread = f"{row.decode_range[0]:.2f} to {row.decode_range[1]:.2f}" if row.decode_range else "-"
    cells = [
        f"**{row.name}**" if ENTRIES[row.name].is_ours else row.name,
        f"{row.decode:.1f}",
        _ratio(row.decode_ratio),
        spread,
        f"{row.prefill:.0f}",
        _ratio(row.prefill_ratio),
        f"{row.token_bytes / 1e6:.0f}",
        f"{row.bandwidth_share:.0%}" if row.bandwidth_share else "-",
    ]
    return f"| {' | '.join(cells)} |"


def _ratio(ratio: float | None) -> str:
    return f"{ratio:.2f}" if ratio else "-"


def _explained(facts: results.Facts) -> str:
    """How often was measured, and the memory bandwidth."""
    reads = [read / 1e9 for name in facts["programs"] for read in _all(facts, name, "read")]
    text = (
        f"Rounds: {len(facts['rounds'])}; {facts['threads']} threads; {facts['prefill_tokens']} tokens at once, then "
        f"{facts['decode_tokens']} one by one. "
    )
    if disturbed := len(facts["disturbed_rounds"]):
        text += (
            f"{disturbed} more were discarded: other processes used more than {facts['most_others']} cores. "
        )
    if reads:
        low, high = _quartiles(reads)
        text += f"Memory was read at {median(reads):.1f} GB/s (quartiles {low:.1f} to {high:.1f})."
    return text.strip()


def _versions(facts: results.Facts) -> str:
    found = dict.fromkeys(about["description"] for about in facts["programs"].values())
    return "; ".join(found) + "."


def _draw(path: Path, sizes: Sequence[results.Facts]) -> None:
    """A row for decoding and one for prompts, a column for each size."""
    pyplot = results.pyplot()
    if pyplot is None:
        return
    widths = [len(rows(facts)) for facts in sizes]
    figure, all_axes = pyplot.subplots(
        2, len(sizes), squeeze=False, figsize=(2 + 1.1 * sum(widths), 7.5), width_ratios=widths
    )
    for column, facts in zip(all_axes.T, sizes, strict=True):
        for axes, kind in zip(column, ("decode", "prefill"), strict=True):
            _draw_bars(axes, rows(facts), kind)
        column[0].set_title(f"{facts['size']}, one token at a time", fontsize=11)
        column[1].set_title(f"{facts['size']}, prompt of {facts['prefill_tokens']}", fontsize=11)
    for axes in all_axes[:, 0]:
        axes.set_ylabel("tokens per second")
    facts = sizes[0]
    figure.suptitle(f"{facts['cpu']}, {facts['threads']} threads, kernel {facts['kernel']}", fontsize=12)
    results.save_picture(figure, path)


def _draw_bars(axes: Any, shown: Sequence[Row], kind: str) -> None:
    speeds = [row.decode if kind == "decode" else row.prefill for row in shown]
    ratios = [row.decode_ratio if kind == "decode" else row.prefill_ratio for row in shown]
    colors = [results.OURS if ENTRIES[row.name].is_ours else results.OTHERS for row in shown]
    axes.bar(range(len(shown)), speeds, 0.7, color=colors)
    for i, (row, speed, ratio) in enumerate(zip(shown, speeds, ratios, strict=True)):
        compared = ratio and ENTRIES[row.name].baseline != row.name
        text = f"{speed:,.0f}" + (f"\n× {ratio:.2f}" if compared else "")
        behind = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # hides the limit behind the text
        axes.annotate(
            text, (i, speed), (0, 5), textcoords="offset points", ha="center", fontsize=9, bbox=behind
        )
        if kind == "decode" and row.limit:
            label = "memory bandwidth" if i == 0 else None
            axes.hlines(row.limit, i - 0.42, i + 0.42, colors=results.LIMIT, linestyles="dashed", label=label)
    highest = max([*speeds, *(row.limit or 0 for row in shown if kind == "decode")])
    axes.set_ylim(0, 1.18 * highest)
    axes.set_xticks(range(len(shown)), [row.name.replace(" ", "\n") for row in shown], fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    if kind == "decode" and any(row.limit for row in shown):
        axes.legend(frameon=False, fontsize=9, loc="upper left")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    write(Path(sys.argv[1]))
