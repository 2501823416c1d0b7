"""What is shown on stderr while one waits: nothing unless a person is there, and gone when it is over."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from rwkv_cli.cli.terminal import ui
from rwkv_cli.errors import MissingModelError
from rwkv_cli.generation import Generation
from rwkv_cli.reporting import COMPILING, Reporter

if TYPE_CHECKING:
    from rich.progress import Progress

_PATIENCE = 0.5  # seconds in which a person needs no bar


class TerminalReporter(Reporter):
    """Shows how far quantization is; a context manager, whose end removes the bar."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self._bar: Progress | None = None
        self._task = ""

    def __enter__(self) -> TerminalReporter:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._bar:
            self._bar.stop()
            self._bar = None

    def note(self, text: str) -> None:
        """A line on stderr."""
        if not self.quiet:
            self._stop()
            ui.note(text)

    def quantizing(self, done: int, total: int) -> None:
        """Advance the bar; the first call shows it."""
        self._advance("quantizing", done, total, "M")

    def exporting(self, done: int, total: int) -> None:
        """Likewise."""
        self._advance("writing", done, total, "M")

    def downloading(self, done: int, total: int | None) -> None:
        """Likewise."""
        self._advance("downloading", done, total, "MB")

    def missing(self, error: MissingModelError) -> Path:
        """Offer to download it, if a person is there who can answer."""
        if self.quiet or not (ui.is_terminal(sys.stdin) and ui.is_terminal(sys.stderr)):
            raise error
        from rwkv_cli.catalog.pull import pull

        ui.note(f"the model {error.reference} is not on this machine")
        if not typer.confirm("download it now?", err=True):
            raise error
        pulled = pull(error.reference, reporter=self)
        self._stop()
        return pulled.stored.path

    def _advance(self, task: str, done: int, total: int | None, unit: str) -> None:
        if self.quiet or not ui.is_animated(sys.stderr):
            return
        if self._task != task:
            self._stop()
        if self._bar is None:
            from rwkv_cli.cli.terminal import bars

            self._task, self._bar = task, bars.bar(task, total, unit, 1e6, time_left=True)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=done, total=total)

    @contextmanager
    def compiling(self, processor: str) -> Iterator[None]:
        """A spinner, or where none can be shown a line."""
        text = COMPILING.format(processor)
        if self.quiet or not ui.is_animated(sys.stderr):
            self.note(text)
            yield
            return
        from rwkv_cli.cli.terminal import bars

        with bars.spinner(text):
            yield


@contextmanager
def reading(generation: Generation, quiet: bool) -> Iterator[None]:
    """Around the first step of a generation, which reads the prompt."""
    with counting("reading the prompt", generation.usage.prompt_tokens, quiet) as progress:
        if progress:
            generation.report_to(progress)
        yield


@contextmanager
def counting(task: str, total: int, quiet: bool = False) -> Iterator[Callable[[int], None] | None]:
    """A bar for tokens that are read, if that takes long; gives what hears of them, or None where nothing is shown."""
    if quiet or not ui.is_animated(sys.stderr):
        yield None
        return
    from rwkv_cli.cli.terminal import bars

    bar = bars.bar(task, total)
    timer = threading.Timer(_PATIENCE, bar.start)
    timer.daemon = True
    timer.start()
    try:
        yield lambda tokens: bar.advance(bar.task_ids[0], tokens)
    finally:
        timer.cancel()
        timer.join()
        bar.stop()
