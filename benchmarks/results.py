"""Where results go, and on what machine they were measured."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cpu_kernels.runtime import instructions
from rwkv_cli import machine, paths

ROOT = Path(__file__).resolve().parent.parent

CHECKPOINTS = paths.cache_folder() / "benchmarks"
"""Where synthetic checkpoints are kept, unless a command is told another place."""

OURS, OTHERS, LIMIT = "#1f6f8b", "#b8bcc2", "#c0392b"
"""Colours of pictures."""


def folder(given: Path | None = None) -> Path:
    """The results folder of this machine, or the one that was asked for; made if it is not there."""
    name = f"{machine.cpu_name()} {machine.usable_cores()} cores {instructions.CHOSEN}".lower()
    result = given or ROOT / "benchmarks" / "results" / re.sub(r"[^a-z0-9.]+", "-", name).strip("-")
    result.mkdir(parents=True, exist_ok=True)
    return result


def circumstances() -> dict[str, Any]:
    """The machine, how busy it is just now, and what was measured when."""
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


def sentence(facts: Mapping[str, Any]) -> str:
    """The circumstances for people."""
    return (
        f"{facts['cpu']}, {facts['cores']} cores, kernel {facts['kernel']}, {facts['system']}, "
        f"Python {facts['python']}; commit {facts['commit']}, {facts['date']}, "
        f"load average before {facts['load_before']}"
    )


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a results file and say so."""
    write_text(path, json.dumps(values, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a results file and say so."""
    path.write_text(text, encoding="utf-8")
    print(path, file=sys.stderr)


def pyplot() -> Any:
    """Matplotlib, drawing into files; None, and a word about it, if it is not installed."""
    try:
        import matplotlib
    except ImportError as error:
        print(f"there is no picture: {error}", file=sys.stderr)
        return None
    matplotlib.use("agg")
    from matplotlib import pyplot

    return pyplot


def save_picture(figure: Any, path: Path) -> None:
    """Write a picture and say so."""
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    print(path, file=sys.stderr)


def _commit() -> str:
    """The commit of this checkout, with a plus if its program is not as committed."""
    try:
        commit = _git("rev-parse", "--short", "HEAD")
        changed = _git("status", "--porcelain", "--", "rwkv_cli", "cpu_kernels")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + ("+" if changed else "")


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()
