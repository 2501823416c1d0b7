"""Locks, on file systems that have them and on those that do not."""

import errno
import os
import subprocess
import sys
import threading
import time

import pytest

from cpu_kernels.runtime import leftovers
from rwkv_cli.files.lock import HeldError, locked

fcntl = pytest.importorskip("fcntl")


@pytest.fixture(params=[None, errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP], ids=str)
def path(request, monkeypatch, tmp_path):
    """A lock; with an error number, on a file system that answers with it."""

    def refuse(*_):
        raise OSError(request.param, os.strerror(request.param))

    if request.param:
        monkeypatch.setattr(fcntl, "flock", refuse)
    return tmp_path / "x.lock"


def test_one_at_a_time(path):
    with locked(path), pytest.raises(HeldError), locked(path):
        pass
    with locked(path):
        pass


def test_an_error_in_the_block_releases_it(path):
    with pytest.raises(KeyError), locked(path):
        raise KeyError
    with locked(path):
        pass


def test_it_is_waited_for(path):
    with locked(path):
        holder = path.with_name("x.lock-holder")
        if not holder.exists():
            return  # `FileLock` waits, and the test would
        waited = []

        def wait():
            waited.append(True)
            holder.unlink()

        with locked(path, wait):
            assert waited == [True]


def test_a_dead_holder_holds_nothing(path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    path.with_name("x.lock-holder").write_text(
        leftovers.this_process().replace(f"-{os.getpid()}", f"-{dead.pid}", 1)
    )
    with locked(path):
        pass


@pytest.mark.parametrize("content", ["", "junk", "00000000-1", "00000000-99999999999"])
def test_a_holder_that_cannot_be_asked_is_not_taken_for_dead(tmp_path, content):
    (tmp_path / "x").write_text(content)
    assert not leftovers.is_dead_holder(tmp_path / "x")


@pytest.mark.parametrize("content", ["", "junk", "00000000-99999999999"])
def test_a_holder_that_names_nobody_for_a_minute_is_dead(tmp_path, content):
    (tmp_path / "x").write_text(content)
    os.utime(tmp_path / "x", (time.time() - 61,) * 2)
    assert leftovers.is_dead_holder(tmp_path / "x")


@pytest.mark.parametrize("path", [errno.ENOLCK], indirect=True)
def test_a_full_disk_leaves_no_holder(path, monkeypatch):
    def fail():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr(leftovers, "this_process", fail)
        with pytest.raises(OSError), locked(path):
            pass
    with locked(path):
        pass


@pytest.mark.parametrize("path", [errno.ENOLCK], indirect=True)
def test_two_that_find_a_dead_holder_do_not_both_take_its_place(path, monkeypatch):
    """Both judge the holder dead before either removes it; the second goes on only after the first has the lock."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    holder = path.with_name("x.lock-holder")
    holder.write_text(leftovers.this_process().replace(f"-{os.getpid()}", f"-{dead.pid}", 1))
    judge, both, first_has_it = leftovers.is_dead_holder, threading.Barrier(2), threading.Event()
    judged, held = threading.local(), []

    def judged_together(file):
        verdict = judge(file)
        if not getattr(judged, "once", False):
            judged.once = True
            both.wait(10)
            if threading.current_thread().name == "second":
                first_has_it.wait(10)
        return verdict

    def take():
        try:
            with locked(path):
                held.append(threading.current_thread().name)
                first_has_it.set()
                if threading.current_thread().name == "first":
                    second.join(10)
        except HeldError:
            pass

    monkeypatch.setattr(leftovers, "is_dead_holder", judged_together)
    first, second = (threading.Thread(target=take, name=name) for name in ("first", "second"))
    first.start()
    second.start()
    first.join(10)
    assert held == ["first"]


def test_other_failures_are_raised(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError), locked(tmp_path / "file" / "x.lock"):
        pass
