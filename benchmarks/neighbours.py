"""How much CPU time other processes used during a measurement."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path


class Neighbours:
    """Measures from its creation on; Linux only, elsewhere it always says 0.

    Time that the hypervisor gave to other virtual machines (steal) counts as well.
    """

    def __init__(self, pids: Sequence[int]) -> None:
        """`pids` are our own processes, in addition to this one."""
        self._pids = pids
        self._start = time.monotonic()
        self._others = self._seconds()

    def cores(self) -> float:
        """Cores that other processes kept busy since then, on average."""
        elapsed = time.monotonic() - self._start
        return round(max(0.0, self._seconds() - self._others) / elapsed, 3)

    def _seconds(self) -> float:
        """CPU time of all other processes."""
        try:
            return _machine() - sum(_process(pid) for pid in [*self._pids, os.getpid()])
        except OSError:
            return 0.0


def _machine() -> float:
    """CPU seconds of all processes, and steal."""
    user, nice, system, _idle, _wait, irq, soft, steal = _numbers("/proc/stat", 1, 9)
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")


def _process(pid: int) -> float:
    """User and system seconds. The name in the second field may contain spaces, so fields are counted from its end."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _numbers(path: str, first: int, last: int) -> list[int]:
    """Fields of the first line of a file."""
    with Path(path).open(encoding="utf-8") as file:
        return [int(field) for field in file.readline().split()[first:last]]
