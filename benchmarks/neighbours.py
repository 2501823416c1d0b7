"""How much of the machine others used while we measured."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path


class Neighbours:
    """Watches from when it is made; Linux only, elsewhere nobody is seen.

    What a virtual machine did not get (steal) counts as others' use too.
    """

    def __init__(self, pids: Sequence[int]) -> None:
        """`pids` are our processes, besides this one."""
        self._pids = pids
        self._start = time.monotonic()
        self._others = self._seconds()

    def cores(self) -> float:
        """Processors that others kept busy since then, in the mean."""
        elapsed = time.monotonic() - self._start
        return round(max(0.0, self._seconds() - self._others) / elapsed, 3)

    def _seconds(self) -> float:
        """Processor time of everybody else."""
        try:
            return _everybody() - sum(_process(pid) for pid in [*self._pids, os.getpid()])
        except OSError:
            return 0.0


def _everybody() -> float:
    user, nice, system, _idle, _wait, irq, soft, steal = _numbers("/proc/stat", 1, 9)
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")


def _process(pid: int) -> float:
    """User and system time; the name in the second field may hold spaces, so count from its end."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _numbers(path: str, first: int, last: int) -> list[int]:
    """Fields of the first line of a file."""
    with Path(path).open(encoding="utf-8") as file:
        return [int(field) for field in file.readline().split()[first:last]]
