"""Tasks with one right answer each: a file of questions, and how many of them a model answers exactly.

A line of the file is a JSON object: {"task": "add", "prompt": "+:2+3=", "answer": "2+3+0=05,:5"}. A model reads the end
of a document and the prompt; the answer is right if the most probable tokens are exactly those of the answer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from rwkv_cli.engine.backends.base import Backend
from rwkv_cli.engine.state import State
from rwkv_cli.errors import UsageError
from rwkv_cli.evaluation.intervals import Interval, share
from rwkv_cli.text.tokenizer import Tokenizer

TOGETHER = "all"
"""The name of the sum over all tasks."""


class Question(NamedTuple):
    """A task's name, what is read, and the only right answer."""

    task: str
    prompt: str
    answer: str


def parse_questions(text: str, name: str) -> list[Question]:
    """The questions of a file called `name`. Raises UsageError naming the first line that is wrong."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            found.append(_question(line, f"line {number} of {name}"))
    if not found:
        raise UsageError(f"{name} has no questions")
    return found


def _question(line: str, place: str) -> Question:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        raise UsageError(f"{place} is not valid JSON") from None
    texts: dict[str, Any] = {
        field: record.get(field) if isinstance(record, dict) else None for field in Question._fields
    }
    if not all(isinstance(text, str) and text for text in texts.values()):
        raise UsageError(f'{place} needs the texts "task", "prompt" and "answer", none of them empty')
    return Question(**texts)


def is_right(backend: Backend, tokenizer: Tokenizer, question: Question) -> bool:
    """Whether the greedy answer is the right one: then, and only then, every token of it is the most probable one."""
    prompt = [tokenizer.end_of_document, *tokenizer.encode(question.prompt)]
    answer = tokenizer.encode(question.answer)
    logits = backend.forward_all([*prompt, *answer[:-1]], State.zeros(backend.config))[len(prompt) - 1 :]
    return bool((logits.argmax(axis=1) == np.array(answer)).all())


def answer_all(
    backend: Backend,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Interval]:
    """The share of right answers by task, and of all questions together under `TOGETHER`."""
    right: dict[str, list[bool]] = {}
    for i, question in enumerate(questions):
        right.setdefault(question.task, []).append(is_right(backend, tokenizer, question))
        if progress:
            progress(i + 1, len(questions))
    everything = [each for answers in right.values() for each in answers]
    return {
        task: share(sum(answers), len(answers)) for task, answers in (*right.items(), (TOGETHER, everything))
    }
