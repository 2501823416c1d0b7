"""How fast this machine reads memory: the limit of decoding, which reads every weight once a token."""

import numpy as np
from numba import njit

from cpu_kernels.elementwise import FLOAT, VECTOR
from cpu_kernels.simd import LANES, load, splat, store
from cpu_kernels.team import begin_pass, end_pass, next_item

BLOCK = 1 << 18
"""Bytes of an item of work."""


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


@njit(nogil=True, cache=True)
def passes(address, n_blocks, sums, team, job, done, thread, n_threads):
    """Read n_blocks blocks once, as `cpu_kernels.team.Team.run` wants it; sums: float32 [threads, 16]."""
    more = True
    while more:
        phase = begin_pass(team, job, done, thread)
        if phase < 0:
            break
        total = splat(np.float32(0))
        block = next_item(team, phase)
        while block < n_blocks:
            total = total + _read(address + block * BLOCK, BLOCK)
            block = next_item(team, phase)
        store(sums + thread * LANES * FLOAT, total)
        end_pass(team, phase, thread, n_threads)
        done += 1
        more = thread != 0
    return done
