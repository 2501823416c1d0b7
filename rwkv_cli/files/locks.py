"""Locks between programs, in files: the only module that knows how they are made.

A lock ends with its program, however that ends. Some file systems have none (several kinds of network storage and of
mounts in user space): there the work is done without, after a note.
"""

from __future__ import annotations

import errno
import warnings
from pathlib import Path

from rwkv_cli.reporting import log

_UNSUPPORTED = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}


class Lock:
    """An exclusive lock on a file, which is made for it. Not held until `acquire`."""

    def __init__(self, file: Path) -> None:
        from filelock import FileLock

        self.file = file
        self._lock = FileLock(file, thread_local=False)

    def acquire(self, *, wait: bool = True) -> bool:
        """Take the lock; without `wait`, False if another program has it. Raises OSError if the file cannot be made."""
        from filelock import Timeout

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that the library has found another way
                self._lock.acquire(timeout=-1 if wait else 0)
        except Timeout:
            return False
        except (OSError, NotImplementedError) as error:
            if isinstance(error, OSError) and error.errno not in _UNSUPPORTED:
                raise
            log.warning("%s: this file system has no locks; run one rwkv at a time there", self.file.parent)
        return True

    def release(self) -> None:
        """Give the lock up, if it is held."""
        self._lock.release()
