#!/usr/bin/env python3
"""Measure the model that has to reason, by type of weights: exact answers, and states kept over thousands of tokens.

    python scripts/measure_reasoning.py tests/data/reasoning
    python scripts/measure_reasoning.py reasoning --new-questions 7

The folder is one that `train_reasoning.py` wrote. Its questions.jsonl is what `rwkv eval --questions` reads; where it
is missing, or --new-questions gives a seed, it is drawn anew. The table is printed, and kept beside it in table.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import reasoning_tasks as tasks

from rwkv_cli.convert.conversion import convert, open_source
from rwkv_cli.engine.backends import registry
from rwkv_cli.engine.backends.base import Backend
from rwkv_cli.engine.state import State
from rwkv_cli.evaluation.questions import Question, answer_all, parse_questions
from rwkv_cli.files.model_file import ModelFile
from rwkv_cli.files.weight_layouts import WeightType
from rwkv_cli.reporting import Reporter
from rwkv_cli.text.tokenizer import load_tokenizer

LENGTHS = {"a5": (2, 7), "s5": (2, 2), "mod": (4, 12), "walk": (20, 100), "registers": (20, 100)}
"""Of questions, in elements or, for the endless ones, in tokens: what the model as it was trained can do."""

TYPES: tuple[WeightType, ...] = ("fp32", "fp16", "int8", "int4")
PARTS = 4  # of a long run, whose accuracies are given apart


def questions(seed: int, each: int) -> list[Question]:
    """As many questions of each task, all of them different."""
    rng = np.random.default_rng(seed)
    found: dict[Question, None] = {}
    for task in tasks.TASKS:
        before = len(found)
        low, high = LENGTHS.get(task, (0, 0))
        while len(found) < before + each:
            found[Question(task, *tasks.question(task, int(rng.integers(low, high + 1)), rng))] = None
    return list(found)


def long_run(backend: Backend, task: str, length: int, seed: int) -> list[float]:
    """Read a text without an end: the share of right predictions in each of `PARTS` stretches of it."""
    made = tasks.first(tasks.ENDLESS[task](np.random.default_rng(seed)), length)
    state, right = State.zeros(backend.config), []
    for start in range(0, len(made), 512):
        logits = backend.forward_all(made.tokens[start : start + 512], state)
        targets = np.array(made.targets[start : start + 512])
        right.append((logits.argmax(axis=1) == targets)[targets >= 0])
    return [round(float(part.mean()), 4) for part in np.array_split(np.concatenate(right), PARTS)]


def by_position(backend: Backend, task: str, length: int, n: int, seed: int) -> list[float]:
    """How often the label after each element of a stream is right."""
    rng, right = np.random.default_rng(seed), []
    for _ in range(n):
        made = tasks.example(task, length, rng)
        targets = np.array(made.targets)
        logits = backend.forward_all(made.tokens, State.zeros(backend.config))
        right.append((logits.argmax(axis=1) == targets)[targets >= 0])
    return [round(float(share), 3) for share in np.mean(right, axis=0)]


def measure(path: Path, asked: Sequence[Question], device: str, length: int) -> dict[str, Any]:
    """Everything that is measured of one model file."""
    file = ModelFile(path)
    backend = registry.open_backend(device, file, None, Reporter().compiling).backend
    assert file.info.tokenizer is not None
    tokenizer = load_tokenizer(file.info.tokenizer, file.config.vocab_size)
    return {
        "bytes": path.stat().st_size,
        "exact_answers": {
            task: round(share.value, 4) for task, share in answer_all(backend, tokenizer, asked).items()
        },
        "long": {task: long_run(backend, task, length, 0) for task in tasks.ENDLESS},
        "streams": {task: by_position(backend, task, 16, 200, 0) for task in tasks.STREAMS},
    }


def main() -> None:
    """Measure all types, print a table, and write it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or reference")
    parser.add_argument("--length", type=int, default=10_000, help="tokens of the long runs")
    parser.add_argument("--each", type=int, default=100, help="questions of each task, where they are drawn")
    parser.add_argument("--new-questions", type=int, metavar="SEED", help="draw other questions")
    arguments = parser.parse_args()
    file = arguments.folder / "questions.jsonl"
    if arguments.new_questions is not None or not file.exists():
        made = questions(arguments.new_questions or 0, arguments.each)
        file.write_text("".join(json.dumps(question._asdict()) + "\n" for question in made))
    asked = parse_questions(file.read_text(), str(file))
    table = {}
    with tempfile.TemporaryDirectory() as folder:
        source = open_source(arguments.folder / "reasoning.pth")
        for weight_type in TYPES:
            path = Path(folder) / f"{weight_type}.safetensors"
            convert(source, path, weight_type, Reporter())
            table[weight_type] = measure(path, asked, arguments.device, arguments.length)
            print(weight_type, json.dumps(table[weight_type]), flush=True)
    (arguments.folder / "table.json").write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
