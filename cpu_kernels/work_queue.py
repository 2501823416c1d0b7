"""A lock-free work queue: how the threads of a team share the items of each phase of a pass.

The next item to do is a *ticket* in the shared counters of the team, and a thread claims items by advancing the ticket
with compare-and-swap. `team_loop` makes the loop that every kernel for a team runs: see `cpu_kernels.bandwidth` for the
shortest one, `cpu_kernels.runtime.thread_team` for the layout of the counters, and for the threads.
"""

import sys

from llvmlite import ir
from numba import njit, types

from cpu_kernels.runtime.instructions import call
from cpu_kernels.runtime.thread_team import CLOSED, DONE, FIELD, JOB, PASS, PHASE, TICKET
from cpu_kernels.simd import intrinsic_of, pointer

_i64 = ir.IntType(64)

PASSES = (1 << 23) - 1  # the number of a pass wraps around to 0, so that no ticket is negative

SHARES = 4
"""A thread claims 1/SHARES of its fair share of what is left, so that all finish at about the same time."""

SPINS_BEFORE_YIELD = 4000
"""How often a waiting thread peeks before it yields the processor between peeks: some ten microseconds."""

SPINS_BEFORE_PARK = SPINS_BEFORE_YIELD + 2000
"""How often an idle thread peeks before it goes to sleep: about a millisecond, more than it takes to sample a token."""


@intrinsic_of(types.int64, types.int64, types.int64)
def _fetch_add(builder, address, value):
    """Add to the integer at an address; returns the value before."""
    return builder.atomic_rmw("add", pointer(builder, address, _i64), value, "acq_rel")


@intrinsic_of(types.int64, types.int64)
def _load_acquire(builder, address):
    """The integer at an address; all writes before its release are visible after it."""
    return builder.load_atomic(pointer(builder, address, _i64), ordering="acquire", align=8)


@intrinsic_of(types.void, types.int64, types.int64)
def _store_release(builder, address, value):
    """Set the integer at an address; all writes before are visible to a thread that acquires it."""
    builder.store_atomic(value, pointer(builder, address, _i64), ordering="release", align=8)


@intrinsic_of(types.int32, types.int64)
def _yield_processor(builder, _unused):
    """Let another thread run on this core, if one is ready."""
    return call(builder, "SwitchToThread" if sys.platform == "win32" else "sched_yield", ir.IntType(32))


@intrinsic_of(types.boolean, types.int64, types.int64, types.int64)
def _compare_and_swap(builder, address, expected, value):
    """Set the integer at an address if it has the expected value; returns whether it had."""
    pair = builder.cmpxchg(pointer(builder, address, _i64), expected, value, "acq_rel", "acquire")
    return builder.extract_value(pair, 1)


def team_loop(n_items, do_item):
    """The loop of a kernel for a team, as a function for Numba; see its docstring.

    n_items(phase, *arguments) is the number of items of a phase, do_item(phase, item, thread, *arguments) does one of
    them. Both are Numba functions.
    """

    @njit
    def loop(n_phases, n_parts, team, job, thread, *arguments):
        """Do items, phase after phase; thread 0 begins a pass and returns when all its phases are done.

        The other threads help with this pass and with those that follow, until they have been idle for long or the
        team works on another job. A claim is 1/n_parts of the items that are left in a phase, at least one item.
        """
        if thread == 0:
            begin_pass(team, job)
        spins = 0
        while True:
            ticket = peek(team, job)
            if ticket < 0:
                return
            phase, item = phase_of(ticket), item_of(ticket)
            is_over = phase >= n_phases
            if is_over and thread == 0:
                end_pass(team)
                return
            n = 0 if is_over else n_items(phase, *arguments)
            if item < n:
                n_claimed = max(1, (n - item) // n_parts)
                if claim(team, ticket, n_claimed):
                    for i in range(item, item + n_claimed):
                        do_item(phase, i, thread, *arguments)
                    complete(team, ticket, n_claimed, n)
                spins = 0
                continue
            spins += 1
            if should_park(spins, thread):
                return

    return loop


@njit
def begin_pass(team, job):
    """Open the first phase of a new pass of this job; called by thread 0.

    The ticket is closed while the job changes, so that no thread can claim an old ticket for the new job, or a new
    one for the old job.
    """
    passes = (_load_acquire(team + TICKET) >> PASS) + 1
    _store_release(team + JOB, job)
    _store_release(team + TICKET, (passes & PASSES) << PASS)


@njit
def end_pass(team):
    """Close the ticket after the last phase of a pass; called by thread 0."""
    _store_release(team + TICKET, (_load_acquire(team + TICKET) >> PASS) << PASS | CLOSED)


@njit
def peek(team, job):
    """The ticket of the next item to claim, or -1 while the team works on another job."""
    ticket = _load_acquire(team + TICKET)
    return ticket if _load_acquire(team + JOB) == job else -1


@njit
def phase_of(ticket):
    """The number of the open phase, from 0 in each pass; between passes it is larger than any."""
    return (ticket >> PHASE) & FIELD


@njit
def item_of(ticket):
    """The number of the next item of the phase; equal to the number of items when all are claimed."""
    return ticket & FIELD


@njit
def claim(team, ticket, n):
    """Claim n items from the one that a ticket names; False if another thread was faster, or the phase has ended."""
    return _compare_and_swap(team + TICKET, ticket, ticket + n)


@njit
def complete(team, ticket, n, n_items):
    """Count n claimed items as done; the thread that completes the last ones of a phase opens the next phase."""
    if _fetch_add(team + DONE, n) + n == n_items:
        _store_release(team + DONE, 0)
        _store_release(team + TICKET, ((ticket >> PHASE) + 1) << PHASE)


@njit
def should_park(spins, thread):
    """Whether a thread that has peeked in vain `spins` times in a row should go to sleep; yields before that."""
    if spins > SPINS_BEFORE_YIELD:
        _yield_processor(0)
    return spins > SPINS_BEFORE_PARK and thread > 0
