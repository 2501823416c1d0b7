#!/usr/bin/env python3
"""Chat for many scripted turns and check that neither memory nor the time per token grows.

    python benchmarks/chat.py
    python benchmarks/chat.py --model 0.1b-int8.safetensors --turns 1000

The resident size (RSS) grows until the snapshots for /undo fill their budget, 128 MB unless --budget says otherwise,
and has to stay constant from then on: from the second tenth of the turns to the last one it may grow by 8 MB. The time
per token at the end may be a tenth longer than in a new conversation. Since a machine's speed drifts from minute to
minute, the two conversations alternate. Linux only.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import results
from memory import draw_samples, mb, resident

import rwkv_cli
from rwkv_cli.errors import RwkvError
from rwkv_cli.sessions.conversation import Conversation
from rwkv_cli.sessions.snapshots import BUDGET

MORE_BYTES, MORE_TIME = 8_000_000, 0.1
SAMPLES = 200
ROUNDS = 10  # in which the long conversation and a new one alternate

MESSAGES = (
    "Hello!",
    "How are you today?",
    "Do you like music?",
    "I want to book a table for two.",
    "In San Francisco, please.",
    "At 7 pm tomorrow.",
    "Yes, that is right.",
    "Can you find me a movie to watch?",
    "I like comedies.",
    "What do you think of football?",
    "Tell me more about that, and about what you did last summer, when it was so hot.",
    "Thank you!",
)


def main() -> None:
    """Chat, then write the samples and the report."""
    options = _parser().parse_args()
    before = resident()
    try:
        model = rwkv_cli.load(options.model, threads=options.threads)
        conversation = Conversation(model, max_tokens=60, budget=options.budget, seed=1)
        samples = watch(conversation, options.turns)
        tokens, undo = conversation.snapshot.n_tokens, undo_times(conversation)
        late = against_new_ones(conversation)
    except RwkvError as error:
        raise SystemExit(f"error: {error}") from None
    facts = results.circumstances() | {
        "model": model.path.name,
        "backend": model.backend.description,
        "turns": options.turns,
        "tokens": tokens,
        "resident_before_loading": before["resident"],
        "budget_bytes": options.budget,
        "snapshots": len(conversation.snapshots),
        "snapshot_bytes": conversation.snapshots.nbytes,
        "state_bytes": model.config.state_bytes,
        **verdict(samples, late),
        **undo,
        "samples": samples,
    }
    path = results.folder(options.results) / f"chat-{model.path.stem}.json"
    results.write_json(path, facts)
    write_report(path, facts)
    print(report(facts), end="")


def watch(conversation: Conversation, n_turns: int) -> list[dict[str, float]]:
    """Have `n_turns` messages answered; sample memory and milliseconds per token at regular intervals."""
    every, samples = max(1, n_turns // SAMPLES), []
    messages = itertools.cycle(MESSAGES)
    for turn in range(every, n_turns + 1, every):
        milliseconds = talk(conversation, list(itertools.islice(messages, every)))
        samples.append({"position": turn, "milliseconds": milliseconds, **resident()})
    return samples


def talk(conversation: Conversation, messages: Sequence[str]) -> float:
    """Have messages answered: milliseconds per token."""
    seconds, tokens = 0.0, 0
    for message in messages:
        answer = conversation.ask(message)
        for _ in answer:
            pass
        seconds += answer.usage.decode_seconds
        tokens += max(answer.usage.generated_tokens - 1, 0)
    return round(1000 * seconds / max(tokens, 1), 4)


def against_new_ones(conversation: Conversation) -> list[tuple[float, float]]:
    """Milliseconds per token of this conversation and of new ones, alternating."""
    pairs = []
    for seed in range(ROUNDS):
        new = Conversation(conversation.model, max_tokens=conversation.max_tokens, seed=seed)
        pairs.append((talk(conversation, MESSAGES), talk(new, MESSAGES)))
    return pairs


def verdict(samples: Sequence[Mapping[str, float]], late: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """RSS in the second and in the last tenth of the turns; time per token at the end and in new conversations."""
    tenth = max(1, len(samples) // 10)
    second, last = samples[tenth : 2 * tenth] or samples[:1], samples[-tenth:]
    sizes = [median(sample["resident"] for sample in part) for part in (second, last)]
    ratio = median(old / new for old, new in late)
    return {
        "peak_bytes": samples[-1]["peak"],
        "resident_second_and_last_tenth": sizes,
        "milliseconds_at_the_end": median(old for old, _ in late),
        "milliseconds_of_new_conversations": median(new for _, new in late),
        "ratio": round(ratio, 4),
        "kept": sizes[1] <= sizes[0] + MORE_BYTES and ratio <= 1 + MORE_TIME,
    }


def undo_times(conversation: Conversation) -> dict[str, Any]:
    """Milliseconds of `/undo N` for several N, each from the end of the conversation."""
    taken = {}
    for turns in (1, 10, 100, 500):
        if turns < len(conversation.turns):
            branch = conversation.fork()
            start = time.perf_counter()
            branch.undo(turns)
            taken[str(turns)] = round(1000 * (time.perf_counter() - start), 3)
    return {"undo_milliseconds": taken}


def write_report(path: Path, facts: results.Facts) -> None:
    """Write the table and the picture beside the results at `path`."""
    results.write_text(path.with_suffix(".md"), report(facts))
    draw_samples(path.with_suffix(".png"), facts, "turns")


def report(facts: results.Facts) -> str:
    """The verdict and its figures, in Markdown."""
    size_before, size_after = facts["resident_second_and_last_tenth"]
    at_end, of_new = facts["milliseconds_at_the_end"], facts["milliseconds_of_new_conversations"]
    lines = [
        f"{facts['model']}, {facts['turns']:,} turns, {facts['tokens']:,} tokens: memory and time per token "
        f"{'stay constant' if facts['kept'] else '**grow**'}.",
        "",
        "| | |",
        "|---|---:|",
        f"| RSS, second and last tenth of the turns | {mb(size_before)}, {mb(size_after)} |",
        f"| time per token with sampling, at the end and in new conversations | {at_end:.3f} ms, {of_new:.3f} ms |",
        f"| ratio of these, median of {ROUNDS} alternating rounds | {100 * facts['ratio']:.1f} % |",
        f"| peak resident size (RSS) | {mb(facts['peak_bytes'])} |",
        f"| snapshots for /undo: {facts['snapshots']}, at most {mb(facts['budget_bytes'])} "
        f"| {mb(facts['snapshot_bytes'])} |",
        f"| state | {mb(facts['state_bytes'])} |",
        *(
            f"| /undo {turns} | {milliseconds:,.1f} ms |"
            for turns, milliseconds in facts["undo_milliseconds"].items()
        ),
        "",
        f"{facts['backend']}. {results.sentence(facts)}.",
    ]
    return "\n".join(lines) + "\n"


def _parser() -> argparse.ArgumentParser:
    parser = results.parser(__doc__, "--model", "--threads")
    parser.add_argument("--turns", type=int, default=1000, help="messages to answer")
    parser.add_argument("--budget", type=int, default=BUDGET, help="bytes for snapshots")
    return parser


if __name__ == "__main__":
    main()
