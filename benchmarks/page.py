#!/usr/bin/env python3
"""Put the results of some machines into docs/performance.md, between its two marks.

    python benchmarks/page.py benchmarks/results/MACHINE ...

No figure on the page is typed by hand: it comes out of the files that the other commands leave.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import results

PAGE = results.ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- results, by benchmarks/page.py -->\n", "<!-- end of results -->\n"
SECTIONS = {
    "compare": "Next to other programs",
    "memory-*": "Memory over a long text",
    "chat-*": "A chat of a thousand turns",
    "cold-start-*": "From the command line to the first token",
    "perplexity-*": "What quantization costs",
    "gpu": "On a GPU",
}


def main() -> None:
    """Rewrite what lies between the marks."""
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    folders = [Path(folder).resolve() for folder in sys.argv[1:]]
    parts = [_section(folder, pattern) for pattern in SECTIONS for folder in folders]
    results.write_text(PAGE, "".join([before, BEGIN, "\n", *parts, END, after]))


def _section(folder: Path, pattern: str) -> str:
    """A heading, and the text and picture of each result; nothing if there is none."""
    text = ""
    for path in sorted(folder.glob(f"{pattern}.md")):
        picture = path.with_suffix(".png")
        if picture.exists():
            text += f"![{SECTIONS[pattern]}]({_from_page(picture)})\n\n"
        text += path.read_text(encoding="utf-8").strip() + "\n\n"
    return f"## {SECTIONS[pattern]}\n\n{text}" if text else ""


def _from_page(path: Path) -> str:
    return Path(os.path.relpath(path, PAGE.parent)).as_posix()


if __name__ == "__main__":
    main()
