"""A generation as it is written to stdout: as text for a person or a pipe, or as JSON lines."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from rwkv_cli.cli.terminal import ui
from rwkv_cli.cli.terminal.interrupts import Interrupts
from rwkv_cli.cli.terminal.progress import reading
from rwkv_cli.cli.terminal.visible import Printer
from rwkv_cli.cli.terminal.wrap import Wrapper
from rwkv_cli.generation import Generation, Shown, Step
from rwkv_cli.text.tool_calls.parser import parse

_NOTHING = Shown(text="")
_ECHO = 1000  # characters of a prompt that are repeated before the text that continues it


class Output(Protocol):
    """Where a generation goes."""

    def begin(self) -> None:
        """The prompt has been read."""
        ...

    def step(self, step: Step) -> None:
        """A token has come."""
        ...

    def end(self, finish: str, rest: Shown, generation: Generation) -> None:
        """No more will come; `rest` is text that was held back."""
        ...


def stream(
    generation: Generation, output: Output, quiet: bool = False, interrupts: Interrupts | None = None
) -> int:
    """Write a generation to its end, or until Ctrl-C, which keeps what there is; gives the exit code.

    Ctrl-C takes effect between two tokens, so that the generation can be committed; a second one, or one while the
    prompt is read, at once. What else is to stop it sets `asked` of `interrupts`.
    """
    with interrupts or Interrupts() as interrupts:
        try:
            with reading(generation, quiet):
                first = next(generation, None)
        except KeyboardInterrupt:
            output.end("interrupted", _NOTHING, generation)
            return ui.INTERRUPTED
        interrupts.hold()
        output.begin()
        for step in itertools.chain([first] if first else [], generation):
            output.step(step)
            if interrupts.asked and not generation.finish:
                output.end("interrupted", generation.rest(), generation)
                return ui.INTERRUPTED
        output.end(
            generation.finish or "length", _NOTHING, generation
        )  # without either, no tokens were wanted
        return 0


@dataclass
class TextOutput:
    """The text alone; on a terminal wrapped, with the prompt that it continues, the thought and, below, the speed."""

    echo: str = ""  # the prompt, if the text continues it
    quiet: bool = False
    echoes: bool = False  # repeats the prompt everywhere, and all of it
    _at_line_start: bool = True
    _is_empty: bool = True  # no text has come
    _is_in_thought: bool = False  # a thought is shown, and not ended
    _has_thought: bool = False
    _printer: Printer = field(default_factory=Printer)
    _wrapper: Wrapper | None = field(default_factory=lambda: _wrapper())  # where stdout is a terminal

    def begin(self) -> None:
        """Repeat the prompt on a terminal, so that both read as one."""
        if self.echo and (self.echoes or (self._wrapper and not self.quiet)):
            is_whole = self.echoes or len(self.echo) <= _ECHO
            self._write(self.echo if is_whole else "…" + self.echo[-_ECHO:], ui.BOLD)

    def step(self, step: Step) -> None:
        """Show a token's text at once."""
        self._show(step)

    def end(self, finish: str, rest: Shown, generation: Generation) -> None:
        """End the last line, and say how fast it went."""
        self._show(rest)
        if not self._at_line_start or (finish == "interrupted" and self._wrapper):
            self._write("\n")  # the terminal has shown ^C
        if self.quiet:
            return
        if self._is_empty and self._has_thought:
            ui.note("no answer: the model was still thinking; raise --max-tokens, or use --think off")
        elif self._is_empty and finish in ("end", "stop"):
            ui.note("no text: the model ended the document at once; it may not know this prompt format")
        if ui.is_terminal(sys.stderr) or ui.is_verbose():
            ui.note(_summary(finish, generation))

    def _show(self, shown: Shown) -> None:
        """The answer; on a terminal, before it, the thought, dimmed."""
        for part in shown.parts:
            self._has_thought |= part.thought
            if not part.thought:
                self._answer(part.text)
            elif not self.quiet and self._wrapper:
                self._is_in_thought = True
                self._write(part.text, ui.DIM)

    def _answer(self, text: str) -> None:
        if self._has_thought and self._is_empty:
            text = text.lstrip()  # what separates it from the thought
        if text and self._is_in_thought:
            self._write("\n" if self._at_line_start else "\n\n")
            self._is_in_thought = False
        self._is_empty &= not text
        self._write(text)

    def _write(self, text: str, style: str = "") -> None:
        if text:
            shown = self._wrapper.lines(self._printer(text), style) if self._wrapper else text
            sys.stdout.write(shown)
            sys.stdout.flush()
            self._at_line_start = text.endswith("\n")


def _wrapper() -> Wrapper | None:
    is_person = ui.is_terminal(sys.stdout)
    return Wrapper(ui.columns_of_terminal, ui.is_styled(sys.stdout)) if is_person else None


def _summary(finish: str, generation: Generation) -> str:
    usage = generation.usage
    cached, prompt = usage.cached_tokens, ""
    if cached:
        prompt = f"{cached:,} of {usage.prompt_tokens:,} prompt tokens came from the cache; "
    elif usage.prompt_tokens:
        prompt = f"prompt {usage.prompt_tokens} tokens, {usage.prefill_speed:.0f}/s; "
    if usage.drafted_tokens:
        prompt += f"{usage.accepted_tokens:,} of {usage.drafted_tokens:,} drafted tokens were right; "
    why = {"length": "; stopped at the limit (-n)", "interrupted": " (interrupted)"}.get(finish, "")
    if not usage.generated_tokens:
        return f"no tokens{why}"
    return (
        f"{usage.generated_tokens} tokens{why}, {usage.decode_speed:.0f}/s; {prompt}"
        f"seed {generation.sampler.settings.seed}"
    )


@dataclass
class JsonOutput:
    """One object for each token, and one at the end with the whole text, which is that of the tokens, joined.

    What the model thinks before that is in `thought`, which only those lines have that add to it. Text that was held
    back comes on a line without a token.
    """

    model: Path
    prompt: str | None = None  # to be repeated at the end
    tools: Collection[str] = ()  # names of those whose calls are looked for
    _texts: list[str] = field(default_factory=list)
    _thoughts: list[str] = field(default_factory=list)

    def begin(self) -> None:
        """Nothing: the first line is the first token."""

    def step(self, step: Step) -> None:
        """A line for a token."""
        self._part(step, step.token, round(step.logprob, 6))

    def end(self, finish: str, rest: Shown, generation: Generation) -> None:
        """The line that sums up."""
        if rest.text:
            self._part(rest)
        usage = generation.usage
        thought = "".join(self._thoughts)
        counts = {"prompt_tokens": usage.prompt_tokens, "generated_tokens": usage.generated_tokens}
        if usage.cached_tokens:
            counts["cached_tokens"] = usage.cached_tokens
        if usage.drafted_tokens:
            counts |= {"drafted_tokens": usage.drafted_tokens, "accepted_tokens": usage.accepted_tokens}
        self._line(
            {
                "finish": finish,
                **({} if self.prompt is None else {"prompt": self.prompt}),
                "text": "".join(self._texts),
                **({"thought": thought} if thought else {}),
                **({"tool_calls": self._calls()} if self.tools else {}),
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

    def _calls(self) -> list[dict[str, object]]:
        calls = parse("".join(self._texts), self.tools).calls
        return [{"name": call.name, "arguments": call.arguments} for call in calls]

    def _part(self, shown: Shown, token: int | None = None, logprob: float | None = None) -> None:
        self._texts.append(shown.answer)
        self._thoughts.append(shown.thought)
        thought = {"thought": shown.thought} if shown.thought else {}
        self._line({"token": token, "text": shown.answer, **thought, "logprob": logprob})

    def _line(self, fields: dict[str, object]) -> None:
        print(ui.json_text(fields), flush=True)
