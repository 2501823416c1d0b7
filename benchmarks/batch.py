#!/usr/bin/env python3
"""How many tokens a second many sequences at once give on the CPU, next to llama.cpp with as many sequences.

    python benchmarks/batch.py
    python benchmarks/batch.py --sizes 0.1b --counts 1,8,32 --repeat 5

Everything that an answer takes is counted: reading the prompt, sampling, decoding of text, stop strings. Each program
has a process of its own, with the model loaded and warmed up; only one works at a time, and in a round they take turns.
"""

from __future__ import annotations

import argparse
import codecs
import contextlib
import ctypes
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import results
import synthetic
from programs import MICROBATCH, open_llama

from rwkv_cli import machine

OURS, THEIRS = "rwkv-cli int8", "llama.cpp Q8_0"
FILES = {OURS: "-int8.safetensors", THEIRS: "-Q8_0.gguf"}
COUNTS = 1, 2, 4, 8, 16, 32, 64
TOKENS = 64
TEMPERATURE, TOP_K, TOP_P = 0.8, 40, 0.95  # the defaults of llama.cpp
STOP = "\nUser:"
END = 0  # the token that ends a document: banned, so that all sequences have the same length


class Program(Protocol):
    """A model, loaded by one of the programs."""

    description: str

    def answer(self, prompts: Sequence[str]) -> int:
        """Answer all prompts at once, with TOKENS tokens each: the number of tokens."""
        ...


class RwkvCli:
    """This project, as `rwkv generate --batch` uses it."""

    def __init__(self, path: Path, threads: int) -> None:
        import rwkv_cli

        self._model = rwkv_cli.load(path, "cpu", threads=threads)
        self.description = f"rwkv-cli {rwkv_cli.__version__}: {self._model.backend.description}"

    def answer(self, prompts: Sequence[str]) -> int:
        """See `Program.answer`."""
        from rwkv_cli.sessions.batch import answers

        found = answers(
            self._model,
            prompts,
            batch_size=len(prompts),
            max_tokens=TOKENS,
            template="raw",
            stop=[STOP],
            temperature=TEMPERATURE,
            top_k=TOP_K,
            top_p=TOP_P,
            banned=frozenset([END]),
            seed=1,
        )
        return sum(answer.generated_tokens for answer in found)


@dataclass
class _Sequence:
    """An answer of llama.cpp on its way."""

    sampler: Any
    position: int = 0  # tokens that were read
    n_tokens: int = 0
    text: str = ""
    decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace")
    )


class LlamaCpp:
    """llama.cpp through the low-level functions of llama-cpp-python: one batch has a token of every sequence."""

    def __init__(self, path: Path, threads: int, extra_buffers: bool) -> None:
        self._library, self._model, self.description = open_llama(path, extra_buffers)
        self._threads = threads
        self._vocab = self._library.llama_model_get_vocab(self._model)

    def answer(self, prompts: Sequence[str]) -> int:
        """See `Program.answer`."""
        library, n = self._library, len(prompts)
        encoded = [self._encoded(text) for text in prompts]
        context = self._context(n, max(map(len, encoded)) + TOKENS)
        batch = library.llama_batch_init(max(sum(map(len, encoded)), n), 0, 1)
        sequences = {i: _Sequence(self._sampler(i)) for i in range(n)}
        total, unread = 0, dict(enumerate(encoded))
        while unread:
            places = self._fill(batch, unread, sequences)
            if code := library.llama_decode(context, batch):
                raise RuntimeError(f"llama_decode gave {code}")
            unread = {}
            for i, place in places.items():
                token = library.llama_sampler_sample(sequences[i].sampler, context, place)
                total += 1
                if self._goes_on(sequences[i], token):
                    unread[i] = [token]
        for each in sequences.values():
            library.llama_sampler_free(each.sampler)
        library.llama_batch_free(batch)
        library.llama_free(context)
        return total

    def _context(self, n: int, length: int) -> Any:
        settings = self._library.llama_context_default_params()
        settings.n_ctx, settings.n_seq_max = n * max(length, MICROBATCH), n
        settings.n_batch = settings.n_ubatch = MICROBATCH
        settings.n_threads = settings.n_threads_batch = self._threads
        context = self._library.llama_init_from_model(self._model, settings)
        if not context:
            raise RuntimeError(f"llama.cpp makes no context of {n} sequences")
        return context

    def _encoded(self, text: str) -> list[int]:
        data = text.encode()
        found = (self._library.llama_token * (len(data) + 8))()
        n = self._library.llama_tokenize(self._vocab, data, len(data), found, len(found), False, False)
        return list(found[:n])

    def _sampler(self, seed: int) -> Any:
        library = self._library
        chain = library.llama_sampler_chain_init(library.llama_sampler_chain_default_params())
        ban = (library.llama_logit_bias * 1)(library.llama_logit_bias(END, float("-inf")))
        n_vocab = library.llama_vocab_n_tokens(self._vocab)
        for sampler in (
            library.llama_sampler_init_logit_bias(n_vocab, 1, ban),
            library.llama_sampler_init_top_k(TOP_K),
            library.llama_sampler_init_top_p(TOP_P, 1),
            library.llama_sampler_init_temp(TEMPERATURE),
            library.llama_sampler_init_dist(seed),
        ):
            library.llama_sampler_chain_add(chain, sampler)
        return chain

    @staticmethod
    def _fill(batch: Any, unread: dict[int, list[int]], sequences: dict[int, _Sequence]) -> dict[int, int]:
        """Put the tokens of all sequences into a batch: where the last one of each is."""
        n, places = 0, {}
        for i, tokens in unread.items():
            for token in tokens:
                batch.token[n], batch.pos[n] = token, sequences[i].position
                batch.n_seq_id[n], batch.seq_id[n][0], batch.logits[n] = 1, i, 0
                sequences[i].position += 1
                n += 1
            batch.logits[n - 1] = 1
            places[i] = n - 1
        batch.n_tokens = n
        return places

    def _goes_on(self, sequence: _Sequence, token: int) -> bool:
        """Add the text of a token; whether another one is wanted."""
        buffer = (ctypes.c_char * 256)()
        n = self._library.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, False)
        sequence.text += sequence.decoder.decode(buffer.raw[: max(n, 0)])
        sequence.n_tokens += 1
        return sequence.n_tokens < TOKENS and STOP not in sequence.text[-64:]


def _opened(name: str, path: Path, threads: int, extra_buffers: bool) -> Program:
    return RwkvCli(path, threads) if name == OURS else LlamaCpp(path, threads, extra_buffers)


def serve(name: str, path: Path, threads: int, extra_buffers: bool, pipe: Connection) -> None:
    """Load a program, warm it up, and answer as many prompts as the pipe says, until it says 0."""
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # llama.cpp is talkative
        os.dup2(null, stream)
    try:
        program = _opened(name, path, threads, extra_buffers)
        program.answer(_prompts(2))
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")
        return
    pipe.send({"description": program.description})
    while count := pipe.recv():
        prompts = _prompts(count)
        start = time.perf_counter()
        n_tokens = program.answer(prompts)
        pipe.send(n_tokens / (time.perf_counter() - start))


def _prompts(count: int) -> list[str]:
    """Different prompts of a few tokens."""
    return [f"Chapter {i}. It was a day like any other" for i in range(count)]


def measure(size: str, options: argparse.Namespace) -> dict[str, Any]:
    """All rounds of one size: tokens per second by program and number of sequences."""
    facts: dict[str, Any] = results.circumstances() | {
        "size": size,
        "threads": options.threads,
        "tokens": TOKENS,
        "left_out": {},
    }
    method = multiprocessing.get_context("spawn")
    with contextlib.ExitStack() as stack:
        pipes = dict[str, Connection]()
        for name, suffix in FILES.items():
            here, there = method.Pipe()
            file = options.folder / (size + suffix)
            given = (name, file, options.threads, not options.no_extra_buffers, there)
            process = method.Process(target=serve, args=given, daemon=True)
            process.start()
            there.close()
            stack.callback(process.join)
            try:
                answer = here.recv()
            except EOFError:
                answer = "it crashed"
            if isinstance(answer, str):
                facts["left_out"][name] = answer
                continue
            facts.setdefault("programs", {})[name] = answer["description"]
            stack.callback(here.send, 0)
            pipes[name] = here
        facts["rounds"] = [_round(pipes, options.counts, i) for i in range(options.repeat)]
    return facts


def _round(pipes: dict[str, Connection], counts: Sequence[int], number: int) -> dict[str, dict[str, float]]:
    """The tokens per second of each program, by the number of sequences."""
    names = [*pipes] if number % 2 == 0 else [*reversed(pipes)]
    speeds: dict[str, dict[str, float]] = {name: {} for name in pipes}
    for count in counts:
        for name in names:
            pipes[name].send(count)
            speeds[name][str(count)] = pipes[name].recv()
            print(f"{name}, {count}: {speeds[name][str(count)]:.1f} tokens/s", file=sys.stderr, flush=True)
    return speeds


def write_report(path: Path, facts: results.Facts) -> None:
    """Write the table beside the results at `path`."""
    results.write_text(path.with_suffix(".md"), report(facts))


def report(facts: results.Facts) -> str:
    """Tokens per second and their ratios, in Markdown."""
    rounds = facts["rounds"]
    counts = [*rounds[0][OURS]]
    lines = [
        f"| {facts['size']}, sequences at once | {' | '.join(counts)} |",
        f"|---|{'---:|' * len(counts)}",
    ]
    for name in facts["programs"]:
        speeds = [median(each[name][count] for each in rounds) for count in counts]
        lines.append(f"| {name}, tokens/s | {' | '.join(f'{speed:,.0f}' for speed in speeds)} |")
    gains = [median(each[OURS][count] / each[OURS][counts[0]] for each in rounds) for count in counts]
    lines.append(f"| {OURS}, relative to {counts[0]} | {' | '.join(f'{gain:.2f}' for gain in gains)} |")
    if THEIRS in facts["programs"]:
        ratios = [median(each[OURS][count] / each[THEIRS][count] for each in rounds) for count in counts]
        lines.append(f"| {OURS} to {THEIRS} | {' | '.join(f'{ratio:.2f}' for ratio in ratios)} |")
    missing = [f"{name} is missing: {reason}." for name, reason in facts["left_out"].items()]
    programs = "; ".join(facts["programs"].values())
    lines += [
        "",
        f"{facts['tokens']} tokens for each sequence, prompts, sampling, text and stop strings included; medians of "
        f"{len(rounds)} rounds. {programs}. {results.sentence(facts)}.",
        *missing,
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure the sizes on the command line, one after another."""
    options = _parser().parse_args()
    folder = results.folder(options.results)
    for size in options.sizes:
        synthetic.build(options.folder, size)
        facts = measure(size, options)
        path = folder / f"batch-{size}.json"
        results.write_json(path, facts)
        write_report(path, facts)


def _counts(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _parser() -> argparse.ArgumentParser:
    parser = results.parser(__doc__)
    parser.add_argument("--threads", type=int, default=machine.usable_cores(), help="default: one per core")
    parser.add_argument("--sizes", type=results.some_of(synthetic.SHAPES), default=["0.1b", "0.4b"])
    parser.add_argument("--counts", type=_counts, default=list(COUNTS), help="sequences at once")
    parser.add_argument("--repeat", type=int, default=3, help="rounds")
    parser.add_argument(
        "--no-extra-buffers",
        action="store_true",
        help="llama.cpp without AMX, if that crashes on this machine",
    )
    parser.add_argument("--folder", type=Path, default=results.CHECKPOINTS, help="of synthetic checkpoints")
    return parser


if __name__ == "__main__":
    main()
