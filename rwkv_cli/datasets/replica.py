"""A model that answers rows on a thread of its own. Rows of several shards are answered together: none waits for the
last ones of another shard."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from rwkv_cli.datasets.job import Answerer
from rwkv_cli.datasets.question import Question
from rwkv_cli.errors import DeviceError
from rwkv_cli.sessions.batch import Answer, Prompt


@dataclass(frozen=True)
class Asked:
    """A question, where it comes from, and the seed of its answer unless it has its own."""

    question: Question
    seed: int
    where: str


class _Group:
    """Rows that are answered at the same time, and their answers as far as they have come."""

    def __init__(self, asked: Sequence[Asked]) -> None:
        self.asked = asked
        self.answers = dict[int, Answer]()
        self.future = Future[list[Answer]]()


class Replica:
    """Any number of threads may ask it."""

    def __init__(self, answerer: Answerer, on_answer: Callable[[Answer], None] | None = None) -> None:
        """`on_answer` is called with each answer, on the thread of the model."""
        self._answerer, self._on_answer = answerer, on_answer
        self._inbox = queue.SimpleQueue[_Group | None]()
        self._running = dict[int, tuple[_Group, int]]()  # what is not answered yet, in the order of asking
        self._open = set[_Group]()
        self._lock = threading.Lock()
        self._error: BaseException | None = None  # why it has ended
        self._thread = threading.Thread(target=self._run, name="replica", daemon=True)
        self._thread.start()

    def submit(self, asked: Sequence[Asked]) -> Future[list[Answer]]:
        """Have rows answered: their answers, in their order. It fails with a DeviceError if the device does."""
        group = _Group(asked)
        with self._lock:
            if self._error:
                group.future.set_exception(self._error)
                return group.future
            self._open.add(group)
        self._inbox.put(group)
        if not asked:
            self._complete(group)
        return group.future

    def close(self) -> None:
        """End it between two steps. What is not answered yet fails."""
        self._end(DeviceError("the batch was ended"))
        self._inbox.put(None)
        self._thread.join()

    # --- on the thread of the model ---------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            for answer in self._answerer.answers(self._prompts(), in_order=False):
                group, i = self._running.pop(answer.index)
                group.answers[i] = answer
                if self._on_answer:
                    self._on_answer(answer)
                if len(group.answers) == len(group.asked):
                    self._complete(group)
        except BaseException as error:
            self._end(error)

    def _prompts(self) -> Iterator[Prompt | None]:
        """The prompts of all rows, without end; None where there are no others yet. Raises what ended the replica."""
        n_asked = 0
        while True:
            try:
                group = self._inbox.get(block=not self._running)
            except queue.Empty:
                group = None
            if self._error:
                raise self._error
            if group is None:
                yield None
                continue
            for i, each in enumerate(group.asked):
                self._running[n_asked] = group, i
                n_asked += 1
                yield self._answerer.prompt(each.question, each.seed, each.where)
                if self._error:
                    raise self._error

    def _complete(self, group: _Group) -> None:
        with self._lock:
            if group in self._open:
                self._open.remove(group)
                group.future.set_result([group.answers[i] for i in range(len(group.asked))])

    def _end(self, error: BaseException) -> None:
        with self._lock:
            self._error = self._error or error
            failed, self._open = self._open, set()
        for group in failed:
            group.future.set_exception(self._error)
