"""Bars and spinners on stderr. They come from `rich`, which is imported only where one is shown."""

from __future__ import annotations

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
from rich.status import Status
from rich.table import Column
from rich.text import Text


def bar(task: str, total: int | None, unit: str = "", size: float = 1, time_left: bool = False) -> Progress:
    """A bar of one task, not shown yet: how much of how much, in units of a size, and how long it may take."""
    columns = [TimeRemainingColumn(compact=True)] if time_left else []
    progress = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", table_column=Column(no_wrap=True)),
        BarColumn(bar_width=None),
        _Amount(unit, size),
        *columns,
        console=Console(stderr=True),
        transient=True,
    )
    progress.add_task(task, total=total)
    return progress


def spinner(text: str) -> Status:
    """A context manager that shows a text and that something goes on."""
    return Console(stderr=True).status(text)


class _Amount(ProgressColumn):
    """How much of how much is done, and how fast: "123/191 M, 45.2 M/s"."""

    def __init__(self, unit: str, size: float) -> None:
        super().__init__(Column(no_wrap=True))
        self.unit = f" {unit}" if unit else ""
        self.size = size

    def render(self, task: Task) -> Text:
        """What `rich` shows in this column."""
        total = "?" if task.total is None else f"{task.total / self.size:.0f}"
        text = f"{task.completed / self.size:.0f}/{total}{self.unit}"
        if task.speed:
            speed = task.speed / self.size
            text += f", {speed:.{0 if speed >= 10 else 1}f}{self.unit}/s"
        return Text(text)
