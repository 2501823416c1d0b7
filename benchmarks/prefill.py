#!/usr/bin/env python3
"""How fast a prompt is read on the CPU, next to oneDNN's product of int8 matrices of the same shapes.

    python benchmarks/prefill.py
    python benchmarks/prefill.py --sizes 0.1b --tokens 512 --repeat 9

Both are given in multiply-adds a second: those of all matrices that a token of a prompt meets, by the time of the whole
prompt, with norms, the recurrence and all; and those of the big matrices alone, by the time of `torch._int_mm`, which
neither scales nor rounds anything. They take turns in one process, with as many threads. On a machine that others use
too, `--cpu-time` measures the CPU time of one thread in place of the wall time of all.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import results
import synthetic

from rwkv_cli import machine
from rwkv_cli.config import ModelConfig
from rwkv_cli.engine.backends.cpu import CpuBackend
from rwkv_cli.engine.state import State
from rwkv_cli.files.model_file import ModelFile

PEER = "oneDNN"

Clock = Callable[[], float]


def big_matrices(config: ModelConfig) -> list[tuple[int, int, int]]:
    """The shapes of the quantized matrices of a layer: inputs, outputs, and how many there are."""
    C, F = config.n_embd, config.n_ffn
    return [(C, C, 4), (C, F, 1), (F, C, 1)]


def multiply_adds(config: ModelConfig) -> int:
    """Of a token of a prompt, the last one's logits apart."""
    big = sum(inputs * outputs * n for inputs, outputs, n in big_matrices(config))
    ranks = config.rank_w + config.rank_a + config.rank_v + config.rank_g
    return config.n_layer * (big + 2 * config.n_embd * ranks)


def peer(config: ModelConfig, tokens: int, threads: int, clock: Clock) -> Callable[[], float]:
    """A function that multiplies as many tokens with matrices of all shapes: multiply-adds a second."""
    import torch

    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> Any:
        return torch.randint(-127, 128, shape, dtype=torch.int8, generator=generator)

    shapes = big_matrices(config)
    # Of every matrix as many copies as fit no cache, since each layer has its own.
    weights = [(n, [random(outputs, inputs).t() for _ in range(8)]) for inputs, outputs, n in shapes]
    x = {inputs: random(tokens, inputs) for inputs, _, _ in shapes}
    total = sum(inputs * outputs * n for inputs, outputs, n in shapes) * tokens * 8

    def measure() -> float:
        start = clock()
        for n, copies in weights:
            for w in copies:
                for _ in range(n):
                    torch._int_mm(x[w.shape[0]], w)
        return total / (clock() - start)

    return measure


def ours(path: Path, tokens: int, threads: int, clock: Clock) -> tuple[str, Callable[[], float]]:
    """What reads the prompt, and a function that reads one: multiply-adds a second."""
    model = ModelFile(path)
    backend = CpuBackend(model, threads)
    prompt = np.random.default_rng(1).integers(1, model.config.vocab_size - 1, tokens).tolist()
    total = multiply_adds(model.config) * tokens

    def measure() -> float:
        state = State.zeros(model.config)
        start = clock()
        backend.forward(prompt, state)
        return total / (clock() - start)

    return f"{backend.description}, {backend.chunk} tokens at once", measure


def measure(size: str, options: argparse.Namespace) -> dict[str, Any]:
    """All rounds of one size: multiply-adds a second by weight type, and of the peer."""
    threads, clock = (1, time.thread_time) if options.cpu_time else (options.threads, time.perf_counter)
    facts = results.circumstances() | {"size": size, "threads": threads, "tokens": options.tokens}
    config = synthetic.SHAPES[size]
    facts["multiply_adds"] = multiply_adds(config)
    measured = {PEER: peer(config, options.tokens, threads, clock)}
    facts["programs"] = {}
    for weight_type in options.types:
        path = options.folder / f"{size}-{weight_type}.safetensors"
        facts["programs"][weight_type], measured[weight_type] = ours(path, options.tokens, threads, clock)
    for call in measured.values():
        call()
    facts["rounds"] = [{name: call() for name, call in measured.items()} for _ in range(options.repeat)]
    return facts


def write_report(path: Path, facts: results.Facts) -> None:
    """Write the table beside the results at `path`."""
    results.write_text(path.with_suffix(".md"), report(facts))


def report(facts: results.Facts) -> str:
    """Tokens and multiply-adds per second and their ratios, in Markdown."""
    rounds = facts["rounds"]
    lines = [
        f"| {facts['size']} | tokens/s | 10^12 multiply-adds/s | to {PEER} |",
        "|---|---:|---:|---:|",
        f"| {PEER} | | {median(each[PEER] for each in rounds) / 1e12:.2f} | |",
    ]
    for name in facts["programs"]:
        speed = median(each[name] for each in rounds)
        share = median(each[name] / each[PEER] for each in rounds)
        tokens = speed / facts["multiply_adds"]
        lines.append(f"| rwkv-cli {name} | {tokens:,.0f} | {speed / 1e12:.2f} | {share:.0%} |")
    programs = "; ".join(facts["programs"].values())
    lines += [
        "",
        f"A prompt of {facts['tokens']} tokens, medians of {len(rounds)} rounds. {programs}. "
        f"{results.sentence(facts)}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure the sizes on the command line, one after another."""
    options = _parser().parse_args()
    folder = results.folder(options.results)
    for size in options.sizes:
        if not all((options.folder / f"{size}-{kind}.safetensors").exists() for kind in options.types):
            synthetic.build(options.folder, size)
        facts = measure(size, options)
        path = folder / f"prefill-{size}.json"
        results.write_json(path, facts)
        write_report(path, facts)


def _parser() -> argparse.ArgumentParser:
    parser = results.parser(__doc__)
    parser.add_argument("--threads", type=int, default=machine.usable_cores(), help="default: one per core")
    parser.add_argument("--cpu-time", action="store_true", help="the CPU time of one thread")
    parser.add_argument("--sizes", type=results.some_of(synthetic.SHAPES), default=["0.1b", "0.4b"])
    parser.add_argument("--types", type=results.some_of(synthetic.WEIGHT_TYPES), default=["int8", "int4"])
    parser.add_argument("--tokens", type=int, default=512, help="of the prompt")
    parser.add_argument("--repeat", type=int, default=5, help="rounds")
    parser.add_argument("--folder", type=Path, default=results.CHECKPOINTS, help="of synthetic checkpoints")
    return parser


if __name__ == "__main__":
    main()
