"""A pool of threads that go through the phases of a forward pass together.

A phase is a list of independent items of work, such as the row tiles of a matrix; it ends when all its items are done,
and the thread that completes the last one opens the next phase. There is no barrier: a thread waits only for items that
another one has claimed, so a thread that the operating system has descheduled delays nothing while it has no item, and
the others do its share. Waiting is a spin on the shared counters, which costs a fraction of a microsecond; starting a
parallel loop would cost several, and a model has hundreds of phases per token. All spinning is bounded: after a while a
waiting thread yields the processor between two looks at the counters.

Between two passes the threads keep spinning without returning to Python, where they would have to wait for the GIL, and
go to sleep if no pass begins for about a millisecond.

The loop of a kernel for a team is `cpu_kernels.work_queue.team_loop`; this module has the threads, without Numba.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from cpu_kernels.abi import CACHE_LINE

# The offsets of the shared counters, each on a cache line of its own: the ticket, the number of completed items of the
# phase, and the job. A ticket is  pass << 40 | phase << 20 | next item  of the job.
TICKET, DONE, JOB = 0, CACHE_LINE, 2 * CACHE_LINE
TEAM_BYTES = 3 * CACHE_LINE
PASS, PHASE, FIELD = 40, 20, (1 << 20) - 1
CLOSED = FIELD << PHASE  # the phase of a ticket between two passes: larger than the last phase of any pass


Kernel = Callable[..., Any]
"""kernel(*arguments, team, job, thread), without the GIL: `team` is the address of the counters, see `Team.run`."""


class Team:
    """The compute threads of this process; the caller of `run` is thread 0.

    Where the system gives no more threads, those that it gave do all the work: any number of them gives the same bits.

    All that must stay consistent from pass to pass is in the shared counters, which only compiled code changes: an
    interrupt in Python may come at any moment.
    """

    def __init__(self, n_threads: int) -> None:
        self.n_threads = n_threads
        self._counters = np.zeros((TEAM_BYTES + CACHE_LINE) // 8, np.int64)
        unaligned = self._counters.ctypes.data
        self._address = unaligned + -unaligned % CACHE_LINE
        self._counters[(self._address - unaligned + TICKET) // 8] = CLOSED
        self._one_at_a_time = threading.Lock()
        self._changed = threading.Condition()
        self._busy = False  # a pass is about to begin, or running
        self._job: tuple[Kernel, tuple[Any, ...]] | None = None
        for thread in range(1, n_threads):
            try:
                threading.Thread(
                    target=self._work, args=(thread,), daemon=True, name=f"rwkv-{thread}"
                ).start()
            except (RuntimeError, MemoryError):  # a limit of processes or of memory
                self.n_threads = thread
                logging.getLogger("rwkv_cli").warning(
                    "the system allows only %d of %d threads: the text will be the same, but slower",
                    thread,
                    n_threads,
                )
                break

    def run(self, kernel: Kernel, job: int, *arguments: Any) -> None:
        """Call `kernel(*arguments, address of the counters, job, thread)` on every thread, until thread 0 returns.

        Thread 0 begins one pass and returns when it is complete; the others help with it and with those that follow,
        until they have been idle for long or the team works on another job. `job` identifies kernel and arguments:
        another kernel, or the same with other arguments, needs another number. One pass runs at a time.
        """
        with self._one_at_a_time:
            arguments = (*arguments, self._address, job)
            try:
                with self._changed:
                    self._job = (kernel, arguments)
                    self._busy = True
                    self._changed.notify_all()
                kernel(*arguments, 0)
            finally:
                with self._changed:
                    self._busy, self._job = False, None  # a reference would keep a model alive

    def _work(self, thread: int) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._busy)
                assert self._job  # set while busy
                kernel, arguments = self._job
            kernel(*arguments, thread)
            del kernel, arguments
