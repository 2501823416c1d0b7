"""Threads that go through phases together: every item is done once, and a phase begins when the one before is done.

No test depends on how long something takes; one that hangs ends the run with the stacks of all threads.
"""

import faulthandler
import functools
import gc
import itertools
import os
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
from helpers.kernel_check import address
from numba import njit

from cpu_kernels.abi import LANES, PROBE_BLOCK
from cpu_kernels.runtime.aot import kernel
from cpu_kernels.runtime.thread_team import CLOSED, PASS, TICKET, Team
from cpu_kernels.work_queue import SHARES, team_loop

THREADS = 3  # among which the items are shared
HANGS = 120  # seconds
PATIENCE = 20  # seconds, after which what should happen at once does not happen
SLEEPS = 0.05  # seconds, in which any thread without work has gone to sleep

team_of = functools.cache(Team)
_jobs = itertools.count(1)


@pytest.fixture(autouse=True)
def _watch():
    faulthandler.dump_traceback_later(HANGS, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@njit
def _n_items(_phase, counts, _seen, _work):
    return counts.shape[1]


@njit
def _do_item(phase, item, _thread, counts, seen, work):
    total = np.int64(0)
    for _ in range(work[item] + 1):
        total = counts[phase - 1].sum()
    seen[phase, item] += total
    counts[phase, item] += 1


_loop = team_loop(_n_items, _do_item)


@njit(nogil=True)
def count(counts, seen, work, team, job, thread):
    """A pass through phases. counts [phases, items]: how often each was done. seen: the phase before, summed up.

    An item takes longer by its number of rounds in `work` [items].
    """
    _loop(len(counts), SHARES * THREADS, team, job, thread, counts, seen, work)


class Counted:
    """A job whose items add up."""

    def __init__(self, n_items: int = 7, n_phases: int = 5, work=0, job: int | None = None) -> None:
        self.job = next(_jobs) if job is None else job
        self.counts, self.seen = np.zeros((2, n_phases, n_items), np.int64)
        self.work = np.broadcast_to(np.asarray(work, np.int64), n_items).copy()
        self.passes = 0

    def run(self, team: Team, kernel=count) -> None:
        team.run(kernel, self.job, self.counts, self.seen, self.work)
        self.passes += 1

    def assert_right(self) -> None:
        """Each item was done once a pass, and saw all of the phase before and none of its own."""
        n_phases, n_items = self.counts.shape
        assert (self.counts == self.passes).all()
        # Pass i finds the phase before done i times, the first phase the last phase of the pass before.
        before = n_items * self.passes * (self.passes - 1) // 2
        assert n_phases == 1 or (self.seen[0] == before).all()
        assert (self.seen[1:] == before + n_items * self.passes).all()


@pytest.fixture(scope="module", autouse=True)
def _compiled():
    Counted().run(team_of(1))


@pytest.mark.parametrize("n_threads", [1, 2, 3, 4])
@pytest.mark.parametrize("n_items", [1, 2, 7, 100])
@pytest.mark.parametrize("n_phases", [1, 2, 5])
def test_every_item_is_done_once_a_pass(n_threads, n_items, n_phases):
    counted = Counted(n_items, n_phases)
    for _ in range(200 if n_threads <= 2 else 20):
        counted.run(team_of(n_threads))
    counted.assert_right()


def test_more_threads_than_cores():
    counted = Counted(50)
    for _ in range(5):
        counted.run(team_of((os.cpu_count() or 1) + 3))
    counted.assert_right()


@pytest.mark.parametrize("n_threads", [2, 3])
def test_items_of_unequal_length(n_threads):
    """Some threads wait much longer than they spin without yielding, or than they stay awake."""
    work = np.zeros(9, np.int64)
    work[[0, 8]] = 100_000
    counted = Counted(9, work=work)
    for _ in range(5):
        counted.run(team_of(n_threads))
    counted.assert_right()


def test_two_jobs_take_turns():
    """The end of a pass of few phases is the middle of one of many."""
    a, b = Counted(5, 1), Counted(12, 9)
    for i in range(3000):
        a.run(team_of(2))
        if i % 3:
            b.run(team_of(2))
    a.assert_right()
    b.assert_right()


def in_threads(function, arguments) -> None:
    """Call a function of one argument in a thread for each."""
    threads = [threading.Thread(target=function, args=(argument,)) for argument in arguments]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_two_jobs_from_two_threads():
    jobs = [Counted(5, 1), Counted(12, 9)]
    together = threading.Barrier(2)

    def converse(job):
        together.wait()
        for _ in range(500):
            job.run(team_of(2))

    in_threads(converse, jobs)
    for job in jobs:
        assert job.passes == 500
        job.assert_right()


def test_one_pass_at_a_time():
    team, computing, alone = team_of(2), threading.Lock(), []

    def kernel(_address, _job, thread):
        if thread == 0:
            alone.append(computing.acquire(blocking=False))
            time.sleep(SLEEPS)
            computing.release()

    in_threads(lambda job: team.run(kernel, job), [next(_jobs) for _ in range(4)])
    assert alone == [True] * 4


@pytest.mark.parametrize("pause", [0, SLEEPS])
def test_every_thread_is_called(pause):
    """Also those that sleep: a team whose first thread does everything gives the same results."""
    team = Team(3)
    for _ in range(3):
        called = [threading.Event() for _ in range(3)]

        def kernel(_address, _job, thread, called=called):
            called[thread].set()
            if thread == 0:
                assert all(event.wait(PATIENCE) for event in called)

        time.sleep(pause)
        team.run(kernel, next(_jobs))


def test_sleeping_threads_wake_up():
    counted, team = Counted(), team_of(3)
    for _ in range(5):
        counted.run(team)
        time.sleep(SLEEPS)
    counted.assert_right()


def late(*arguments):
    """`count`, with a first thread that is descheduled after it has woken the others."""
    if arguments[-1] == 0:
        time.sleep(SLEEPS)
    count(*arguments)


@pytest.mark.parametrize("job", [0, 1])
def test_no_thread_begins_before_the_first_one(job):
    """On a team that has done nothing yet, whose counters are zero, and on one that has."""
    counted, team = Counted(job=job), Team(2)
    for _ in range(3):
        counted.run(team, late)
    counted.assert_right()


def test_any_number_of_passes():
    """The number of the pass has bits of its own in the ticket: after the last number it wraps around."""
    counted, team = Counted(), Team(2)
    counted.run(team)
    most = 1 << (63 - PASS)
    team._counters[(team._address - address(team._counters) + TICKET) // 8] = (most - 3) << PASS | CLOSED
    for _ in range(6):
        counted.run(team)
    counted.assert_right()


def test_idle_threads_leave_the_kernel():
    """Between passes no thread stays in compiled code: all arguments are released, and a model with them."""
    counted, team = Counted(), Team(3)
    counted.run(team, late)  # so that the others have begun when it ends
    gone = weakref.ref(counted.counts)
    del counted
    deadline = time.monotonic() + PATIENCE
    while gone() is not None and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.001)
    assert gone() is None


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
@pytest.mark.parametrize("pause", [0, SLEEPS])
def test_an_interrupt_before_a_pass_leaves_the_team_usable(error, pause):
    """As Ctrl-C does, when it comes after the other threads were woken and before the first one has begun."""
    counted, team = Counted(), team_of(3)

    def interrupted(*arguments):
        if arguments[-1] == 0:
            time.sleep(pause)
            raise error
        count(*arguments)

    for _ in range(3):
        counted.run(team)
        with pytest.raises(error):
            counted.run(team, interrupted)
        counted.run(team)
    counted.assert_right()


def test_an_interrupt_after_a_pass_leaves_the_team_usable():
    counted, team = Counted(), team_of(3)

    def interrupted(*arguments):
        count(*arguments)
        if arguments[-1] == 0:
            raise KeyboardInterrupt

    for _ in range(20):
        with pytest.raises(KeyboardInterrupt):
            counted.run(team, interrupted)
        counted.passes += 1  # the kernel had done its work
        counted.run(team)
    counted.assert_right()


RUN_IN_A_FORK = """
import os, sys
from test_thread_team import Counted, Team
before = Counted()
before.run(Team(2))
child = os.fork()
counted = Counted()
team = Team(2)
for _ in range(20):
    counted.run(team)
counted.assert_right()
if child == 0:
    os._exit(0)
sys.exit(os.waitpid(child, 0)[1])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_new_team_works_in_a_fork():
    command = [sys.executable, "-W", "ignore", "-c", RUN_IN_A_FORK]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, Path(__file__).parents[:2]))}
    assert subprocess.run(command, env=environment, check=False, timeout=HANGS).returncode == 0


@pytest.mark.parametrize("given", [0, 1])
def test_fewer_threads_than_asked_for_do_all_the_work(monkeypatch, caplog, given):
    started, start = [], threading.Thread.start

    def limited(thread):
        if len(started) == given:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    team, counted = Team(3), Counted()
    assert team.n_threads == given + 1
    assert caplog.messages == [
        f"the system allows only {given + 1} of 3 threads: the text will be the same, but slower"
    ]
    for _ in range(20):
        counted.run(team)
    counted.assert_right()


@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_the_measurement_of_bandwidth_reads_everything_once(n_threads):
    """Random whole numbers: a block that is left out or read twice changes their sum."""
    n_blocks, job = 5, next(_jobs)
    data = np.random.default_rng(0).integers(0, 8, (n_blocks, PROBE_BLOCK // 4)).astype(np.float32)
    sums = np.zeros((n_threads, LANES), np.float32)
    for passes in range(1, 4):
        team_of(n_threads).run(kernel("bandwidth.passes"), job, data, n_blocks, sums)
        assert sums.sum(dtype=np.float64) == passes * data.sum(dtype=np.float64)
