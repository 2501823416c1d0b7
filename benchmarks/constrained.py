#!/usr/bin/env python3
"""Tokens per second under a constraint, next to those of a plain text of the same model.

    python benchmarks/constrained.py --model 0.1b-int8.safetensors

Rounds alternate between a plain text and each kind of constraint, since a machine's speed drifts from minute to minute;
the ratios are medians over the rounds. Of a text under a constraint, tokens that it forces are counted too: they are
read many at once, so a schema with much fixed text can be faster than a plain one.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from statistics import median
from typing import Any

import results

import rwkv_cli
from rwkv_cli import Grammar
from rwkv_cli.errors import RwkvError
from rwkv_cli.text.tokenizer import WorldTokenizer

FIXED = {"enum": ["a fixed text that is the same every time", "another fixed text"]}
NAMES = [f"a property with a long name {number}" for number in range(12)]
RECORD = {
    "type": "object",
    "properties": dict.fromkeys(NAMES, FIXED),
    "required": NAMES,
    "additionalProperties": False,
}
TEXTS = {"type": "array", "items": {"type": "string"}, "minItems": 1000}

KINDS: Mapping[str, Mapping[str, Any] | None] = {
    "plain": None,
    "strings of any text": TEXTS,
    "any JSON": {},
    "much fixed text": RECORD,
}


def main() -> None:
    """Measure, then write the figures and the report."""
    options = _parser().parse_args()
    try:
        model = rwkv_cli.load(options.model, device=options.device, threads=options.threads)
        model.tokenizer = model.tokenizer or WorldTokenizer()  # synthetic models have none
        speeds = measured(model, options.tokens, options.rounds)
    except RwkvError as error:
        raise SystemExit(f"error: {error}") from None
    facts = results.circumstances() | {
        "model": model.path.name,
        "backend": model.backend.description,
        "tokens": options.tokens,
        **mask_times(model),
        "tokens_per_second": speeds,
        "ratio_to_plain": {kind: ratio(speeds[kind], speeds["plain"]) for kind in KINDS},
    }
    path = results.folder(options.results) / f"constrained-{model.path.stem}.json"
    results.write_json(path, facts)
    for kind, values in speeds.items():
        share = facts["ratio_to_plain"][kind]
        print(f"{kind:20} {median(values):8.1f} tokens/s, {100 * share:5.1f} % of plain")
    print(f"a mask: {facts['mask_microseconds']} µs in the median, {facts['mask_microseconds_p99']} in 99 %")


def measured(model: rwkv_cli.Model, tokens: int, rounds: int) -> dict[str, list[float]]:
    """Tokens per second of each kind in each round; the first round only warms up."""
    grammars = {
        kind: Grammar.json_schema(schema) if schema is not None else None for kind, schema in KINDS.items()
    }
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for number in range(rounds + 1):
        for kind, grammar in grammars.items():
            speed = _speed(model, grammar, tokens, number)
            if number:
                found[kind].append(round(speed, 2))
    return found


def _speed(model: rwkv_cli.Model, grammar: Grammar | None, tokens: int, seed: int) -> float:
    end = frozenset({0})  # a plain text must not be shorter
    generation = model.generate(
        [1, 2, 3], constraint=grammar, max_tokens=tokens, seed=seed, banned=None if grammar else end
    )
    next(generation)
    start, before = time.perf_counter(), generation.usage.generated_tokens
    for _ in generation:
        pass
    return (generation.usage.generated_tokens - before) / (time.perf_counter() - start)


def mask_times(model: rwkv_cli.Model) -> dict[str, float]:
    """Microseconds of the masks along the texts of every kind of constraint."""
    times: list[float] = []
    for schema in KINDS.values():
        if schema is None:
            continue
        generation = model.generate([1, 2, 3], constraint=Grammar.json_schema(schema), max_tokens=200, seed=1)
        tokens = [step.token for step in generation]
        constraint = model.constraint(Grammar.json_schema(schema), model.template)
        for token in tokens[:-1]:
            start = time.perf_counter()
            constraint.mask()
            times.append(1e6 * (time.perf_counter() - start))
            try:
                constraint.accept(token)
            except RwkvError:  # the end, or another lead
                break
    times.sort()
    return {
        "mask_microseconds": round(median(times), 1),
        "mask_microseconds_p99": round(times[int(0.99 * len(times))], 1),
    }


def ratio(values: list[float], plain: list[float]) -> float:
    """The median, over the rounds, of the ratio within a round."""
    return round(median(value / other for value, other in zip(values, plain, strict=True)), 4)


def _parser() -> argparse.ArgumentParser:
    parser = results.parser(__doc__, "--model", "--threads")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tokens", type=int, default=200, help="of each text")
    parser.add_argument("--rounds", type=int, default=7)
    return parser


if __name__ == "__main__":
    main()
