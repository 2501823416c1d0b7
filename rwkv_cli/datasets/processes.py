"""Several replicas of a model, one a device, each in a process of its own, which take shards from one queue.

A process and not a thread for each: what the host does for a token would otherwise be done for all devices by one core.
A process that is killed is started again, and its shards go back to the queue.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from typing import Any

from rwkv_cli.datasets.executor import MOST_SHARDS, wants_more
from rwkv_cli.datasets.job import Answerer, Job
from rwkv_cli.datasets.plan import Plan, Shard
from rwkv_cli.datasets.worker import Report, ShardWorker
from rwkv_cli.engine.backends.registry import threads_each
from rwkv_cli.errors import DeviceError, FieldSpelling, RwkvError, UsageError
from rwkv_cli.reporting import Reporter
from rwkv_cli.sessions.batch import Answer

MOST_DEATHS = 3
"""Times that a replica may end without having done a shard since the time before."""

_CONTEXT = multiprocessing.get_context("spawn")  # a fork would share what the driver of a GPU has

Message = tuple[str, Any]
"""What a replica says: "ready" with digest and slots, "answer", "report" with one, "error" with text and exit code."""


class _Replica:
    """A process with a replica, seen from here."""

    def __init__(self, job: Job, spelled: FieldSpelling) -> None:
        self.job, self._spelled = job, spelled
        self.shards = dict[int, Shard]()  # that it has, by number
        self.slots = 0  # 0 until it is ready
        self.deaths = 0  # since it has done a shard
        self.answered = 0  # rows of shards that it has not done yet
        self._start()

    def _start(self) -> None:
        self.connection, theirs = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(
            target=_serve, args=(theirs, self.job, self._spelled), name=f"rwkv {self.job.device}", daemon=True
        )
        self._process.start()
        theirs.close()

    def revive(self) -> Sequence[Shard]:
        """Start it again: the shards that it had. Raises DeviceError where that does not help."""
        self._process.join()
        code, lost = self._process.exitcode, [*self.shards.values()]
        self.deaths += 1
        if self.deaths >= MOST_DEATHS:
            raise DeviceError(
                f"the replica on {self.job.device} has ended {self.deaths} times (exit code {code}): is there too "
                "little memory?"
            )
        self.shards, self.slots, self.answered = {}, 0, 0
        self._start()
        return lost

    def wants_more(self) -> bool:
        """Whether it is to get another shard."""
        rows = sum(shard.extent.rows for shard in self.shards.values())
        return self.slots > 0 and wants_more(len(self.shards), rows, self.slots)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()


class Processes:
    """See `Executor`: a replica for each of several devices."""

    def __init__(
        self,
        job: Job,
        devices: Sequence[str],
        spelled: FieldSpelling,
        on_answers: Callable[[int, int], None] | None = None,
    ) -> None:
        """`on_answers` is called with how many more rows were answered, and their tokens; fewer if some are lost."""
        threads = threads_each(job.threads, devices)
        self.replicas = len(devices)
        self._on_answers = on_answers
        self._digest = ""
        self._replicas = [_Replica(replace(job, device=each, threads=threads), spelled) for each in devices]

    def digest(self) -> str:
        """See `Executor.digest`: waits for the first model. Raises what loading it raises."""
        while not self._digest:
            for replica, message in self._messages():
                self._take(replica, message, None)
        return self._digest

    def run(self, plan: Plan, shards: Sequence[Shard]) -> Iterator[Report]:
        """See `Executor.run`."""
        waiting, n_left = deque(shards), len(shards)
        for replica in self._replicas:
            if replica.slots:
                replica.connection.send(plan)
        while n_left:
            for replica in self._replicas:
                while waiting and replica.wants_more():
                    shard = waiting.popleft()
                    replica.shards[shard.number] = shard
                    with contextlib.suppress(OSError):  # it has ended, which is told below
                        replica.connection.send(shard)
            for replica, message in self._messages():
                if message is None:
                    self._tell(-replica.answered, 0)
                    waiting.extendleft(reversed(replica.revive()))
                elif report := self._take(replica, message, plan):
                    n_left -= 1
                    yield report

    def _messages(self) -> Iterator[tuple[_Replica, Message | None]]:
        """What replicas say, once one does; None of one that has ended."""
        by_connection = {each.connection: each for each in self._replicas}
        for connection in wait([*by_connection]):
            assert isinstance(connection, Connection)
            try:
                yield by_connection[connection], connection.recv()
            except (EOFError, OSError):
                yield by_connection[connection], None

    def _take(self, replica: _Replica, message: Message | None, plan: Plan | None) -> Report | None:
        """Take a message: the report in it, if there is one. Raises the error in it."""
        if message is None:
            replica.revive()
            return None
        kind, value = message
        if kind == "error":
            text, code = value
            raise UsageError(text) if code == UsageError.exit_code else RwkvError(text)
        if kind == "ready":
            self._digest, replica.slots = value
            if plan:
                replica.connection.send(plan)
        elif kind == "answer":
            replica.answered += 1
            self._tell(1, value)
        elif kind == "report":
            replica.deaths = 0
            replica.answered -= value.rows
            del replica.shards[value.shard]
            report: Report = value
            return report
        return None

    def _tell(self, rows: int, tokens: int) -> None:
        if self._on_answers:
            self._on_answers(rows, tokens)

    def close(self) -> None:
        """End all of them."""
        for replica in self._replicas:
            replica.close()


# --- in the process of a replica ------------------------------------------------------------------------------------


def _serve(connection: Connection, job: Job, spelled: FieldSpelling) -> None:
    """Load the model, and answer shards until the other end is closed, or gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the process that started this one
    lock = threading.Lock()

    def send(kind: str, value: object) -> None:
        with lock, contextlib.suppress(OSError):
            connection.send((kind, value))

    def answer(worker: ShardWorker, shard: Shard) -> None:
        try:
            send("report", worker.answer(shard))
        except RwkvError as error:
            send("error", (error.args[0], error.exit_code))
        except Exception as error:  # a defect: the batch must not wait for ever
            send("error", (f"a replica failed ({type(error).__name__}: {error})", 1))

    def told(answer: Answer) -> None:
        send("answer", answer.generated_tokens)

    try:
        answerer = Answerer(job, Reporter(), spelled)
        send("ready", (answerer.digest(), answerer.slots))
        worker = ShardWorker(connection.recv(), answerer, told)
        pool = ThreadPoolExecutor(MOST_SHARDS, "shard")
        while True:
            pool.submit(answer, worker, connection.recv())
    except RwkvError as error:
        send("error", (error.args[0], error.exit_code))
        connection.close()
    except (EOFError, OSError):
        pass
    os._exit(0)  # what is on its way is for nobody
