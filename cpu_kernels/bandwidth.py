"""How fast this machine reads memory: the limit of decoding, which reads every weight once a token."""

import numpy as np
from numba import njit

from cpu_kernels.abi import LANES, PROBE_BLOCK
from cpu_kernels.elementwise import FLOAT, VECTOR
from cpu_kernels.simd import load, splat, store
from cpu_kernels.work_queue import (
    begin_pass,
    end_items,
    end_pass,
    is_time_to_leave,
    item_of,
    look,
    phase_of,
    take,
)


@njit
def _read(address, n_bytes):
    """The sum of floats, in eight sums so that no addition waits for another: nothing but loads can be the limit."""
    zero = splat(np.float32(0))
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = zero
    for i in range(address, address + n_bytes, 8 * VECTOR):
        s0, s1 = s0 + load(i), s1 + load(i + VECTOR)
        s2, s3 = s2 + load(i + 2 * VECTOR), s3 + load(i + 3 * VECTOR)
        s4, s5 = s4 + load(i + 4 * VECTOR), s5 + load(i + 5 * VECTOR)
        s6, s7 = s6 + load(i + 6 * VECTOR), s7 + load(i + 7 * VECTOR)
    return (s0 + s1) + (s2 + s3) + ((s4 + s5) + (s6 + s7))


def passes(address, n_blocks, sums, team, job, thread):
    """Read n_blocks blocks once, as `cpu_kernels.thread_team.Team.run` wants it; sums: float32 [threads, 16].

    An entry point, see `cpu_kernels.aot`.
    """
    if thread == 0:
        begin_pass(team, job)
    looks = 0
    while True:
        ticket = look(team, job)
        if ticket < 0:
            return
        is_over = phase_of(ticket) > 0
        if is_over and thread == 0:
            end_pass(team)
            return
        if not is_over and item_of(ticket) < n_blocks:
            if take(team, ticket, 1):
                total = _read(address + item_of(ticket) * PROBE_BLOCK, PROBE_BLOCK)
                sums_here = sums + thread * LANES * FLOAT
                store(sums_here, load(sums_here) + total)
                end_items(team, ticket, 1, n_blocks)
            looks = 0
            continue
        looks += 1
        if is_time_to_leave(looks, thread):
            return
