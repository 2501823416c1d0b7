"""What the CPU can do for which machine code is made: that of this machine, unless another one is assumed."""

from __future__ import annotations

import ctypes
import functools
import platform
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import llvmlite.binding as llvm

from cpu_kernels.runtime import amx

ARM64 = ("aarch64", "arm64")
"""What systems call the 64-bit architecture of ARM, in lower case: Linux and Windows, macOS."""

# Each feature by LLVM's name, and how a system is asked for it. Linux: the entry of the auxiliary vector, 16 (AT_HWCAP)
# or 26 (AT_HWCAP2), and the bit, see asm/hwcap.h. macOS: the name for sysctl. Windows: the number for
# IsProcessorFeaturePresent, see winnt.h.
_ARM64_FEATURES = {
    "dotprod": ((16, 20), "hw.optional.arm.FEAT_DotProd", 43),
    "i8mm": ((26, 13), "hw.optional.arm.FEAT_I8MM", 66),
}


class Cpu(NamedTuple):
    """A CPU as LLVM describes it."""

    triple: str  # its architecture and operating system
    name: str
    features: Mapping[str, bool]  # what is known of what it can do

    @property
    def flags(self) -> str:
        """The features as LLVM takes them."""
        return ",".join(f"{'+' if has else '-'}{name}" for name, has in sorted(self.features.items()))

    def has(self, *features: str) -> bool:
        """Whether it has all of these features."""
        return all(self.features.get(feature, False) for feature in features)


_assumed: list[Cpu] = []


def assume(cpu: Cpu) -> None:
    """Make machine code for another CPU from now on: before anything else of `cpu_kernels` is imported."""
    _assumed[:] = [cpu]


def cpu() -> Cpu:
    """The CPU for which machine code is made."""
    return _assumed[0] if _assumed else this_cpu()


@functools.cache
def this_cpu() -> Cpu:
    """The CPU of this machine, which is asked once: that takes a third of a millisecond."""
    return Cpu(llvm.get_process_triple(), llvm.get_host_cpu_name(), _features())


def _features() -> dict[str, bool]:
    """What this CPU can do, and the system lets this process do.

    LLVM asks an x86 CPU itself. On ARM only the system can be asked: LLVM does so on Linux for a few features, of which
    the dot product is none, and elsewhere goes by the name of the CPU, if at all.
    """
    try:
        features = dict(llvm.get_host_cpu_features())
    except RuntimeError:  # LLVM cannot tell on this system
        features = {}
    if features.get("amx-tile") and not amx.is_permitted():
        features["amx-tile"] = False
    if platform.machine().lower() in ARM64:
        features |= {"fp-armv8": True, "neon": True}  # of every such CPU
        for name, (linux, mac_os, windows) in _ARM64_FEATURES.items():
            if sys.platform == "linux":
                has = _linux_has(*linux)
            elif sys.platform == "darwin":
                has = _mac_os_has(mac_os)
            elif sys.platform == "win32":
                has = _windows_has(windows)
            else:
                has = False
            if has:
                features[name] = True
    return features


def _linux_has(entry: int, bit: int) -> bool:
    """Whether a bit is set in an entry of the auxiliary vector, which the kernel gives to every process."""
    try:
        getauxval = ctypes.CDLL(None).getauxval
    except (OSError, AttributeError):  # a C library without it
        return False
    getauxval.restype, getauxval.argtypes = ctypes.c_ulong, [ctypes.c_ulong]
    return bool(getauxval(entry) >> bit & 1)


def _mac_os_has(name: str) -> bool:
    """Whether a value of sysctl is there and not zero."""
    try:
        sysctl = ctypes.CDLL(None).sysctlbyname
    except (OSError, AttributeError):
        return False
    value, size = ctypes.c_int64(0), ctypes.c_size_t(8)  # some values have four bytes, the lower ones
    failed = sysctl(name.encode(), ctypes.byref(value), ctypes.byref(size), None, ctypes.c_size_t(0))
    return failed == 0 and value.value != 0


def _windows_has(number: int) -> bool:
    """Whether Windows says that the processor has a feature."""
    library: Any = getattr(ctypes, "windll", None)
    return bool(library.kernel32.IsProcessorFeaturePresent(number)) if library else False
