"""The host: processor, memory, threads. Unknown facts are None."""

from __future__ import annotations

import functools
import os
import platform
import re
import shutil
import subprocess
import threading
from pathlib import Path
from typing import NamedTuple

_FEATURES = (
    "avx2 avxvnni avx512f avx512bw avx512vnni avx512bf16 avx10.1-512 amx-int8 neon dotprod i8mm sve sve2"
).split()


MOST_THREADS = 16


class Memory(NamedTuple):
    """In bytes."""

    total: int | None
    available: int | None  # without swapping


def system() -> str:
    """The operating system, its version and the kind of processor."""
    return f"{platform.system()} {platform.release()}, {platform.machine()}"


def cpu_name() -> str:
    """What its maker calls the CPU, or else its architecture."""
    found = re.search(r"^(?:model name|Hardware|Model)\s*:\s*(.+)$", _text("/proc/cpuinfo"), re.MULTILINE)
    if found:
        return found[1].strip()
    if platform.system() == "Darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.machine()
    return platform.processor() or platform.machine()


def cpu_features() -> list[str]:
    """The vector and dot-product instructions of the CPU, as LLVM names them."""
    from cpu_kernels.runtime.host import this_cpu

    return [*filter(this_cpu().has, _FEATURES)]


def usable_cores() -> int:
    """The number of processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def default_threads() -> int:
    """As many threads as there are processors to compute on: cores and not their hyper-threads, which share the units
    that compute; no more than a container's share; and at most 16, since memory is the limit long before.
    """
    return max(1, min(_physical_cores(), int(_container_share()), MOST_THREADS))


def l2_cache() -> int | None:
    """The bytes of L2 cache that each core has to itself, or its share of one; None if the system does not tell."""
    folder = "/sys/devices/system/cpu/cpu0/cache/index2/"
    size = re.fullmatch(r"(\d+)K", _text(folder + "size").strip())
    if size is None or _text(folder + "level").strip() != "2":
        return None
    siblings = _text("/sys/devices/system/cpu/cpu0/topology/thread_siblings_list")
    cores = _count(_text(folder + "shared_cpu_list")) // _count(siblings)
    return 1024 * int(size[1]) // max(cores, 1)


def _count(processors: str) -> int:
    """How many processors a list such as 0-3,8 has; at least one."""
    ranges = re.findall(r"(\d+)(?:-(\d+))?", processors)
    return sum(int(last or first) - int(first) + 1 for first, last in ranges) or 1


@functools.cache
def has_threads() -> bool:
    """Whether the system gives this process any more threads."""
    thread = threading.Thread(target=lambda: None, daemon=True)
    try:
        thread.start()
    except (RuntimeError, MemoryError):
        return False
    thread.join()
    return True


def _physical_cores() -> int:
    """The cores behind the processors that this process may run on."""
    if not hasattr(os, "sched_getaffinity"):
        return usable_cores()
    siblings = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    return len({_text(siblings.format(cpu)) or cpu for cpu in os.sched_getaffinity(0)})


def _container_share() -> float:
    """How many processors the control group of this process may use (cgroup v2: a quota in each period)."""
    found = re.match(r"(\d+) (\d+)", _text("/sys/fs/cgroup/cpu.max"))
    return int(found[1]) / int(found[2]) if found and int(found[2]) else usable_cores()


def memory() -> Memory:
    """The memory of the machine."""
    sizes = dict(re.findall(r"^(MemTotal|MemAvailable):\s+(\d+) kB", _text("/proc/meminfo"), re.MULTILINE))
    if len(sizes) == 2:
        return Memory(1024 * int(sizes["MemTotal"]), 1024 * int(sizes["MemAvailable"]))
    try:
        return Memory(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), None)
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf, others not these names
        return Memory(None, None)


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _output(command: str, *arguments: str) -> str:
    """What a command prints; nothing if it is missing, fails or hangs."""
    program = shutil.which(command)
    if program is None:
        return ""
    try:
        done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
