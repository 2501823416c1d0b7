#!/usr/bin/env python3
"""What quantization costs: the perplexity of a checkpoint in several weight types, on a file of tokens.

    python benchmarks/perplexity.py eval.bin --checkpoint gosling.pth

The file has token ids, uint16, little endian. Perplexity is exp of the mean loss over 24 windows of 1,024 predictions,
spread evenly over the file, each from an empty state.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

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
    """Measure the weight types on the command line, one after another, and write a table."""
    options = _parser().parse_args()
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
    path = results.folder(options.results) / f"perplexity-{options.checkpoint.stem}.json"
    results.write_json(path, facts)
    write_report(path, facts)
    print(report(facts), end="")


def measure(
    path: Path, types: Sequence[str], tokens: Sequence[int], windows: int, length: int
) -> dict[str, float]:
    """Weight type -> perplexity. The model files are temporary."""
    found = {}
    with open_checkpoint(path) as checkpoint, tempfile.TemporaryDirectory() as folder:
        for kind in types:
            backend = _backend(checkpoint, kind, Path(folder) / f"{kind}.safetensors")
            found[kind] = perplexity(backend, tokens, windows, length, _progress(kind))
    return found


def write_report(path: Path, facts: results.Facts) -> None:
    """Write the table beside the results at `path`."""
    results.write_text(path.with_suffix(".md"), report(facts))


def report(facts: results.Facts) -> str:
    """A table in Markdown; the first type is the baseline."""
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
    """The CPU kernels with a weight type; or the reference backend, which is slow."""
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


def _parser() -> argparse.ArgumentParser:
    parser = results.parser(__doc__)
    parser.add_argument("tokens", type=Path, help="the file of tokens")
    parser.add_argument("--checkpoint", type=Path, required=True, help="a published checkpoint")
    parser.add_argument(
        "--types", type=results.some_of(KINDS), default=["fp32", "int8", "int4"], help=", ".join(KINDS)
    )
    parser.add_argument("--windows", type=int, default=24, help="number of windows")
    parser.add_argument("--length", type=int, default=1024, help="predictions in each")
    return parser


if __name__ == "__main__":
    main()
