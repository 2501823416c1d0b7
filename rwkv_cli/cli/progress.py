"""What is shown on stderr while one waits: nothing unless a person is there, and gone when it is over."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from rwkv_cli.cli import ui
from rwkv_cli.generate import Generation
from rwkv_cli.model import Reporter

_PATIENCE = 0.5  # seconds in which a person needs no bar
_COMPILING = "compiling the kernels for this CPU, once (about 15 s)..."


class TerminalReporter(Reporter):
    """Shows how far quantization is; a context manager, whose end removes the bar."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self._bar: Progress | None = None

    def __enter__(self) -> TerminalReporter:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar:
            self._bar.stop()
            self._bar = None

    def note(self, text: str) -> None:
        """A line on stderr."""
        if not self.quiet:
            ui.note(text)

    def quantizing(self, done: int, total: int) -> None:
        """Advance the bar; the first call shows it."""
        if self.quiet or not ui.is_animated(sys.stderr):
            return
        if self._bar is None:
            self._bar = _bar(_Amount("M", 1e6), TimeRemainingColumn(compact=True))
            self._bar.add_task("quantizing", total=total)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=done)

    @contextmanager
    def compiling(self) -> Iterator[None]:
        """A spinner, or where none can be shown a line."""
        if self.quiet or not ui.is_animated(sys.stderr):
            self.note(_COMPILING)
            yield
            return
        with Console(stderr=True).status(_COMPILING):
            yield


@contextmanager
def reading(generation: Generation, quiet: bool) -> Iterator[None]:
    """Around the first step of a generation, which reads the prompt."""
    if quiet or not ui.is_animated(sys.stderr):
        yield
        return
    bar = _bar(_Amount())
    task = bar.add_task("reading the prompt", total=generation.usage.prompt_tokens)
    generation.progress = lambda tokens: bar.advance(task, tokens)
    timer = threading.Timer(_PATIENCE, bar.start)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        bar.stop()


def _bar(*columns: ProgressColumn) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", table_column=Column(no_wrap=True)),
        BarColumn(bar_width=None),
        *columns,
        console=Console(stderr=True),
        transient=True,
    )


class _Amount(ProgressColumn):
    """How much of how much is done, and how fast: "123/191 M, 45.2 M/s"."""

    def __init__(self, unit: str = "", size: float = 1) -> None:
        super().__init__(Column(no_wrap=True))
        self.unit = f" {unit}" if unit else ""
        self.size = size

    def render(self, task: Task) -> Text:
        """What `rich` shows in this column."""
        assert task.total is not None
        text = f"{task.completed / self.size:.0f}/{task.total / self.size:.0f}{self.unit}"
        if task.speed:
            text += f", {task.speed / self.size:.0f}{self.unit}/s"
        return Text(text)
