"""The workers of a model that several devices run: a replica each. A request goes where the fewest are per slot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeVar

from rwkv_cli.engine.scheduler import Handle, Request
from rwkv_cli.generation import Generation
from rwkv_cli.model import Model
from rwkv_cli.server.worker import Job, Options, Worker

T = TypeVar("T")


class Workers:
    """One or several workers, to be used like one."""

    def __init__(self, models: Sequence[Model], slots: int | None = None) -> None:
        """`slots` is for each of the models, which differ in their device alone. Raises like `Worker`."""
        self._all = [Worker(model, slots) for model in models]
        self._coming = dict.fromkeys(self._all, 0)  # requests that are handed over at this moment

    @property
    def model(self) -> Model:
        """The model, on the first of its devices."""
        return self._all[0].model

    @property
    def descriptions(self) -> str:
        """What does the arithmetic."""
        return "; ".join(each.model.backend.description for each in self._all)

    @property
    def slots(self) -> int:
        """Sequences that run at the same time."""
        return sum(each.slots for each in self._all)

    @property
    def running(self) -> int:
        """Sequences that are being read or answered."""
        return sum(each.running for each in self._all)

    @property
    def waiting(self) -> int:
        """Requests for which there was no room yet."""
        return sum(each.waiting for each in self._all)

    async def submit(
        self, options: Options, generate: Callable[[Callable[[Request], Handle]], Generation]
    ) -> Job:
        """See `Worker.submit`."""
        worker = min(self._all, key=self._load)
        self._coming[worker] += 1
        try:
            return await worker.submit(options, generate)
        finally:
            self._coming[worker] -= 1

    def _load(self, worker: Worker) -> float:
        return (worker.running + worker.waiting + self._coming[worker]) / worker.slots

    def call(self, function: Callable[[], T]) -> Future[T]:
        """See `Worker.call`: on the thread of `model`."""
        return self._all[0].call(function)

    def stop(self) -> None:
        """See `Worker.stop`."""
        for worker in self._all:
            worker.stop()
