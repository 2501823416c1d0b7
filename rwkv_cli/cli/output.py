"""A generation as it is written to stdout: as text for a person or a pipe, or as one JSON object a line."""

from __future__ import annotations

import itertools
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rwkv_cli.cli import ui
from rwkv_cli.cli.progress import reading
from rwkv_cli.generate import Generation, Step

_ECHO = 1000  # characters of a prompt that are repeated before the text that goes on from it


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
    """Write a generation to its end, or until Ctrl-C, which keeps what there is; gives the exit code."""
    rest = ""
    try:
        with reading(generation, quiet):
            first = next(generation, None)
        output.begin()
        for step in itertools.chain([first] if first else [], generation):
            output.step(step)
        finish: str = generation.finish or "length"  # no tokens were wanted
    except KeyboardInterrupt:
        finish, rest = "interrupted", generation.flush()
    output.end(finish, rest, generation)
    return ui.INTERRUPTED if finish == "interrupted" else 0


@dataclass
class TextOutput:
    """The text alone; on a terminal also the prompt that it goes on from and, below, how fast it came."""

    echo: str = ""  # the prompt, if the text goes on from it
    quiet: bool = False
    _at_line_start: bool = True

    def begin(self) -> None:
        """Repeat the prompt on a terminal, so that both read as one."""
        if self.echo and not self.quiet and ui.is_terminal(sys.stdout):
            echo = self.echo if len(self.echo) <= _ECHO else "…" + self.echo[-_ECHO:]
            sys.stdout.write(ui.styled(ui.printable(echo), ui.BOLD, sys.stdout))
            sys.stdout.flush()
            self._at_line_start = echo.endswith("\n")

    def step(self, step: Step) -> None:
        """Show a token's text at once."""
        self._write(step.text)

    def end(self, finish: str, rest: str, generation: Generation) -> None:
        """End the last line, and say how fast it went."""
        self._write(rest)
        if not self._at_line_start or (finish == "interrupted" and ui.is_terminal(sys.stdout)):
            self._write("\n")  # the terminal has shown ^C
        if ui.is_terminal(sys.stderr) and not self.quiet:
            ui.note(_summary(finish, generation))

    def _write(self, text: str) -> None:
        if text:
            sys.stdout.write(ui.printable(text) if ui.is_terminal(sys.stdout) else text)
            sys.stdout.flush()
            self._at_line_start = text.endswith("\n")


def _summary(finish: str, generation: Generation) -> str:
    usage = generation.usage
    why = {"length": " (--max-tokens)", "interrupted": " (interrupted)"}.get(finish, "")
    if not usage.generated_tokens:
        return f"no tokens{why}"
    return (
        f"{usage.generated_tokens} tokens{why}, {usage.decode_speed:.0f}/s; "
        f"prompt {usage.prompt_tokens} tokens, {usage.prefill_speed:.0f}/s; "
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
        self._line(
            {
                "finish": finish,
                "text": rest,
                "usage": {"prompt_tokens": usage.prompt_tokens, "generated_tokens": usage.generated_tokens},
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

    def _line(self, fields: dict[str, Any]) -> None:
        print(json.dumps(fields, ensure_ascii=False, allow_nan=False), flush=True)
