"""Ctrl-C between two tokens, so that a model's state is never left half advanced."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self

Handler = Callable[[int, FrameType | None], object] | int | None
"""What `signal.signal` returns; one of C is None."""


class Interrupts:
    """While it is entered, the first Ctrl-C sets `asked`, if interrupts are `held`; any other raises KeyboardInterrupt.

    with Interrupts() as interrupts:
        first = next(generation)  # reads the prompt: Ctrl-C raises at once
        interrupts.hold()
        while not interrupts.asked: ...  # one token
    """

    def __init__(self) -> None:
        self.asked = False
        self._held = False
        self._before: Handler = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # signals reach the main thread only
            self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def hold(self) -> None:
        """From now on, look at `asked`."""
        self._held = True

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if not self._held or self.asked:
            raise KeyboardInterrupt
        self.asked = True
