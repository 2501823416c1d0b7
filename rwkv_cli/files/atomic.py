"""Atomic writes: files are written beside their target, flushed to disk and renamed into place.

The name of a temporary file contains the process that writes it, so that what a killed process left behind can be
told from the work of a live one, and removed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import re
import secrets
import stat
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rwkv_cli.errors import StorageError
from rwkv_cli.reporting import format_size

# The name of the target, the host and process that write it, and a random number.
_TEMPORARY = re.compile(
    r"\..+\.(?P<machine>[0-9a-f]{8})-(?P<process>[0-9]{1,10})-[0-9a-f]{8}\.tmp", re.DOTALL
)
_LONGEST_STEM = 150  # bytes: with the rest, a name stays below the 255 bytes that most systems allow
_A_DAY = 24 * 60 * 60  # seconds
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}


def temporary_beside(path: Path) -> Path:
    """A new name for a temporary file in the folder of `path`."""
    stem = path.name.encode("utf-8", "surrogateescape")[:_LONGEST_STEM].decode("utf-8", "ignore")
    return path.with_name(f".{stem}.{_machine()}-{os.getpid()}-{secrets.token_hex(4)}.tmp")


def set_mode(temporary: Path, target: Path, private: bool = False) -> None:
    """Let a new file be read by whom the one may be that it replaces; a `private` new one by its owner alone.

    What cannot be set is left.
    """
    with contextlib.suppress(OSError):
        if target.exists():
            temporary.chmod(stat.S_IMODE(target.stat().st_mode))
        elif private:
            temporary.chmod(0o600)


@contextmanager
def replacing(target: Path, *, private: bool = False) -> Iterator[Path]:
    """A path to write to, which is flushed to disk and renamed to `target` at the end, or removed after an error.

    A new file that is `private` can be read by its owner alone; otherwise the mode is that of the file that is
    replaced. Raises StorageError.
    """
    temporary = temporary_beside(target)
    try:
        if private:
            temporary.touch(mode=0o600)
        yield temporary
        set_mode(temporary, target, private)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        raise storage_error(target, error) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of writers that were killed, and nothing else. Raises nothing.

    A writer on this machine is dead if its process is; one on another machine counts as dead after a day.
    """
    try:
        found = [(file, match) for file in folder.iterdir() if (match := _TEMPORARY.fullmatch(file.name))]
    except OSError:
        return
    for file, match in found:
        with contextlib.suppress(OSError):
            is_old = time.time() - file.stat().st_mtime > _A_DAY
            if is_old or (match["machine"] == _machine() and not _is_running(int(match["process"]))):
                file.unlink()


def _machine() -> str:
    return f"{zlib.crc32(platform.node().encode()):08x}"


def _is_running(process: int) -> bool:
    if sys.platform == "win32":
        return True  # where os.kill would end it
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it belongs to another user
        return True
    return True


def storage_error(path: Path, error: OSError, needed: int | None = None) -> StorageError:
    """One sentence about a file that cannot be written; `needed` is its size in bytes, if known."""
    if error.errno in _NO_SPACE:
        reason = "no space left on the disk"
    elif error.errno == errno.EFBIG:
        reason = "the file would be larger than this disk or account allows"
    elif isinstance(error, FileNotFoundError):
        return StorageError(f"cannot write {path}: the folder {path.parent} does not exist")
    elif isinstance(error, PermissionError):
        return StorageError(f"cannot write {path}: no permission to write in {path.parent}")
    else:
        reason = (error.strerror or str(error)).lower()
    return StorageError(
        f"cannot write {path}: {reason}" + (f" (needs {format_size(needed)})" if needed else "")
    )
