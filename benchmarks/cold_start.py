#!/usr/bin/env python3
"""How long it takes from the command to the first token, step by step.

    python benchmarks/cold_start.py
    python benchmarks/cold_start.py --model 0.1b-int8.safetensors --repeat 11

Kernels are already compiled and files are in the page cache, as when a user runs the program for the second time. All
figures are medians of several runs, in milliseconds.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import sysconfig
import textwrap
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median

import results

from rwkv_cli.catalog import registry
from rwkv_cli.errors import RwkvError

MOST_IMPORTS = 12

PROMPT = "Hello"

PHASES = {
    "imports: Typer": "import typer",
    "imports: our commands": "import rwkv_cli.cli.main",
    "reading the command line": """
        command = typer.main.get_command(rwkv_cli.cli.main.app).commands["generate"]
        command.make_context("generate", ["--model", path, "--prompt", prompt, "--quiet"])""",
    "imports: NumPy": "import numpy",
    "imports: output and progress": "from rwkv_cli.cli.terminal import output, progress\nimport rwkv_cli.cli.prompt",
    "imports: our Python API": "import rwkv_cli.model",
    "imports: llvmlite": "import llvmlite.binding",
    "imports: our kernels": "import rwkv_cli.engine.backends.cpu",
    "mapping the model": """
        from pathlib import Path
        from rwkv_cli.files.model_file import ModelFile
        model = ModelFile(Path(path))""",
    "loading the tokenizer": """
        from rwkv_cli.text.tokenizer import load_tokenizer
        tokenizer = load_tokenizer(model.info.tokenizer, model.config.vocab_size)""",
    "loading compiled kernels": "backend = rwkv_cli.engine.backends.cpu.CpuBackend(model)",
    "prompt to tokens": "tokens = tokenizer.encode(prompt)",
    "first pass": """
        from rwkv_cli.engine.state import State
        logits = backend.forward(tokens, State.zeros(model.config))""",
    "first token": """
        from rwkv_cli.engine.sampling import Sampler
        from rwkv_cli.sampling_settings import SamplingSettings
        Sampler(SamplingSettings()).sample(logits)""",
}
"""The steps of `rwkv generate`, in order, in one process."""

START, END = "interpreter: start", "interpreter: end"

CHILD = """
import time
began = time.time()
import json, sys
phases, *arguments = json.loads(sys.argv[1])
seconds, names = {}, dict(zip(("path", "prompt"), arguments))
for name, code in phases.items():
    start = time.perf_counter()
    exec(code, names)
    seconds[name] = time.perf_counter() - start
print(json.dumps([began, seconds, time.time()]))
"""


def main() -> None:
    """Measure, and write the tables."""
    options = _parser().parse_args()
    try:
        model = registry.locate(options.model)
    except RwkvError as error:
        raise SystemExit(f"error: {error}") from None
    facts = results.circumstances() | {"model": model.name, "repeat": options.repeat}
    facts |= {
        "commands": _medians(lambda: _commands(model), options.repeat),
        "phases": _medians(lambda: _phases(model), options.repeat),
        "imports": _medians(lambda: _imports(model), options.repeat),
    }
    path = results.folder(options.results) / f"cold-start-{model.stem}.json"
    results.write_json(path, facts)
    write_report(path, facts)
    print(report(facts), end="")


def write_report(path: Path, facts: results.Facts) -> None:
    """Write the tables beside the results at `path`."""
    results.write_text(path.with_suffix(".md"), report(facts))


def report(facts: results.Facts) -> str:
    """Three tables, in Markdown."""
    largest = sorted(facts["imports"].items(), key=lambda item: -item[1])[:MOST_IMPORTS]
    total = sum(facts["phases"].values())
    return (
        "\n\n".join(
            [
                f"Cold start with {facts['model']}, medians of {facts['repeat']} runs. {results.sentence(facts)}.",
                _table("command", facts["commands"].items()),
                _table("phase, in order", [*facts["phases"].items(), ("sum", total)]),
                _table("imports of `rwkv generate`, by package", largest),
            ]
        )
        + "\n"
    )


def _table(title: str, rows: Iterable[tuple[str, float]]) -> str:
    return "\n".join(
        [f"| {title} | ms |", "|---|---:|", *(f"| {name} | {1000 * s:.1f} |" for name, s in rows)]
    )


def _commands(model: Path) -> dict[str, float]:
    """Wall times of whole commands."""
    script = Path(sysconfig.get_path("scripts")) / ("rwkv.exe" if os.name == "nt" else "rwkv")
    return {
        "python -c pass": _run([sys.executable, "-c", "pass"])[0],
        "rwkv --version": _run([script, "--version"])[0],
        "rwkv --help": _run([script, "--help"])[0],
        "rwkv generate --help": _run([script, "generate", "--help"])[0],
        "rwkv generate --max-tokens 1": _run([script, *_generate(model)])[0],
    }


def _phases(model: Path) -> dict[str, float]:
    """The steps of `rwkv generate`, timed inside a fresh process, and the start and end of the process itself."""
    phases = {name: textwrap.dedent(code) for name, code in PHASES.items()}
    before = time.time()
    _, done = _run([sys.executable, "-c", CHILD, json.dumps([phases, str(model), PROMPT])])
    after = time.time()
    began, seconds, ended = json.loads(done.stdout)
    return {START: began - before, **seconds, END: after - ended}


def _imports(model: Path) -> dict[str, float]:
    """Package -> seconds that `rwkv generate` spends importing its modules."""
    _, done = _run([sys.executable, "-X", "importtime", "-m", "rwkv_cli", *_generate(model)])
    seconds: defaultdict[str, float] = defaultdict(float)
    for microseconds, module in re.findall(
        r"^import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)$", done.stderr, re.MULTILINE
    ):
        package = module.partition(".")[0]
        seconds["standard library" if package in sys.stdlib_module_names else package] += (
            int(microseconds) / 1e6
        )
    return dict(seconds)


def _generate(model: Path) -> list[str]:
    return ["generate", "--model", str(model), "--prompt", PROMPT, "--max-tokens", "1", "--quiet"]


def _run(command: Sequence[str | Path]) -> tuple[float, subprocess.CompletedProcess[str]]:
    """Run a command: seconds, and what it wrote. Python may cache bytecode, as it does by default."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    start = time.perf_counter()
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed: {done.stderr.strip()}")
    return seconds, done


def _medians(measure: Callable[[], dict[str, float]], repeat: int) -> dict[str, float]:
    """The median of each figure, after a warm-up run."""
    measure()
    runs = [measure() for _ in range(repeat)]
    return {name: median(run.get(name, 0.0) for run in runs) for name in runs[0]}


def _parser() -> argparse.ArgumentParser:
    parser = results.parser(__doc__, "--model")
    parser.add_argument("--repeat", type=int, default=7, help="runs")
    return parser


if __name__ == "__main__":
    main()
