#!/usr/bin/env python3
"""A scripted chat of many turns: neither memory nor the time for a token may grow.

    python benchmarks/chat.py
    python benchmarks/chat.py --model 0.1b-int8.safetensors --turns 1000

The resident size grows until the snapshots for /undo have taken their share, 128 MB unless --budget says otherwise,
and holds from then on. The verdict is on that: from the second tenth of the turns to the last one, the resident size
may grow by 8 MB, and a token at the end may take a tenth longer than one of a new conversation. Since a machine's speed
changes from minute to minute, those two take turns. Linux only.
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
ROUNDS = 10  # in which the long conversation and a new one take turns

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
    """Chat, then write a picture and the samples, and print the verdict."""
    options = _options()
    before = resident()
    try:
        model = rwkv_cli.load(options.model, threads=options.threads)
        conversation = Conversation(model, max_tokens=60, budget=options.budget, seed=1)
        samples = watch(conversation, options.turns)
        tokens, undo = conversation.session.n_tokens, undo_times(conversation)
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
    folder = results.folder(options.results)
    results.write_json(folder / f"chat-{model.path.stem}.json", facts)
    results.write_text(folder / f"chat-{model.path.stem}.md", report(facts))
    draw_samples(folder / f"chat-{model.path.stem}.png", facts, "turns")
    print(report(facts), end="")


def watch(conversation: Conversation, n_turns: int) -> list[dict[str, float]]:
    """Have so many messages answered; sample memory and milliseconds a token at even distances."""
    every, samples = max(1, n_turns // SAMPLES), []
    messages = itertools.cycle(MESSAGES)
    for turn in range(every, n_turns + 1, every):
        milliseconds = talk(conversation, list(itertools.islice(messages, every)))
        samples.append({"position": turn, "milliseconds": milliseconds, **resident()})
    return samples


def talk(conversation: Conversation, messages: Sequence[str]) -> float:
    """Have some messages answered: milliseconds a token."""
    seconds, tokens = 0.0, 0
    for message in messages:
        answer = conversation.ask(message)
        for _ in answer:
            pass
        seconds += answer.usage.decode_seconds
        tokens += max(answer.usage.generated_tokens - 1, 0)
    return round(1000 * seconds / max(tokens, 1), 4)


def against_new_ones(conversation: Conversation) -> list[tuple[float, float]]:
    """Milliseconds a token of this conversation and of a new one, in turns."""
    pairs = []
    for seed in range(ROUNDS):
        new = Conversation(conversation.model, max_tokens=conversation.max_tokens, seed=seed)
        pairs.append((talk(conversation, MESSAGES), talk(new, MESSAGES)))
    return pairs


def verdict(samples: Sequence[Mapping[str, float]], late: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Memory in the second tenth of the turns and in the last one; time at the end, next to new conversations."""
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
    """Milliseconds that it takes to go back by so many turns, each from the end."""
    taken = {}
    for turns in (1, 10, 100, 500):
        if turns < len(conversation.turns):
            branch = conversation.fork()
            start = time.perf_counter()
            branch.undo(turns)
            taken[str(turns)] = round(1000 * (time.perf_counter() - start), 3)
    return {"undo_milliseconds": taken}


def report(facts: Mapping[str, Any]) -> str:
    """The verdict, and what it rests on, in Markdown."""
    size_before, size_after = facts["resident_second_and_last_tenth"]
    at_end, of_new = facts["milliseconds_at_the_end"], facts["milliseconds_of_new_conversations"]
    lines = [
        f"{facts['model']}, {facts['turns']:,} turns, {facts['tokens']:,} tokens: memory and time "
        f"{'hold' if facts['kept'] else '**grow**'}.",
        "",
        "| | |",
        "|---|---:|",
        f"| resident, second and last tenth of the turns | {mb(size_before)}, {mb(size_after)} |",
        f"| a token with sampling, at the end and in new conversations, in turns | {at_end:.3f} ms, {of_new:.3f} ms |",
        f"| the one relative to the other, median of {ROUNDS} rounds | {100 * facts['ratio']:.1f} % |",
        f"| peak resident size | {mb(facts['peak_bytes'])} |",
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


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="a model file; without it, the embedded model")
    parser.add_argument("--turns", type=int, default=1000, help="messages that are answered")
    parser.add_argument("--budget", type=int, default=BUDGET, help="bytes for snapshots")
    parser.add_argument("--threads", type=int, help="one for each core, if not given")
    parser.add_argument("--results", type=Path, help="the folder of results")
    return parser.parse_args()


if __name__ == "__main__":
    main()
