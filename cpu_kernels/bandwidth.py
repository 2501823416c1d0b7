"""How fast this machine reads memory: the limit of decoding, which reads every weight once per token."""

import numpy as np
from numba import njit

from cpu_kernels.abi import LANES, PROBE_BLOCK
from cpu_kernels.elementwise import FLOAT, VECTOR
from cpu_kernels.simd import load, splat, store
from cpu_kernels.work_queue import team_loop


@njit
def _read(address, n_bytes):
    """The sums [16] of floats, in eight accumulators that hide the latency of additions: loads alone are the limit."""
    zero = splat(np.float32(0))
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = zero
    for i in range(address, address + n_bytes, 8 * VECTOR):
        s0, s1 = s0 + load(i), s1 + load(i + VECTOR)
        s2, s3 = s2 + load(i + 2 * VECTOR), s3 + load(i + 3 * VECTOR)
        s4, s5 = s4 + load(i + 4 * VECTOR), s5 + load(i + 5 * VECTOR)
        s6, s7 = s6 + load(i + 6 * VECTOR), s7 + load(i + 7 * VECTOR)
    return (s0 + s1) + (s2 + s3) + ((s4 + s5) + (s6 + s7))


@njit
def n_items(_phase, _address, n_blocks, _sums):
    """An item is a block."""
    return n_blocks


@njit
def do_item(_phase, block, thread, address, _n_blocks, sums):
    """Read a block, and add what is in it to the sums of the thread."""
    total = _read(address + block * PROBE_BLOCK, PROBE_BLOCK)
    sums_here = sums + thread * LANES * FLOAT
    store(sums_here, load(sums_here) + total)


_loop = team_loop(n_items, do_item)


def passes(address, n_blocks, sums, team, job, thread):
    """Read n_blocks blocks of PROBE_BLOCK bytes once; a kernel for `cpu_kernels.runtime.thread_team.Team.run`.

    sums: float32 [threads, 16], to which each thread adds what it reads. An entry point, see `cpu_kernels.runtime.aot`.
    """
    _loop(1, n_blocks, team, job, thread, address, n_blocks, sums)  # claims one block at a time
