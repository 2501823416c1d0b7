"""Threads that go through the phases of a forward pass together.

A phase is a list of independent items of work, such as the row tiles of a matrix; it ends when all its items are done,
and whoever does the last one opens the next phase. Threads never wait for each other as such, only for an item that
somebody is working on: a thread that the machine has put aside for another program holds up nothing while it has no
item, and the others do its share. Waiting costs a fraction of a microsecond where all is well, starting a parallel loop
would cost several; a model has hundreds of phases a token. All waiting is bounded: whoever has looked often enough lets
the machine run something else between two looks.

Between two passes the threads look out for the next one without returning to Python, where they would have to wait
for the interpreter's lock, and go to sleep when none comes for about a millisecond.

A kernel for a team is a loop around `look`, `take`, `end_items` and `is_time_to_leave`, between `begin_pass` and
`end_pass`: see `cpu_kernels.bandwidth` for
the shortest one.
"""

import sys
import threading

import numpy as np
from llvmlite import ir
from numba import njit, types

from cpu_kernels.simd import CACHE_LINE, _at, _call, _emits

_i64 = ir.IntType(64)

LOOKS_BEFORE_YIELD = 4000
"""How often a waiting thread looks before it lets the machine run another between looks: some ten microseconds."""

LOOKS_BEFORE_SLEEP = LOOKS_BEFORE_YIELD + 2000
"""How often a thread without work looks before it sleeps: about a millisecond, more than it takes to choose a token."""

SHARES = 4
"""A thread takes so manieth a part of its share of the items that are left: so all end at about the same time."""

# The shared counters, each on a cache line of its own. A ticket is  pass << 40 | phase << 20 | next item  of the job.
_TICKET, _DONE, _JOB = 0, CACHE_LINE, 2 * CACHE_LINE
_TEAM_BYTES = 3 * CACHE_LINE
_PASS, _PHASE, _FIELD = 40, 20, (1 << 20) - 1
_PASSES = (1 << 23) - 1  # begins again at 0, so that no ticket is negative
_CLOSED = _FIELD << _PHASE  # the phase of a ticket between two passes: later than the last phase of any


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


@_emits(types.boolean, types.int64, types.int64, types.int64)
def _compare_and_swap(builder, address, expected, value):
    """Set the integer at an address if it is what is expected; whether it was."""
    pair = builder.cmpxchg(_at(builder, address, _i64), expected, value, "acq_rel", "acquire")
    return builder.extract_value(pair, 1)


@njit
def begin_pass(team, job):
    """Open the first phase of a new pass of this job; for the first thread.

    The ticket is closed while the job changes: nobody may take an old ticket for the new job, or a new one for the old.
    """
    passes = (_load_acquire(team + _TICKET) >> _PASS) + 1
    _store_release(team + _JOB, job)
    _store_release(team + _TICKET, (passes & _PASSES) << _PASS)


@njit
def end_pass(team):
    """Close the ticket after the last phase of a pass; for the first thread."""
    _store_release(team + _TICKET, (_load_acquire(team + _TICKET) >> _PASS) << _PASS | _CLOSED)


@njit
def look(team, job):
    """The ticket of the next item to take, or -1 while the team works on another job."""
    ticket = _load_acquire(team + _TICKET)
    return ticket if _load_acquire(team + _JOB) == job else -1


@njit
def phase_of(ticket):
    """The number of the phase that is open, from 0 in each pass; between passes larger than any."""
    return (ticket >> _PHASE) & _FIELD


@njit
def item_of(ticket):
    """The number of the next item of the phase: none is left if it is the number of items."""
    return ticket & _FIELD


@njit
def take(team, ticket, n):
    """Take n items, the first of which a ticket names; False if somebody was quicker, or the phase is over by now."""
    return _compare_and_swap(team + _TICKET, ticket, ticket + n)


@njit
def share(n_left, n_threads):
    """How many of the items that are left to take at once: many at first, one at a time when the end is near."""
    return max(1, n_left // (SHARES * n_threads))


@njit
def end_items(team, ticket, n, n_items):
    """Say that n items are done; the last ones of a phase open the next phase."""
    if _fetch_add(team + _DONE, n) + n == n_items:
        _store_release(team + _DONE, 0)
        _store_release(team + _TICKET, ((ticket >> _PHASE) + 1) << _PHASE)


@njit
def is_time_to_leave(looks, thread):
    """For a thread that found nothing to do `looks` times in a row: lets others run; whether it should go to sleep."""
    if looks > LOOKS_BEFORE_YIELD:
        _let_others_run(0)
    return looks > LOOKS_BEFORE_SLEEP and thread > 0


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
        self._counters[(self._address - unaligned + _TICKET) // 8] = _CLOSED
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
