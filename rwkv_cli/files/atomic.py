"""Atomic writes: files are written beside their target, flushed to disk and renamed into place.

What killed processes left behind in a folder is removed when something is written into it: see
`cpu_kernels.runtime.leftovers`.

A file that is replaced keeps its permissions. One with private text is readable by its owner only from the beginning.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from cpu_kernels.runtime.leftovers import remove_leftovers as remove_leftovers
from cpu_kernels.runtime.leftovers import temporary_beside
from rwkv_cli import paths
from rwkv_cli.errors import StorageError
from rwkv_cli.reporting import format_size

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}


def mode_for(target: Path, private: bool = False) -> int | None:
    """The permissions of a new file: those of the file that it replaces, or the owner's only; None for the default."""
    try:
        return stat.S_IMODE(target.stat().st_mode) & 0o777
    except OSError:
        return 0o600 if private else None


def create(temporary: Path, target: Path, private: bool = False) -> BinaryIO:
    """Create a temporary file that is to replace `target`, with its permissions. Raises OSError."""
    mode = mode_for(target, private)
    # Narrow at first: nobody else may open what is not private only later.
    number = os.open(
        temporary,
        os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0),
        0o666 if mode is None else 0o600,
    )
    if mode is not None and mode != 0o600:
        with contextlib.suppress(OSError):  # a file system without permissions
            temporary.chmod(mode)
    return os.fdopen(number, "w+b")


@contextmanager
def replacing(target: Path, private: bool = False) -> Iterator[Path]:
    """A path to write to, which is flushed to disk and renamed to `target` at the end, or removed after an error.

    A link stays a link: what it points to is replaced. `private` is for texts of the user: see `mode_for`. Raises
    StorageError.
    """
    temporary = None
    try:
        if target.is_symlink():
            target = Path(os.path.realpath(target))
        temporary = temporary_beside(target)
        create(temporary, target, private).close()
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        raise storage_error(target, error) from None
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def storage_error(path: Path, error: OSError, needed: int | None = None) -> StorageError:
    """One sentence about a file that cannot be written; `needed` is its size in bytes, if known.

    In a folder of this program, it names the variable that sets another one.
    """
    hint = paths.hint(path)
    if error.errno in _NO_SPACE:
        reason = "no space left on the disk"
    elif error.errno == errno.EFBIG:
        reason = "the file would be larger than this disk or account allows"
    elif isinstance(error, FileNotFoundError):
        return StorageError(f"cannot write {path}: the folder {path.parent} does not exist{hint}")
    elif isinstance(error, PermissionError):
        return StorageError(f"cannot write {path}: no permission to write in {path.parent}{hint}")
    else:
        reason = (error.strerror or str(error)).lower()
    size = f" (needs {format_size(needed)})" if needed else ""
    return StorageError(f"cannot write {path}: {reason}{size}{hint}")
