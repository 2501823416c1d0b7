#!/usr/bin/env python3
"""How much faster a draft makes one text, next to plain generation in the same run.

    python benchmarks/speculation.py
    python benchmarks/speculation.py --model 0.4b-int8.safetensors --draft 0.4b-int4.safetensors --acceptance 0.93

Each way of drafting generates the same text as plain generation, which is checked; the two alternate, round by round,
and the medians are compared. "repeats" is a prompt that the greedy text goes on repeating; "new" is a sampled text. A
model with random weights is sure of nothing, so that its drafts are hardly ever right: with --acceptance, the drafts
cost what they cost, and are right with that probability.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import results

from rwkv_cli import model as models
from rwkv_cli.engine.backends.base import Backend
from rwkv_cli.engine.drafting import Drafter, LookupDrafter, SelfDrafter
from rwkv_cli.engine.sampling import Sampler
from rwkv_cli.engine.session import Session
from rwkv_cli.engine.state import State
from rwkv_cli.sampling_settings import SamplingSettings
from rwkv_cli.text.tokenizer import WorldTokenizer

TEXTS = {
    "repeats": ("| a | b |\n|---|---|\n" + "| 1 | 2 |\n" * 3, SamplingSettings(temperature=0)),
    "new": ("Once upon a time there was", SamplingSettings(seed=1)),
}


class AsOftenRight(Drafter):
    """Does the work of another drafter, and is right as often as is wanted."""

    def __init__(self, drafter: Drafter, text: list[int], acceptance: float) -> None:
        """`text` is what the model says, after the prompt that is observed first."""
        self._drafter, self._text, self._acceptance = drafter, text, acceptance
        self._rng = np.random.default_rng(0)
        self._read = -1

    def observe(self, tokens: list[int]) -> None:  # type: ignore[override]  # sessions give lists
        """See `Drafter`."""
        self._drafter.observe(tokens)
        self._read = self._read + len(tokens) if self._read >= 0 else 0

    def propose(self, token: int, state: State, sampler: Sampler, most: int, /) -> list[int]:
        """See `Drafter`."""
        self._drafter.propose(token, state, sampler, most)
        known = self._text[self._read + 1 : self._read + 1 + most]
        return [each if self._rng.random() < self._acceptance else each ^ 1 for each in known]


def main() -> None:
    """Measure and print a table."""
    options = _parser().parse_args()
    model = models.load(options.model, options.device, threads=options.threads)
    model.tokenizer = model.tokenizer or WorldTokenizer()  # synthetic models have none
    smaller = None
    if options.draft:
        smaller = models.load(options.draft, options.device, threads=options.threads).backend
    print(f"{model.path.name}: {model.backend.description}")
    print("text, draft: tokens/s plain -> with the draft = times; drafted tokens that were right")
    for name, (prompt, settings) in TEXTS.items():
        tokens = model.tokenizer.encode(prompt)
        text = _generated(model.backend, tokens, settings, None, options.tokens)[0]
        for way, make in _ways(smaller, text, options.acceptance).items():
            plain, drafted, right = [], [], (0, 0)
            for _ in range(options.rounds):
                plain.append(_generated(model.backend, tokens, settings, None, options.tokens)[1])
                found, seconds, right = _generated(model.backend, tokens, settings, make(), options.tokens)
                # On a GPU, rounding may tip a choice between two tokens that are as likely.
                assert found == text or options.device == "cuda", "a draft has changed the text"
                drafted.append(seconds)
            speeds = [options.tokens / median(each) for each in (plain, drafted)]
            print(
                f"{name}, {way}: {speeds[0]:.0f} -> {speeds[1]:.0f} = {speeds[1] / speeds[0]:.2f} times; "
                f"{right[1]} of {right[0]}"
            )


def _ways(
    smaller: Backend | None, text: list[int], acceptance: float | None
) -> dict[str, Callable[[], Drafter]]:
    ways: dict[str, Callable[[], Drafter]] = {"lookup": LookupDrafter}
    if smaller:
        ways["self"] = lambda: SelfDrafter(smaller)
        if acceptance is not None:
            ways[f"self at {acceptance:.0%}"] = lambda: AsOftenRight(SelfDrafter(smaller), text, acceptance)
    return ways


def _generated(
    backend: Backend, prompt: list[int], settings: SamplingSettings, drafter: Drafter | None, n: int
) -> tuple[list[int], float, tuple[int, int]]:
    """The tokens after a prompt, the seconds that they took, and how many were drafted and right."""
    session = Session(backend, Sampler(settings), drafter=drafter)
    session.feed(prompt)
    first = session.sample().token
    start = time.perf_counter()
    tokens = [first, *(session.sample().token for _ in range(n))]
    seconds = time.perf_counter() - start
    return tokens, seconds, session.speculation.counts if session.speculation else (0, 0)


def _parser() -> argparse.ArgumentParser:
    parser = results.parser(__doc__, "--model", "--threads")
    parser.add_argument("--device", default="cpu", help="where to compute: cpu (default) or cuda")
    parser.add_argument("--draft", type=Path, help="the same weights in int4, for `self`")
    parser.add_argument("--acceptance", type=float, help="how often a draft shall be right, from 0 to 1")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    return parser


if __name__ == "__main__":
    main()
