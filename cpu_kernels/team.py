"""Threads that go through the phases of a forward pass together.

A phase is a list of independent items of work, such as the row tiles of a matrix. Each thread takes the next item by
increasing a shared ticket, so that a thread which the machine slows down takes fewer, and then waits at a barrier for
the others. A barrier costs well under a microsecond, where starting a parallel loop costs several; a model has
hundreds of phases a token.

The counters only ever grow, from one forward pass to the next, so that nobody needs to reset them at a moment when
all threads are known to be elsewhere.
"""

import os
import sys
import threading

import numpy as np
from llvmlite import ir
from numba import njit, types

from cpu_kernels.simd import _at, _call, _emits

_i64 = ir.IntType(64)

SPINS_BEFORE_YIELD = 4000
"""How often a waiting thread looks before it lets the machine run another: some ten microseconds."""

CACHE_LINE = 64
TEAM_BYTES = 4 * CACHE_LINE
"""The counters: arrivals at barriers, then the tickets of three phases, each on a cache line of its own."""


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
    return _fetch_add(team + CACHE_LINE * (1 + phase % 3), 1)


@njit
def end_phase(team, phase, thread, n_threads):
    """Wait until every thread has ended this phase; gives the next phase's number.

    The ticket of the next phase was last used two phases ago, which everybody has left: the first thread clears it.
    """
    if thread == 0:
        _store_release(team + CACHE_LINE * (1 + (phase + 1) % 3), 0)
    everybody = (phase + 1) * n_threads
    spins = 0
    arrived = _fetch_add(team, 1) + 1
    while arrived < everybody:
        spins += 1
        if spins > SPINS_BEFORE_YIELD:
            _let_others_run(0)
        arrived = _load_acquire(team)
    return phase + 1


class Team:
    """The threads of this process that compute; the caller is one of them.

    They are started once and sleep between forward passes.
    """

    def __init__(self, n_threads: int) -> None:
        self.n_threads = n_threads
        self._counters = np.zeros(TEAM_BYTES // 8 + CACHE_LINE // 8, np.int64)
        unaligned = self._counters.ctypes.data
        self.address = unaligned + -unaligned % CACHE_LINE
        self._phase = 0
        self._lock = threading.Lock()
        self._job = None
        self._wake = [threading.Semaphore(0) for _ in range(n_threads - 1)]
        for thread, wake in enumerate(self._wake, start=1):
            threading.Thread(target=self._work, args=(thread, wake), daemon=True, name=f"rwkv-{thread}").start()

    def run(self, kernel, *arguments) -> None:
        """Call `kernel(*arguments, team address, first phase, thread, number of threads)` on every thread.

        The kernel must not hold the GIL, must go through the same phases on every thread, and gives the number of the
        phase after its last. It must end with `end_phase`, so that all its work is done when it returns on one thread.
        """
        with self._lock:
            self._job = (kernel, arguments, self._phase)
            for wake in self._wake:
                wake.release()
            self._phase = kernel(*arguments, self.address, self._phase, 0, self.n_threads)

    def _work(self, thread: int, wake: threading.Semaphore) -> None:
        while True:
            wake.acquire()
            kernel, arguments, phase = self._job
            kernel(*arguments, self.address, phase, thread, self.n_threads)
            del kernel, arguments  # a sleeping thread must not keep a model alive


def usable_cores() -> int:
    """The number of processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
