"""Temporary files: their names tell who writes them, so that what a killed process left behind can be removed.

The work of a live process is never touched. A name has the machine and, for containers that share a folder, the
namespace of process numbers; a number that has been given to another process is told from its first owner by when that
began, counted from the start of the system: the clocks of file servers differ, and those of machines are set.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import sys
import time
import zlib
from pathlib import Path

_WRITER = r"(?P<machine>[0-9a-f]{8})-(?P<process>[0-9]{1,10})(?:-(?P<began>[0-9]{1,20}))?"
# The name of the target, the machine and process that write it, and a random number.
_TEMPORARY = re.compile(rf"\..+\.{_WRITER}-[0-9a-f]{{8}}\.tmp", re.DOTALL)
_LONGEST_STEM = 150  # bytes: with the rest, a name stays below the 255 bytes that most systems allow
_A_DAY = 24 * 60 * 60  # seconds
_A_MINUTE = 60  # seconds


def temporary_beside(path: Path) -> Path:
    """A new name for a temporary file in the folder of `path`, from which left-overs are removed."""
    remove_leftovers(path.parent)
    stem = path.name.encode("utf-8", "surrogateescape")[:_LONGEST_STEM].decode("utf-8", "ignore")
    return path.with_name(f".{stem}.{this_process()}-{os.urandom(4).hex()}.tmp")


def leftovers(folder: Path) -> list[Path]:
    """The temporary files and folders of processes that are dead. Raises nothing.

    A process on this machine can be asked for; one on another machine counts as dead after a day without a write.
    """
    found = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if match := _TEMPORARY.fullmatch(entry.name):
                with contextlib.suppress(OSError):
                    written = entry.stat(follow_symlinks=False).st_mtime
                    if _is_dead(match, written):
                        found.append(folder / entry.name)
    return found


def remove_leftovers(folder: Path) -> None:
    """Remove what `leftovers` finds, and nothing else. Raises nothing."""
    for path in leftovers(folder):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()


def this_process() -> str:
    """The machine and the number of this process, and when it began, as names of temporary files have them."""
    began = _began(os.getpid())
    return f"{_machine()}-{os.getpid()}" + (f"-{began}" if began else "")


def is_dead_holder(path: Path) -> bool:
    """Whether a file names, as `this_process` does, a process that is dead, or has named none for a minute.

    Its writer was killed, or found the disk full, before it could name itself.
    """
    try:
        written = path.stat().st_mtime
        match = re.fullmatch(_WRITER, path.read_bytes()[:100].decode("ascii", "replace"))
    except OSError:
        return False
    return _is_dead(match, written) if match else time.time() - written > _A_MINUTE


def _is_dead(writer: re.Match[str], written: float) -> bool:
    if writer["machine"] != _machine() or sys.platform == "win32":  # where os.kill would end the process
        return time.time() - written > _A_DAY
    process = int(writer["process"])
    return not _is_running(process) or (
        writer["began"] is not None and _began(process) not in (None, writer["began"])
    )


def _machine() -> str:
    try:
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        namespace = ""
    return f"{zlib.crc32((platform.node() + namespace).encode('utf-8', 'surrogateescape')):08x}"


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it belongs to another user
        return True
    return True


def _began(process: int) -> str | None:
    """When a process began, in clock ticks after the start of the system, where Linux tells; otherwise None."""
    try:
        status = Path(f"/proc/{process}/stat").read_text(encoding="ascii", errors="replace")
        return status.rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None
