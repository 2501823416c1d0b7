"""What has shards answered, and the simplest way: one replica in this process."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Protocol

from rwkv_cli.datasets.job import Answerer
from rwkv_cli.datasets.plan import Plan, Shard
from rwkv_cli.datasets.worker import Report, ShardWorker
from rwkv_cli.sessions.batch import Answer

MOST_SHARDS = 64
"""Shards that a replica has at the same time, however small they are."""


class Executor(Protocol):
    """What has shards answered: on this machine or on a cluster."""

    replicas: int  # of the model

    def digest(self) -> str:
        """`job.Answerer.digest` of the model, once it is loaded. Raises what loading it raises."""
        ...

    def run(self, plan: Plan, shards: Sequence[Shard]) -> Iterator[Report]:
        """The reports of shards, as they are done. Raises an RwkvError that stops the batch."""
        ...


def wants_more(shards: int, rows: int, slots: int) -> bool:
    """Whether a replica with this many shards and rows on their way is to get another shard.

    While the last rows of one shard are answered, those of the next one take the slots that are free.
    """
    return shards < 2 or (rows < 2 * slots and shards < MOST_SHARDS)


class InProcess:
    """One replica, in this process."""

    replicas = 1

    def __init__(
        self, open_answerer: Callable[[], Answerer], on_answer: Callable[[Answer], None] | None = None
    ) -> None:
        """`on_answer` is called with each answer, on a thread of its own."""
        self._open, self._on_answer = open_answerer, on_answer
        self._answerer: Answerer | None = None

    def _opened(self) -> Answerer:
        if self._answerer is None:
            self._answerer = self._open()
        return self._answerer

    def digest(self) -> str:
        """See `Executor.digest`."""
        return self._opened().digest()

    def run(self, plan: Plan, shards: Sequence[Shard]) -> Iterator[Report]:
        """See `Executor.run`."""
        answerer = self._opened()
        worker = ShardWorker(plan, answerer, self._on_answer)
        pool = ThreadPoolExecutor(MOST_SHARDS, "shard")
        waiting, running, rows = deque(shards), dict[Future[Report], Shard](), 0
        try:
            while waiting or running:
                while waiting and wants_more(len(running), rows, answerer.slots):
                    shard = waiting.popleft()
                    running[pool.submit(worker.answer, shard)] = shard
                    rows += shard.extent.rows
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    rows -= running.pop(future).extent.rows
                    yield future.result()
        finally:
            worker.close()
            pool.shutdown(cancel_futures=True)
