#!/usr/bin/env python3
"""Does a rounding of weights do more harm the longer a text is? Perplexity along one long text, by type of weights.

    python scripts/measure_long_run.py gosling.pth eval.bin

The file has token ids, uint16, little endian. They are read in one go, from one empty state; of each type, the table
shows the perplexity of the first and of the last thousand, and how much worse it is there than in fp32.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path

import numpy as np

from rwkv_cli.convert.conversion import convert, open_source
from rwkv_cli.engine.backends import registry
from rwkv_cli.engine.perplexity import negative_log_likelihoods
from rwkv_cli.files.model_file import ModelFile
from rwkv_cli.files.weight_layouts import WeightType
from rwkv_cli.reporting import Reporter

TYPES: tuple[WeightType, ...] = ("fp32", "int8", "int4")
PART = 1000


def main() -> None:
    """Measure all types and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("tokens", type=Path)
    parser.add_argument("--length", type=int, default=50_000)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    tokens = np.fromfile(arguments.tokens, "<u2")[: arguments.length + 1].tolist()
    print(f"| type | first {PART:,} | change | last {PART:,} of {len(tokens) - 1:,} | change |")
    print("|---|---:|---:|---:|---:|")
    reference: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        source = open_source(arguments.checkpoint)
        for weight_type in TYPES:
            path = Path(folder) / f"{weight_type}.safetensors"
            convert(source, path, weight_type, Reporter())
            backend = registry.open_backend(
                arguments.device, ModelFile(path), None, Reporter().compiling
            ).backend
            losses = negative_log_likelihoods(backend, tokens)
            ends = [math.exp(part.mean()) for part in (losses[:PART], losses[-PART:])]
            reference = reference or ends
            cells = [
                f"{value:.4f} | {value / before - 1:+.3%}"
                for value, before in zip(ends, reference, strict=True)
            ]
            print(f"| {weight_type} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
