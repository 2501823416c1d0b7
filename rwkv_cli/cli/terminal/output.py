"""A generation as it is written to stdout: as text for a person or a pipe, or as JSON lines."""

from __future__ import annotations

import itertools
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from rwkv_cli.cli.terminal import ui
from rwkv_cli.cli.terminal.interrupts import Interrupts
from rwkv_cli.cli.terminal.progress import reading
from rwkv_cli.generation import Generation, Step

_ECHO = 1000  # characters of a prompt that are repeated before the text that continues it


class Output(Protocol):
    """Where a generation goes."""

    def begin(self) -> None:
        """The prompt has been read."""
        ...

    def step(self, step: Step) -> None:
        """A token has come."""
        ...

    def end(self, finish: str, rest: str, generation: Generation) -> None:
        """No more will come; `rest` is text that was held back."""
        ...


def stream(generation: Generation, output: Output, quiet: bool = False) -> int:
    """Write a generation to its end, or until Ctrl-C, which keeps what there is; gives the exit code.

    Ctrl-C takes effect between two tokens, so that the generation can be committed; a second one, or one while the
    prompt is read, at once.
    """
    with Interrupts() as interrupts:
        try:
            with reading(generation, quiet):
                first = next(generation, None)
        except KeyboardInterrupt:
            output.end("interrupted", "", generation)
            return ui.INTERRUPTED
        interrupts.hold()
        output.begin()
        for step in itertools.chain([first] if first else [], generation):
            output.step(step)
            if interrupts.asked and not generation.finish:
                output.end("interrupted", generation.flush(), generation)
                return ui.INTERRUPTED
        output.end(generation.finish or "length", "", generation)  # without either, no tokens were wanted
        return 0


@dataclass
class Recorder:
    """An output that also keeps the text, and how it ended."""

    output: Output
    finish: str = ""
    pieces: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All that was generated."""
        return "".join(self.pieces)

    def begin(self) -> None:
        """The prompt has been read."""
        self.output.begin()

    def step(self, step: Step) -> None:
        """A token has come."""
        self.pieces.append(step.text)
        self.output.step(step)

    def end(self, finish: str, rest: str, generation: Generation) -> None:
        """No more will come."""
        self.finish = finish
        self.pieces.append(rest)
        self.output.end(finish, rest, generation)


@dataclass
class TextOutput:
    """The text alone; on a terminal also the prompt that it continues and, below, the speed."""

    echo: str = ""  # the prompt, if the text continues it
    quiet: bool = False
    _at_line_start: bool = True
    _is_empty: bool = True  # no text has come

    def begin(self) -> None:
        """Repeat the prompt on a terminal, so that both read as one."""
        if self.echo and not self.quiet and ui.is_terminal(sys.stdout):
            echo = self.echo if len(self.echo) <= _ECHO else "…" + self.echo[-_ECHO:]
            sys.stdout.write(ui.styled(ui.printable(echo), ui.BOLD, sys.stdout))
            sys.stdout.flush()
            self._at_line_start = echo.endswith("\n")

    def step(self, step: Step) -> None:
        """Show a token's text at once."""
        self._is_empty &= not step.text
        self._write(step.text)

    def end(self, finish: str, rest: str, generation: Generation) -> None:
        """End the last line, and say how fast it went."""
        self._write(rest)
        if not self._at_line_start or (finish == "interrupted" and ui.is_terminal(sys.stdout)):
            self._write("\n")  # the terminal has shown ^C
        if self.quiet:
            return
        if self._is_empty and not rest and finish in ("end", "stop"):
            ui.note("no text: the model ended the document at once; it may not know this prompt format")
        if ui.is_terminal(sys.stderr):
            ui.note(_summary(finish, generation))

    def _write(self, text: str) -> None:
        if text:
            sys.stdout.write(ui.printable(text) if ui.is_terminal(sys.stdout) else text)
            sys.stdout.flush()
            self._at_line_start = text.endswith("\n")


def _summary(finish: str, generation: Generation) -> str:
    usage = generation.usage
    cached, prompt = usage.cached_tokens, ""
    if cached:
        prompt = f"{cached:,} of {usage.prompt_tokens:,} prompt tokens came from the cache; "
    elif usage.prompt_tokens:
        prompt = f"prompt {usage.prompt_tokens} tokens, {usage.prefill_speed:.0f}/s; "
    why = {"length": "; stopped at the limit (-n)", "interrupted": " (interrupted)"}.get(finish, "")
    if not usage.generated_tokens:
        return f"no tokens{why}"
    return (
        f"{usage.generated_tokens} tokens{why}, {usage.decode_speed:.0f}/s; {prompt}"
        f"seed {generation.sampler.settings.seed}"
    )


@dataclass
class JsonOutput:
    """One object for each token, and one at the end; the `text` of all of them, joined, is the whole text."""

    model: Path

    def begin(self) -> None:
        """Nothing: the first line is the first token."""

    def step(self, step: Step) -> None:
        """A line for a token."""
        self._line({"token": step.token, "text": step.text, "logprob": round(step.logprob, 6)})

    def end(self, finish: str, rest: str, generation: Generation) -> None:
        """The line that sums up."""
        usage = generation.usage
        counts = {"prompt_tokens": usage.prompt_tokens, "generated_tokens": usage.generated_tokens}
        if usage.cached_tokens:
            counts["cached_tokens"] = usage.cached_tokens
        self._line(
            {
                "finish": finish,
                "text": rest,
                "usage": counts,
                "timings": {
                    "prefill_seconds": round(usage.prefill_seconds, 6),
                    "decode_seconds": round(usage.decode_seconds, 6),
                    "prefill_tokens_per_second": round(usage.prefill_speed, 3),
                    "decode_tokens_per_second": round(usage.decode_speed, 3),
                },
                "seed": generation.sampler.settings.seed,
                "model": str(self.model),
            }
        )

    def _line(self, fields: dict[str, object]) -> None:
        print(json.dumps(fields, ensure_ascii=False, allow_nan=False), flush=True)
