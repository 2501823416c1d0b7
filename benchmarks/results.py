"""What the benchmarks share: their options, where results go, and on what machine they were measured."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cpu_kernels.runtime import instructions
from rwkv_cli import machine, paths

ROOT = Path(__file__).resolve().parent.parent

RESULTS = ROOT / "benchmarks" / "results"

CHECKPOINTS = paths.cache_folder() / "benchmarks"
"""The default folder of synthetic checkpoints."""

OURS, OTHERS, LIMIT = "#1f6f8b", "#b8bcc2", "#c0392b"
"""Colours of pictures."""

Facts = Mapping[str, Any]
"""What a results file has: the circumstances and the figures of one benchmark, as JSON."""

_SHARED: dict[str, dict[str, Any]] = {
    "--model": {"help": "a model file (default: the built-in model)"},
    "--threads": {"type": int, "help": "default: one per core"},
    "--results": {
        "type": Path,
        "help": "the folder of results (default: this machine's in benchmarks/results)",
    },
}


def parser(description: str | None, *shared: str) -> argparse.ArgumentParser:
    """A parser of the command line with `--results` and those of `--model` and `--threads` that are named."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for option in (*shared, "--results"):
        made.add_argument(option, **_SHARED[option])
    return made


def some_of(known: Collection[str]) -> Callable[[str], list[str]]:
    """For `add_argument`, the type of a comma-separated list of these names."""

    def parse(text: str) -> list[str]:
        names = [name.strip() for name in text.split(",")]
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"unknown name {unknown[0]!r}: choose from {', '.join(known)}")
        return names

    return parse


def folder(given: Path | None = None, machine_name: str | None = None) -> Path:
    """The results folder that was asked for, otherwise that of this machine; created if needed.

    `machine_name` is what determines the speed; None describes the CPU.
    """
    name = machine_name or f"{machine.cpu_name()} {machine.usable_cores()} cores {instructions.CHOSEN}"
    result = given or RESULTS / re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")
    result.mkdir(parents=True, exist_ok=True)
    return result


def circumstances() -> dict[str, Any]:
    """The machine, its load average, the commit and the time."""
    total, _ = machine.memory()
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": machine.cpu_name(),
        "cores": machine.usable_cores(),
        "kernel": instructions.CHOSEN,
        "memory_bytes": total,
        "system": machine.system(),
        "python": sys.version.split()[0],
        "commit": _commit(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def sentence(facts: Facts) -> str:
    """The circumstances, as text."""
    return (
        f"{facts['cpu']}, {facts['cores']} cores, kernel {facts['kernel']}, {facts['system']}, "
        f"Python {facts['python']}; commit {facts['commit']}, {facts['date']}, "
        f"load average before {facts['load_before']}"
    )


def read_json(path: Path) -> dict[str, Any]:
    """What `write_json` wrote."""
    return dict(json.loads(path.read_text(encoding="utf-8")))


def write_json(path: Path, values: Facts) -> None:
    """Write a results file and print its path."""
    write_text(path, json.dumps(values, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a results file and print its path."""
    path.write_text(text, encoding="utf-8")
    print(path, file=sys.stderr)


def pyplot() -> Any:
    """Matplotlib, drawing into files; None, with a note, if it is not installed."""
    try:
        import matplotlib
    except ImportError as error:
        print(f"no picture: {error}", file=sys.stderr)
        return None
    matplotlib.use("agg")
    from matplotlib import pyplot

    return pyplot


def save_picture(figure: Any, path: Path) -> None:
    """Write a picture and print its path."""
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    print(path, file=sys.stderr)


def _commit() -> str:
    """The commit of this checkout, with a plus if the program has uncommitted changes."""
    try:
        commit = _git("rev-parse", "--short", "HEAD")
        changed = _git("status", "--porcelain", "--", "rwkv_cli", "cpu_kernels")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + ("+" if changed else "")


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()
