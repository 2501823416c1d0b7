"""How the threads of a team share out the items of a phase: by tickets in its shared counters.

A kernel for a team is a loop around `look`, `take`, `end_items` and `is_time_to_leave`, between `begin_pass` and
`end_pass`: see `cpu_kernels.bandwidth` for the shortest one, `cpu_kernels.thread_team` for counters and threads.
"""

import sys

from llvmlite import ir
from numba import njit, types

from cpu_kernels.simd import _at, _call, _emits
from cpu_kernels.thread_team import CLOSED, DONE, FIELD, JOB, PASS, PHASE, TICKET

_i64 = ir.IntType(64)

PASSES = (1 << 23) - 1  # begins again at 0, so that no ticket is negative

SHARES = 4
"""A thread takes so manieth a part of its share of the items that are left: so all end at about the same time."""

LOOKS_BEFORE_YIELD = 4000
"""How often a waiting thread looks before it lets the machine run another between looks: some ten microseconds."""

LOOKS_BEFORE_SLEEP = LOOKS_BEFORE_YIELD + 2000
"""How often a thread without work looks before it sleeps: about a millisecond, more than it takes to choose a token."""


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
    passes = (_load_acquire(team + TICKET) >> PASS) + 1
    _store_release(team + JOB, job)
    _store_release(team + TICKET, (passes & PASSES) << PASS)


@njit
def end_pass(team):
    """Close the ticket after the last phase of a pass; for the first thread."""
    _store_release(team + TICKET, (_load_acquire(team + TICKET) >> PASS) << PASS | CLOSED)


@njit
def look(team, job):
    """The ticket of the next item to take, or -1 while the team works on another job."""
    ticket = _load_acquire(team + TICKET)
    return ticket if _load_acquire(team + JOB) == job else -1


@njit
def phase_of(ticket):
    """The number of the phase that is open, from 0 in each pass; between passes larger than any."""
    return (ticket >> PHASE) & FIELD


@njit
def item_of(ticket):
    """The number of the next item of the phase: none is left if it is the number of items."""
    return ticket & FIELD


@njit
def take(team, ticket, n):
    """Take n items, the first of which a ticket names; False if somebody was quicker, or the phase is over by now."""
    return _compare_and_swap(team + TICKET, ticket, ticket + n)


@njit
def share(n_left, n_threads):
    """How many of the items that are left to take at once: many at first, one at a time when the end is near."""
    return max(1, n_left // (SHARES * n_threads))


@njit
def end_items(team, ticket, n, n_items):
    """Say that n items are done; the last ones of a phase open the next phase."""
    if _fetch_add(team + DONE, n) + n == n_items:
        _store_release(team + DONE, 0)
        _store_release(team + TICKET, ((ticket >> PHASE) + 1) << PHASE)


@njit
def is_time_to_leave(looks, thread):
    """For a thread that found nothing to do `looks` times in a row: lets others run; whether it should go to sleep."""
    if looks > LOOKS_BEFORE_YIELD:
        _let_others_run(0)
    return looks > LOOKS_BEFORE_SLEEP and thread > 0
