"""Signals between two tokens, so that a model's state is never left half advanced, and what was said is kept."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


class Termination:
    """While it is entered, SIGTERM and SIGHUP end the program only at the end of the block, once an answer is saved.

    `stop` is called when one arrives. It ends the answer soon, and says whether there is anything to wait for: if there
    is not, and when a second signal arrives, the program ends at once. Its exit code is 128 + the signal.
    """

    def __init__(self, stop: Callable[[], bool]) -> None:
        self._stop = stop
        self._arrived: int | None = None
        self._before: dict[int, Handler] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGTERM", "SIGHUP"):
                number = getattr(signal, name, None)
                # Not where nohup ignores it.
                if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._arrived is not None:
            sys.exit(128 + self._arrived)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        is_second, self._arrived = self._arrived is not None, number
        if is_second or not self._stop():
            sys.exit(128 + number)


@contextmanager
def until_done() -> Iterator[None]:
    """A block that is not interrupted: the first Ctrl-C, SIGTERM or SIGHUP waits for its end."""
    with Termination(lambda: True), Interrupts() as interrupts:
        interrupts.hold()
        yield
    if interrupts.asked:
        raise KeyboardInterrupt
