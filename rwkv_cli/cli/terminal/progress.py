"""Progress on stderr while a person waits: nothing unless stderr is a terminal, and removed at the end.

Bars and spinners come from `rich`, which is imported only when one is shown.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from rwkv_cli import machine
from rwkv_cli.cli.terminal import ui
from rwkv_cli.errors import MissingModelError
from rwkv_cli.reporting import COMPILING, Reporter, format_size, pluralize

if TYPE_CHECKING:
    from rich.progress import Progress, Task

    from rwkv_cli.generation import Generation

_PATIENCE = 0.5  # seconds that a person waits without a bar
_PAUSE = 0.2  # seconds between two looks at rows
_FIRST_LINE, _LINES = 10, 60  # seconds until the first line of a log, and between two


class TerminalReporter(Reporter):
    """Shows the progress of long operations; a context manager, whose end removes the bar."""

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
        """Print a line on stderr."""
        if not self.quiet:
            self._stop()
            ui.note(text)

    def quantizing(self, done: int, total: int) -> None:
        """Show that `done` of `total` weights are quantized."""
        self._advance("quantizing", done, total, "M")

    def exporting(self, done: int, total: int) -> None:
        """Show that `done` of `total` weights are written."""
        self._advance("writing", done, total, "M")

    def downloading(self, done: int, total: int | None) -> None:
        """Show that `done` of `total` bytes are downloaded."""
        self._advance("downloading", done, total, "MB")

    def missing(self, error: MissingModelError) -> Path:
        """Offer to download the model, if there is a person to ask; otherwise raise `error`."""
        if self.quiet or not (ui.is_terminal(sys.stdin) and ui.is_terminal(sys.stderr)):
            raise error
        from rwkv_cli.catalog.pull import pull

        ui.note(error.problem)
        if not typer.confirm(f"download it now{_download_size(error.reference)}?", err=True):
            raise error
        pulled = pull(error.reference, reporter=self)
        self._stop()
        return pulled.stored.path

    def _advance(self, task: str, done: int, total: int | None, unit: str) -> None:
        if self.quiet or not _can_move():
            return
        if self._task != task:
            self._stop()
        if self._bar is None:
            self._task, self._bar = task, _bar(task, total, partial(_amount, unit=unit, size=1e6))
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=done, total=total)

    @contextmanager
    def compiling(self, processor: str) -> Iterator[None]:
        """Show a spinner, or a line if stderr is not a terminal."""
        text = COMPILING.format(processor)
        if self.quiet or not _can_move():
            self.note(text)
            yield
            return
        with _spinner(text):
            yield


def _download_size(reference: str) -> str:
    """How much a known model downloads, in brackets; "" where only the server knows, who is not asked for it."""
    from rwkv_cli.catalog import recommended, registry

    entry = registry.resolve(reference).entry
    size = recommended.download_bytes(entry) if entry else None
    return f" ({format_size(size)})" if size else ""


@contextmanager
def reading(generation: Generation, quiet: bool) -> Iterator[None]:
    """A bar around the first step of a generation, which reads the prompt."""
    with counting("reading the prompt", generation.usage.prompt_tokens, quiet) as progress:
        if progress:
            generation.report_to(progress)
        yield


@contextmanager
def counting(task: str, total: int, quiet: bool = False) -> Iterator[Callable[[int], None] | None]:
    """A bar for a count, shown if it takes long; yields what is called with each increment, or None without a bar."""
    if quiet or not _can_move():
        yield None
        return
    with _shown_if_long(_bar(task, total, partial(_amount, unit="", size=1))) as bar:
        yield lambda count: bar.advance(bar.task_ids[0], count)


class Answering:
    """A bar for the lines of a file that are answered: how many are done, how fast, and how long the rest takes."""

    def __init__(self, size: int | None) -> None:
        """`size` is that of the file in bytes, None where it is unknown: how many lines it has, nobody knows yet."""
        self._lines = self._tokens = 0
        self._begun = time.perf_counter()
        self._size = size
        self.bar = _bar("answering", size, self._amount)

    def answered(self, tokens: int, n_bytes: int) -> None:
        """A line of so many bytes was answered with so many tokens."""
        self._lines += 1
        self._tokens += tokens
        self.bar.advance(self.bar.task_ids[0], n_bytes)

    def skipped(self, n_bytes: int) -> None:
        """A line of so many bytes need not be answered, and tells nothing of how long the others take."""
        if self._size is not None:
            self._size = max(self._size - n_bytes, 1)
            self.bar.update(self.bar.task_ids[0], total=self._size)

    def _amount(self, task: Task) -> str:
        """ "1,234 lines, 2 min left, 456 tokens/s"."""
        text = pluralize(self._lines, "line")
        if task.time_remaining:
            text += f", {duration(task.time_remaining)} left"
        seconds = time.perf_counter() - self._begun
        return f"{text}, {self._tokens / max(seconds, 1e-3):.0f} tokens/s"


@contextmanager
def answering(size: int | None, quiet: bool = False) -> Iterator[Answering | None]:
    """A bar for a file of prompts, shown if it takes long; yields None without a bar."""
    if quiet or not _can_move():
        yield None
        return
    progress = Answering(size)
    with _shown_if_long(progress.bar):
        yield progress


class Rows:
    """Rows of a dataset that are answered, of all that are to be; any thread may count them."""

    def __init__(self, total: int) -> None:
        """`total` is without the rows that were done before."""
        self.total, self.done = total, 0
        self._tokens = 0
        self._begun = time.perf_counter()

    def answered(self, rows: int, tokens: int) -> None:
        """So many more rows were answered, with so many tokens."""
        self.done += rows
        self._tokens += tokens

    def __str__(self) -> str:
        """ "1,234 of 20,000 rows (6%), 12.3 rows/s, 456 tokens/s, 2 min left"."""
        seconds = max(time.perf_counter() - self._begun, 1e-3)
        rate = self.done / seconds
        text = f"{self.done:,} of {pluralize(self.total, 'row')} ({self.done / max(self.total, 1):.0%})"
        text += f", {rate:.{0 if rate >= 100 else 1}f} rows/s"
        if self._tokens:
            text += f", {self._tokens / seconds:,.0f} tokens/s"
        if self.done and self.done < self.total:
            text += f", {duration((self.total - self.done) / rate)} left"
        return text


@contextmanager
def counting_rows(rows: Rows, quiet: bool = False) -> Iterator[None]:
    """Show rows while they are answered: in a bar, or in a log as a line now and then."""
    if quiet:
        yield
        return
    is_over = threading.Event()
    bar = _bar("answering", rows.total, lambda _: str(rows)) if _can_move() else None

    def follow() -> None:
        if bar:
            while not is_over.wait(_PAUSE):
                bar.update(bar.task_ids[0], completed=rows.done)
            return
        pause = _FIRST_LINE
        while not is_over.wait(pause):
            ui.note(str(rows))
            pause = _LINES

    thread = threading.Thread(target=follow, name="progress", daemon=True)
    with _shown_if_long(bar) if bar else nullcontext():
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()


@contextmanager
def _shown_if_long(bar: Progress) -> Iterator[Progress]:
    timer = threading.Timer(_PATIENCE, bar.start)
    timer.daemon = True
    timer.start()
    try:
        yield bar
    finally:
        timer.cancel()
        timer.join()
        bar.stop()


def _can_move() -> bool:
    """Whether stderr shows bars and spinners, and the system gives the threads that move them."""
    return ui.is_animated(sys.stderr) and machine.has_threads()


def _bar(task: str, total: int | None, amount: Callable[[Task], str]) -> Progress:
    """A bar that is not shown yet, for `total` things, None if that is unknown; `amount` says how much is done."""
    from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, TextColumn
    from rich.table import Column
    from rich.text import Text

    class Amount(ProgressColumn):
        """The text of `amount`."""

        def render(self, task: Task) -> Text:
            return Text(amount(task))

    progress = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", table_column=Column(no_wrap=True)),
        BarColumn(bar_width=None),
        Amount(Column(no_wrap=True)),
        console=ui.console("stderr"),
        transient=True,
    )
    progress.add_task(task, total=total)
    return progress


def _amount(task: Task, unit: str, size: float) -> str:
    """How much is done, how fast, and how long the rest takes: "123/191 M, 2 s left, 45 M/s"."""
    unit = f" {unit}" if unit else ""
    total = "?" if task.total is None else f"{task.total / size:.0f}"
    text = f"{task.completed / size:.0f}/{total}{unit}"
    if task.time_remaining:  # before the speed, which a narrow terminal may cut
        text += f", {duration(task.time_remaining)} left"
    if task.speed:
        speed = task.speed / size
        text += f", {speed:.{0 if speed >= 10 else 1}f}{unit}/s"
    return text


def duration(seconds: float) -> str:
    """A time that is estimated: "12 s", "3 min" or "2 h 5 min"."""
    if seconds < 100:
        return f"{math.ceil(seconds)} s"
    minutes = math.ceil(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _spinner(text: str) -> AbstractContextManager[object]:
    """A context manager that shows a text and a moving spinner."""
    return ui.console("stderr").status(text)
