"""Threads that go through the phases of a forward pass together.

A phase is a list of independent items of work, such as the row tiles of a matrix. Each thread takes the next item by
increasing a shared ticket, so that a thread which the machine slows down takes fewer, and then waits at a barrier for
the others. A barrier costs a fraction of a microsecond, where starting a parallel loop costs several; a model has
hundreds of phases a token.

Between two passes the threads look out for the next one without returning to Python, where they would have to wait
for the interpreter's lock, and go to sleep when none comes for about a millisecond. All waiting is bounded: whoever
has looked often enough lets the machine run something else between two looks.

The counters only ever grow, from one pass to the next, so that nobody needs to reset them at a moment when all
threads are known to be elsewhere.
"""

import sys
import threading

import numpy as np
from llvmlite import ir
from numba import njit, types

from cpu_kernels.simd import _at, _call, _emits

_i64 = ir.IntType(64)

LOOKS_BEFORE_YIELD = 4000
"""How often a waiting thread looks before it lets the machine run another between looks: some ten microseconds."""

LOOKS_BEFORE_SLEEP = LOOKS_BEFORE_YIELD + 2000
"""How often a thread without work looks before it sleeps: about a millisecond, more than it takes to choose a token."""

CACHE_LINE = 64
# The shared counters, each on a cache line of its own.
_ARRIVED, _TICKETS, _PASSES, _JOB, _PHASE = 0, 1 * CACHE_LINE, 4 * CACHE_LINE, 5 * CACHE_LINE, 6 * CACHE_LINE
_TEAM_BYTES = 7 * CACHE_LINE


@_emits(types.int64, types.int64, types.int64)
def _fetch_add(builder, address, value):
    """Add to the integer at an address; gives what it was."""
    return builder.atomic_rmw("add", _at(builder, address, _i64), value, "acq_rel")


@_emits(types.int64, types.int64)
def _load_acquire(builder, address):
    """The integer at an address, with all that was written before it."""
    return builder.load_atomic(_at(builder, address, _i64), ordering="acquire", align=8)


@_emits(types.void, types.int64, types.int64)
def _store_release(builder, address, value):
    """Set the integer at an address, after all that was written before."""
    builder.store_atomic(value, _at(builder, address, _i64), ordering="release", align=8)


@_emits(types.int32, types.int64)
def _let_others_run(builder, _unused):
    """Give the processor to another thread that is ready, if there is one."""
    return _call(builder, "SwitchToThread" if sys.platform == "win32" else "sched_yield", ir.IntType(32))


@njit
def next_item(team, phase):
    """The number of the next item of this phase that nobody has taken."""
    return _fetch_add(team + _TICKETS + CACHE_LINE * (phase % 3), 1)


@njit
def end_phase(team, phase, thread, n_threads):
    """Wait until every thread has ended this phase; gives the next phase's number.

    The ticket of the next phase was last used two phases ago, which everybody has left: the first thread clears it.
    """
    if thread == 0:
        _store_release(team + _TICKETS + CACHE_LINE * ((phase + 1) % 3), 0)
    everybody = (phase + 1) * n_threads
    looks = 0
    arrived = _fetch_add(team + _ARRIVED, 1) + 1
    while arrived < everybody:
        looks += 1
        if looks > LOOKS_BEFORE_YIELD:
            _let_others_run(0)
        arrived = _load_acquire(team + _ARRIVED)
    return phase + 1


@njit
def begin_pass(team, job, done, thread):
    """The first phase of the pass that follows pass number `done`, or -1 if there is none for this thread to do.

    The first thread begins the pass; the others wait for it, but not for long, and not for another job's.
    """
    if thread == 0:
        _store_release(team + _JOB, job)
        _fetch_add(team + _PASSES, 1)
        return _load_acquire(team + _PHASE)
    looks = 0
    while _load_acquire(team + _PASSES) <= done:
        looks += 1
        if looks > LOOKS_BEFORE_YIELD:
            _let_others_run(0)
        if looks > LOOKS_BEFORE_SLEEP:
            return -1
    return _load_acquire(team + _PHASE) if _load_acquire(team + _JOB) == job else -1


@njit
def end_pass(team, phase, thread, n_threads):
    """Wait until every thread has ended the last phase of a pass."""
    if thread == 0:
        _store_release(team + _PHASE, phase + 1)
    end_phase(team, phase, thread, n_threads)


class Team:
    """The threads of this process that compute; the caller is one of them.

    Whatever must stay in step from pass to pass is in the shared counters and changes in compiled code only: an
    interrupt in Python can come at any moment without doing harm.
    """

    def __init__(self, n_threads: int) -> None:
        self.n_threads = n_threads
        self._counters = np.zeros((_TEAM_BYTES + CACHE_LINE) // 8, np.int64)
        unaligned = self._counters.ctypes.data
        self._address = unaligned + -unaligned % CACHE_LINE
        self._one_at_a_time = threading.Lock()
        self._changed = threading.Condition()
        self._busy = False  # a pass is about to begin, or under way
        self._job = None
        for thread in range(1, n_threads):
            threading.Thread(target=self._work, args=(thread,), daemon=True, name=f"rwkv-{thread}").start()

    def run(self, kernel, job: int, *arguments) -> None:
        """Call `kernel(*arguments, team address, job, passes done, thread, number of threads)` on every thread.

        The kernel must not hold the GIL. It goes from `begin_pass` to `end_pass`, through the same phases on every
        thread, again and again until `begin_pass` gives -1, the first thread only once; and gives the number of passes
        done. `job` stands for kernel and arguments: another job has another number.
        """
        with self._one_at_a_time:
            arguments = (*arguments, self._address, job)
            try:
                with self._changed:
                    self._job = (kernel, arguments)
                    self._busy = True
                    self._changed.notify_all()
                kernel(*arguments, 0, 0, self.n_threads)
            finally:
                with self._changed:
                    self._busy, self._job = False, None  # nothing may keep a model alive

    def _work(self, thread: int) -> None:
        done = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._busy)
                kernel, arguments = self._job
            done = kernel(*arguments, done, thread, self.n_threads)
            del kernel, arguments
