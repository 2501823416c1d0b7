"""What a second model loses against a first one, such as the same model with fewer bits."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkv_cli.engine.backends.base import Backend
from rwkv_cli.evaluation.divergence import GREEDY_TOKENS, greedy_prompts, pairs, parted
from rwkv_cli.evaluation.intervals import Interval, bootstrap
from rwkv_cli.evaluation.questions import Question, answer_all
from rwkv_cli.evaluation.text import TextScore, Windows, byte_counts, score
from rwkv_cli.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Comparison:
    """Two models on one text, and on questions."""

    before: TextScore
    after: TextScore
    change: Interval  # of the perplexity, relative
    divergence: Interval  # mean, in nats
    divergence_99: Interval  # the 99th percentile
    agreement: Interval  # share of predictions with the same first choice
    parted: Interval  # median number of tokens that greedy texts have in common
    greedy_texts: int
    greedy_tokens: int  # of each text, at most
    answers: Mapping[str, tuple[Interval, Interval]] = field(
        default_factory=dict
    )  # by task, before and after


def compare_models(
    before: Backend,
    after: Backend,
    tokenizer: Tokenizer,
    windows: Windows,
    questions: Sequence[Question] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Read windows of a text and answer questions with both; `progress` is of the windows."""
    found = pairs(before, after, windows, progress)
    n, n_bytes = len(found.before), byte_counts(windows, tokenizer.token_bytes)
    together = np.array([parted(before, after, prompt) for prompt in greedy_prompts(windows)])
    difference = found.after - found.before

    def mean(values: NDArray[Any]) -> Interval:
        return bootstrap(n, lambda i: float(values[i].mean()))

    return Comparison(
        before=score(found.before, n_bytes),
        after=score(found.after, n_bytes),
        change=mean(difference).map(math.expm1),
        divergence=mean(found.divergence),
        divergence_99=bootstrap(n, lambda i: float(np.percentile(found.divergence[i], 99))),
        agreement=mean(found.agrees),
        parted=bootstrap(len(together), lambda i: float(np.median(together[i])), block=1),
        greedy_texts=len(together),
        greedy_tokens=GREEDY_TOKENS,
        answers=_answers(before, after, tokenizer, questions) if questions else {},
    )


def _answers(
    before: Backend, after: Backend, tokenizer: Tokenizer, questions: Sequence[Question]
) -> dict[str, tuple[Interval, Interval]]:
    first, second = (answer_all(backend, tokenizer, questions) for backend in (before, after))
    return {task: (first[task], second[task]) for task in first}
