"""What the CPU of this machine can do, as far as the system tells."""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm

CPUINFO = Path("/proc/cpuinfo")


def host_features() -> Any:
    """What this CPU can do, by LLVM's names: a dict of bools, which `flatten` makes a text of.

    LLVM asks Linux on ARM for only some of them, and the name of the CPU need not tell the others.
    """
    features = llvm.get_host_cpu_features()
    if sys.platform == "linux" and platform.machine() == "aarch64":
        try:
            lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return features
        told = next((line.split() for line in lines if line.startswith("Features")), [])
        if "asimddp" in told:
            features["dotprod"] = True
    return features
