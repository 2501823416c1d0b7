#!/usr/bin/env python3
"""Put the results of some machines into docs/performance.md, between its two marks.

    python benchmarks/page.py benchmarks/results/MACHINE ...

Tables and pictures are made again from the stored figures first. No figure on the page is typed by hand.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import batch
import chat
import cold_start
import gpu
import memory
import perplexity
import prefill
import report
import results

PAGE = results.ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- results, by benchmarks/page.py -->\n", "<!-- end of results -->\n"


class Section(NamedTuple):
    """A part of the page."""

    title: str
    files: str  # a pattern of the results files, without suffix
    write_report: Callable[[Path, results.Facts], None] | None  # None if one report is about several files


SECTIONS = (
    Section("Next to other programs", "compare", None),
    Section("Reading a prompt on a CPU", "prefill-*", prefill.write_report),
    Section("Many at once on a CPU", "batch-*", batch.write_report),
    Section("Memory over a long text", "memory-*", memory.write_report),
    Section("A chat of a thousand turns", "chat-*", chat.write_report),
    Section("From the command line to the first token", "cold-start-*", cold_start.write_report),
    Section("What quantization costs", "perplexity-*", perplexity.write_report),
    Section("On a GPU", "gpu", gpu.write_report),
)


def main() -> None:
    """Rewrite the reports, and the page between the marks."""
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    folders = [Path(folder).resolve() for folder in sys.argv[1:]]
    for folder in folders:
        _write_reports(folder)
    parts = [_text(folder, section) for section in SECTIONS for folder in folders]
    results.write_text(PAGE, "".join([before, BEGIN, "\n", *parts, END, after]))


def _write_reports(folder: Path) -> None:
    """The tables and pictures of all results of a machine."""
    if any(folder.glob("compare-*.json")):
        report.write(folder)
    for section in SECTIONS:
        if section.write_report:
            for path in sorted(folder.glob(f"{section.files}.json")):
                section.write_report(path, results.read_json(path))


def _text(folder: Path, section: Section) -> str:
    """A heading, and the text and picture of each result; empty if there are none."""
    text = ""
    for path in sorted(folder.glob(f"{section.files}.md")):
        picture = path.with_suffix(".png")
        if picture.exists():
            text += f"![{section.title}]({_from_page(picture)})\n\n"
        text += path.read_text(encoding="utf-8").strip() + "\n\n"
    return f"## {section.title}\n\n{text}" if text else ""


def _from_page(path: Path) -> str:
    """The path in links of the page."""
    return Path(os.path.relpath(path, PAGE.parent)).as_posix()


if __name__ == "__main__":
    main()
