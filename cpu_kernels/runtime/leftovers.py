"""Temporary files: their names tell who writes them, so that what a killed process left behind can be removed.

The work of a live process is never touched. A name has the machine and, for containers that share a folder, the
namespace of process numbers; a number that has been given to a younger process is told from its first owner by the
time of the last write.
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

# The name of the target, the machine and process that write it, and a random number.
_TEMPORARY = re.compile(
    r"\..+\.(?P<machine>[0-9a-f]{8})-(?P<process>[0-9]{1,10})-[0-9a-f]{8}\.tmp", re.DOTALL
)
_LONGEST_STEM = 150  # bytes: with the rest, a name stays below the 255 bytes that most systems allow
_A_DAY = 24 * 60 * 60  # seconds
_CLOCKS_DIFFER = 10  # seconds, at most, between the clocks of files and of processes


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
                    if _is_dead(match["machine"], int(match["process"]), written):
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
    """The machine and the number of this process, as names of temporary files have them."""
    return f"{_machine()}-{os.getpid()}"


def is_dead_holder(path: Path) -> bool:
    """Whether a file names, as `this_process` does, a process that is dead; false for one that is about to be named."""
    try:
        machine, _, process = path.read_text(encoding="ascii").partition("-")
        return (
            process.isdigit() and len(process) <= 10 and _is_dead(machine, int(process), path.stat().st_mtime)
        )
    except (OSError, ValueError):
        return False


def _is_dead(machine: str, process: int, written: float) -> bool:
    if machine != _machine():
        return time.time() - written > _A_DAY
    began = _began(process)
    return not _is_running(process) or (began is not None and began > written + _CLOCKS_DIFFER)


def _machine() -> str:
    try:
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        namespace = ""
    return f"{zlib.crc32((platform.node() + namespace).encode('utf-8', 'surrogateescape')):08x}"


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


def _began(process: int) -> float | None:
    """When a process began, in seconds since 1970, where Linux tells; otherwise None."""
    try:
        fields = (
            Path(f"/proc/{process}/stat")
            .read_text(encoding="ascii", errors="replace")
            .rpartition(")")[2]
            .split()
        )
        boot = re.search(r"^btime (\d+)$", Path("/proc/stat").read_text(encoding="ascii"), re.MULTILINE)
        return int(boot[1]) + int(fields[19]) / os.sysconf("SC_CLK_TCK") if boot else None
    except (OSError, ValueError, IndexError):
        return None
