"""Locks, on file systems that have them and on those that do not."""

import errno
import os
import subprocess
import sys

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
        leftovers.this_process().replace(str(os.getpid()), str(dead.pid))
    )
    with locked(path):
        pass


@pytest.mark.parametrize("content", ["", "junk", "00000000-1", "00000000-99999999999"])
def test_a_holder_that_cannot_be_asked_is_not_taken_for_dead(tmp_path, content):
    (tmp_path / "x").write_text(content)
    assert not leftovers.is_dead_holder(tmp_path / "x")


def test_other_failures_are_raised(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError), locked(tmp_path / "file" / "x.lock"):
        pass
