"""Locks on files, also on file systems that have none: some of NFS, Lustre and FUSE.

There, a file beside the lock names the process that holds it, which ends with that process, as a lock does.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cpu_kernels.runtime import leftovers
from rwkv_cli import paths
from rwkv_cli.reporting import log

_UNSUPPORTED = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, getattr(errno, "ENOTSUP", errno.EOPNOTSUPP)}
_PAUSE = 0.2  # seconds between two looks at the file of another process


class HeldError(Exception):
    """Another program has the lock."""


def lock_file(path: Path) -> Path:
    """The lock for a file of the user: in the data folder, so that no lock files are left in other folders."""
    real = path.resolve()
    key = unicodedata.normalize("NFC", str(real)).casefold().encode("utf-8", "surrogateescape")
    return paths.data_folder() / "locks" / f"{hashlib.sha256(key).hexdigest()[:32]}.lock"


@contextmanager
def locked(path: Path, wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock `path`, whose folder exists, until the end of the block.

    While another program has it, calls `wait` once and waits; without `wait`, raises HeldError. Raises OSError if the
    lock cannot be created.
    """
    if _has_locks(path):
        from filelock import FileLock, Timeout

        lock = FileLock(path, timeout=0, thread_local=False)
        try:
            lock.acquire()
        except Timeout:
            if wait is None:
                raise HeldError from None
            wait()
            lock.acquire(timeout=-1)
        try:
            yield
        finally:
            lock.release()
        return
    log.info("%s is on a file system without locks: a file takes their place", path.parent)
    holder = path.with_name(f"{path.name}-holder")
    while not _take(holder):
        if wait is None:
            raise HeldError
        wait()
        while holder.exists() and not leftovers.is_dead_holder(holder):
            time.sleep(_PAUSE)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            holder.unlink(missing_ok=True)


def _has_locks(path: Path) -> bool:
    """Whether the file system of a lock has locks. Raises OSError if the file cannot be opened."""
    try:
        import fcntl
    except ImportError:  # Windows has other ones, everywhere
        return True
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                return False
            raise
    return True


def _take(holder: Path) -> bool:
    """Create the file of a holder; false if a live process has it. Raises OSError."""
    for _ in range(2):
        try:
            file = os.open(holder, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        except FileExistsError:
            if not leftovers.is_dead_holder(holder):
                return False
            _remove_dead(holder)
            continue
        try:
            with os.fdopen(file, "w", encoding="ascii") as opened:
                opened.write(leftovers.this_process())
        except BaseException:  # a full disk
            with contextlib.suppress(OSError):
                holder.unlink()
            raise
        return True
    return False


def _remove_dead(holder: Path) -> None:
    """Remove the file of a dead holder. Raises OSError.

    One process does so at a time, and looks again: otherwise a second one would remove the file of the first, which has
    meanwhile taken the lock.
    """
    turn = holder.with_name(f"{holder.name}-removal")
    try:
        os.close(os.open(turn, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        if leftovers.is_dead_holder(turn):  # it names nobody, and is old
            turn.unlink(missing_ok=True)
        return
    try:
        if leftovers.is_dead_holder(holder):
            holder.unlink(missing_ok=True)
    finally:
        turn.unlink(missing_ok=True)
