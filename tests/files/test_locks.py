"""Locks between programs, also where a file system has none."""

import errno
import os
import warnings

import pytest

from rwkv_cli.files.locks import Lock
from rwkv_cli.sessions import state_store

fcntl = pytest.importorskip("fcntl")


def test_one_program_at_a_time(tmp_path):
    one, other = Lock(tmp_path / "x.lock"), Lock(tmp_path / "x.lock")
    assert one.acquire(wait=False)
    assert not other.acquire(wait=False)
    one.release()
    assert other.acquire(wait=False)
    other.release()


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
@pytest.mark.parametrize("wait", [True, False])
def test_a_file_system_without_locks(tmp_path, monkeypatch, caplog, code, wait):
    def flock(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    lock = Lock(tmp_path / "x.lock")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert lock.acquire(wait=wait)
        lock.release()
        monkeypatch.setenv("RWKV_DATA_DIR", str(tmp_path))
        with state_store.lock(tmp_path / "state.safetensors"):
            pass
    if code != errno.ENOSYS:  # the library has another way then
        assert "this file system has no locks; run one rwkv at a time there" in caplog.text


def test_other_failures_are_raised(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        Lock(tmp_path / "file" / "x.lock").acquire()
