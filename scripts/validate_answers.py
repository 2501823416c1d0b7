#!/usr/bin/env python3
"""Have a model answer under many JSON Schemas, and check every answer with the package jsonschema.

    python scripts/validate_answers.py answers.jsonl --answers 10000

Answers are added to the file, one JSON object per line; the same command continues where it stopped. An answer has to
be valid unless it says that it was cut off at the limit of tokens. The exit code is 1 if any is wrong.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from helpers.schemas import Schema, schemas

import rwkv_cli

PROMPTS = (
    "User: Tell me about it.\n\nAssistant: ",
    "Once upon a time",
    "The answer as JSON: ",
    "User: Book a table for two.\n\nAssistant: ",
)
LIMITS = (120, 400)
FORMATS = jsonschema.Draft202012Validator.FORMAT_CHECKER
SETTINGS: tuple[Mapping[str, Any], ...] = (
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 1.6, "top_p": 1.0},
    {"temperature": 0.7, "top_k": 20, "presence_penalty": 1.0, "frequency_penalty": 0.5},
)


def main() -> int:
    """Answer what is missing, then check all; gives the exit code."""
    options = _parser().parse_args()
    known = schemas()
    grammars = {name: rwkv_cli.Grammar.json_schema(schema) for name, schema in known.items()}
    model = rwkv_cli.load(options.model, device=options.device)
    done = len(_lines(options.file))
    with options.file.open("a", encoding="utf-8") as file:
        for number in range(done, options.answers):
            file.write(json.dumps(answer(model, grammars, number)) + "\n")
            file.flush()
    return report(_lines(options.file)[: options.answers], known)


def answer(model: rwkv_cli.Model, grammars: Mapping[str, rwkv_cli.Grammar], number: int) -> dict[str, object]:
    """The answer of this number: all schemas take turns."""
    name = [*grammars][number % len(grammars)]
    chooser = random.Random(number)
    generation = model.generate(
        chooser.choice(PROMPTS),
        constraint=grammars[name],
        seed=number,
        max_tokens=chooser.choice(LIMITS),
        **chooser.choice(SETTINGS),
    )
    text = "".join(step.text for step in generation)
    return {"schema": name, "text": text, "finish": generation.finish}


def report(answers: list[dict[str, Any]], known: Mapping[str, Schema]) -> int:
    """Print what there is, and every answer that is wrong; gives the exit code."""
    checks = {
        name: jsonschema.Draft202012Validator(schema, format_checker=FORMATS)
        for name, schema in known.items()
    }
    complete = [each for each in answers if each["finish"] != "length"]
    problems = [(each, problem_of(each["text"], checks[each["schema"]])) for each in complete]
    wrong = [(each, problem) for each, problem in problems if problem]
    for each, problem in wrong[:20]:
        print(f"{each['schema']}: {each['text'][:300]!r}: {problem}")
    print(
        f"{len(answers):,} answers under {len({each['schema'] for each in answers})} schemas: "
        f"{len(complete):,} complete, {len(answers) - len(complete):,} cut off at the limit, {len(wrong)} wrong"
    )
    return bool(wrong)


def problem_of(text: str, check: jsonschema.Draft202012Validator) -> str | None:
    """Why an answer is not valid; None if it is."""
    try:
        check.validate(json.loads(text))
    except (ValueError, jsonschema.ValidationError) as error:
        return str(error).splitlines()[0]
    return None


def _lines(file: Path) -> list[dict[str, Any]]:
    """The whole lines of a file."""
    if not file.exists():
        return []
    text = file.read_text(encoding="utf-8")
    whole, _, half = text.rpartition("\n")
    if half:
        file.write_text(whole + "\n" if whole else "", encoding="utf-8")
    return [json.loads(line) for line in whole.splitlines()]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--answers", type=int, default=10_000)
    parser.add_argument("--model")
    parser.add_argument("--device", default="cpu")
    return parser


if __name__ == "__main__":
    sys.exit(main())
