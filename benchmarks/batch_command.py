"""`rwkv batch` next to `rwkv generate --batch`, and two replicas of one core next to one with two, also on Ray.

    python benchmarks/batch_command.py [--rows 512] [--rounds 5] [--model gosling] [--ray]

The programs take turns; each is a process of its own. Its time is the one for all rows without the one for a single
row, so that loading is not in it. Times are medians of rounds, ratios medians of ratios within a round.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROMPTS = ("Once upon a time", "The little fox", "It was a cold day.", "Tom and Sue went to")


def write(path: Path, rows: int) -> Path:
    """A file of prompts."""
    lines = (json.dumps({"prompt": f"{PROMPTS[i % len(PROMPTS)]} {i}", "n": i}) + "\n" for i in range(rows))
    path.write_text("".join(lines))
    return path


def timed(words: list[str], folder: Path) -> tuple[float, float]:
    """Seconds of a command, of a clock and of all its cores."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begun = time.perf_counter()
    command = [sys.executable, "-m", "rwkv_cli", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True)
    seconds = time.perf_counter() - begun
    assert done.returncode == 0, done.stderr.decode()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure, and print the medians."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-tokens", type=int, default=40)
    parser.add_argument("--model", default="gosling")
    parser.add_argument("--ray", action="store_true", help="also two replicas of one core on Ray")
    asked = parser.parse_args()
    common = ["-m", asked.model, "-n", str(asked.max_tokens), "--seed", "1", "--ban", "0", "-q", "--no-cache"]
    ways = {
        "generate --batch": ["generate", "--batch", "{input}", "--resume", "{output}.jsonl", *common],
        "batch": ["batch", "{input}", "{output}", *common],
        "batch, two replicas": [
            "batch",
            "{input}",
            "{output}",
            *common,
            "--device",
            "cpu,cpu",
            "--threads",
            "1",
        ],
    }
    if asked.ray:
        ways["batch, two on Ray"] = ["batch", "{input}", "{output}", *common, "--ray", "--threads", "1"]
    found = {way: list[tuple[float, float]]() for way in ways}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files = [write(folder / f"{n}.jsonl", n) for n in (1, asked.rows)]
        for i in range(asked.rounds):
            for way, words in ways.items():
                times = []
                for file in files:
                    output = str(folder / f"{way}-{i}-{file.stem}".replace(" ", "_"))
                    filled = [word.format(input=file, output=output) for word in words]
                    times.append(timed(filled, folder))
                one, all_rows = times
                found[way].append((all_rows[0] - one[0], all_rows[1] - one[1]))
                print(f"{way}: {found[way][-1][0]:.2f} s, {found[way][-1][1]:.2f} s of cores", flush=True)
    print(f"\n{asked.rows} rows, load average {os.getloadavg()[0]:.1f}\n")
    print("| | rows/s | ms of cores per row | speed to generate --batch, by the clock | by the cores |")
    print("|---|---:|---:|---:|---:|")
    first = found["generate --batch"]
    for way, times in found.items():
        clock, cores = (
            statistics.median(a[i] / b[i] for a, b in zip(first, times, strict=True)) for i in (0, 1)
        )
        rate = asked.rows / statistics.median(each[0] for each in times)
        per_row = statistics.median(each[1] for each in times) / asked.rows * 1000
        print(f"| {way} | {rate:.1f} | {per_row:.2f} | {clock:.2f} | {cores:.2f} |")


if __name__ == "__main__":
    main()
