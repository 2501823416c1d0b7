#!/usr/bin/env python3
"""What quantization costs: the perplexity of a checkpoint in several weight types, on a file of tokens.

    python benchmarks/perplexity.py eval.bin --checkpoint gosling.pth

The file holds token ids, uint16, little endian. The measure is exp of the mean loss of 24 windows of 1,024 predictions,
spread evenly over the file, each from an empty state.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import results

from rwkv_cli.convert.conversion import convert_checkpoint
from rwkv_cli.engine.backends.base import Backend
from rwkv_cli.engine.backends.cpu import CpuBackend
from rwkv_cli.engine.backends.reference import ReferenceBackend
from rwkv_cli.engine.perplexity import perplexity
from rwkv_cli.errors import RwkvError
from rwkv_cli.files.checkpoints import Checkpoint, open_checkpoint
from rwkv_cli.files.model_file import ModelFile
from rwkv_cli.files.weight_layouts import WeightType

REFERENCE = "reference"
KINDS = (*get_args(WeightType), REFERENCE)


def main() -> None:
    """Measure the weight types that the command line asks for, one after another, and write a table."""
    options = _options()
    tokens = np.fromfile(options.tokens, "<u2").tolist()
    if len(tokens) < options.windows * (options.length + 1):
        raise SystemExit(f"{options.tokens} has {len(tokens):,} tokens, too few for these windows")
    try:
        found = measure(options.checkpoint, options.types, tokens, options.windows, options.length)
    except RwkvError as error:
        raise SystemExit(f"error: {error}") from None
    facts = results.circumstances() | {
        "checkpoint": options.checkpoint.name,
        "tokens": options.tokens.name,
        "windows": options.windows,
        "length": options.length,
        "perplexity": found,
    }
    folder = results.folder(options.results)
    results.write_json(folder / f"perplexity-{options.checkpoint.stem}.json", facts)
    results.write_text(folder / f"perplexity-{options.checkpoint.stem}.md", report(facts))
    print(report(facts), end="")


def measure(
    path: Path, types: Sequence[str], tokens: Sequence[int], windows: int, length: int
) -> dict[str, float]:
    """Weight type -> perplexity. The model files are made for this, in a temporary folder."""
    found = {}
    with open_checkpoint(path) as checkpoint, tempfile.TemporaryDirectory() as folder:
        for kind in types:
            backend = _backend(checkpoint, kind, Path(folder) / f"{kind}.safetensors")
            found[kind] = perplexity(backend, tokens, windows, length, _progress(kind))
    return found


def report(facts: Mapping[str, Any]) -> str:
    """A table in Markdown; the first type is what the others are compared with."""
    found = facts["perplexity"]
    first = next(iter(found.values()))
    lines = [f"| {kind} | {value:.4f} | {value / first - 1:+.2%} |" for kind, value in found.items()]
    return (
        "\n".join(
            [
                f"{facts['checkpoint']} on {facts['tokens']}, {facts['windows']} windows of {facts['length']:,} "
                f"predictions; commit {facts['commit']}.",
                "",
                "| weights | perplexity | change |",
                "|---|---:|---:|",
                *lines,
            ]
        )
        + "\n"
    )


def _backend(checkpoint: Checkpoint, kind: str, target: Path) -> Backend:
    """The CPU kernels with a weight type; or the plain formulas in NumPy, which take their time."""
    if kind == REFERENCE:
        return ReferenceBackend(checkpoint)
    weight_type = next(known for known in get_args(WeightType) if known == kind)
    convert_checkpoint(checkpoint, target, weight_type)
    return CpuBackend(ModelFile(target))


def _progress(kind: str) -> Callable[[int, int], None]:
    def show(done: int, total: int) -> None:
        if sys.stderr.isatty():
            end = "\n" if done == total else ""
            print(f"\r{kind}: {done} of {total} windows", end=end, file=sys.stderr, flush=True)

    return show


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tokens", type=Path, help="the file of tokens")
    parser.add_argument("--checkpoint", type=Path, required=True, help="a published checkpoint")
    parser.add_argument("--types", type=_kinds, default=["fp32", "int8", "int4"], help=", ".join(KINDS))
    parser.add_argument("--windows", type=int, default=24, help="how many")
    parser.add_argument("--length", type=int, default=1024, help="predictions in each")
    parser.add_argument("--results", type=Path, help="the folder of results")
    return parser.parse_args()


def _kinds(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in KINDS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of: {', '.join(KINDS)}")
    return names


if __name__ == "__main__":
    main()
