"""Threads that go through the phases of a forward pass together.

A phase is a list of independent items of work, such as the row tiles of a matrix; it ends when all its items are done,
and whoever does the last one opens the next phase. Threads never wait for each other as such, only for an item that
somebody is working on: a thread that the machine has put aside for another program holds up nothing while it has no
item, and the others do its share. Waiting costs a fraction of a microsecond where all is well, starting a parallel loop
would cost several; a model has hundreds of phases a token. All waiting is bounded: whoever has looked often enough lets
the machine run something else between two looks.

Between two passes the threads look out for the next one without returning to Python, where they would have to wait
for the interpreter's lock, and go to sleep when none comes for about a millisecond.

A kernel for a team goes through the phases by the functions of `cpu_kernels.work_queue`: here are the threads, which
need no Numba.
"""

import threading

import numpy as np

from cpu_kernels.abi import CACHE_LINE

# The shared counters, each on a cache line of its own. A ticket is  pass << 40 | phase << 20 | next item  of the job.
TICKET, DONE, JOB = 0, CACHE_LINE, 2 * CACHE_LINE
TEAM_BYTES = 3 * CACHE_LINE
PASS, PHASE, FIELD = 40, 20, (1 << 20) - 1
CLOSED = FIELD << PHASE  # the phase of a ticket between two passes: later than the last phase of any


class Team:
    """The threads of this process that compute; the caller is one of them.

    Whatever must stay in step from pass to pass is in the shared counters and changes in compiled code only: an
    interrupt in Python can come at any moment without doing harm.
    """

    def __init__(self, n_threads: int) -> None:
        self.n_threads = n_threads
        self._counters = np.zeros((TEAM_BYTES + CACHE_LINE) // 8, np.int64)
        unaligned = self._counters.ctypes.data
        self._address = unaligned + -unaligned % CACHE_LINE
        self._counters[(self._address - unaligned + TICKET) // 8] = CLOSED
        self._one_at_a_time = threading.Lock()
        self._changed = threading.Condition()
        self._busy = False  # a pass is about to begin, or under way
        self._job = None
        for thread in range(1, n_threads):
            threading.Thread(target=self._work, args=(thread,), daemon=True, name=f"rwkv-{thread}").start()

    def run(self, kernel, job: int, *arguments) -> None:
        """Call `kernel(*arguments, team address, job, thread)` on every thread, until thread 0 returns.

        The kernel must not hold the GIL. Thread 0 begins one pass and returns when it is over; the others help with
        it and with those that follow, until it is time to leave or the team works on another job. `job` stands for
        kernel and arguments: another job has another number.
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
                    self._busy, self._job = False, None  # nothing may keep a model alive

    def _work(self, thread: int) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._busy)
                kernel, arguments = self._job
            kernel(*arguments, thread)
            del kernel, arguments
