"""The GPUs of this machine, according to the NVIDIA driver, without any package: every run asks for them first."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import sys
from typing import Any, NamedTuple

from rwkv_cli.errors import DeviceError

OLDEST = (7, 5)
"""The lowest compute capability: dot products of bytes, and float16 on tensor cores."""

NO_GPU = "there is no NVIDIA GPU"
NOT_INSTALLED = "the CUDA backend is not installed: in the folder of rwkv's sources, pip install '.[cuda]'"

_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # CUdevice_attribute
_NAME_BYTES = 256


class GpuFacts(NamedTuple):
    """A GPU of this machine."""

    name: str
    capability: tuple[int, int]  # compute capability
    memory_bytes: int
    cuda: str  # the newest CUDA version that the driver supports

    def __str__(self) -> str:
        major, minor = self.capability
        size = f"{self.memory_bytes / 1e9:.1f} GB"
        return f"{self.name}, compute capability {major}.{minor}, {size}, driver for CUDA {self.cuda}"


@functools.cache
def gpus() -> tuple[GpuFacts, ...]:
    """All of them; the first one is used. Raises DeviceError with the reason if there are none."""
    library = _library()
    if library is None:
        raise DeviceError(NO_GPU)
    version, count = ctypes.c_int(), ctypes.c_int()
    _call(library, "cuInit", 0)
    _call(library, "cuDriverGetVersion", ctypes.byref(version))
    _call(library, "cuDeviceGetCount", ctypes.byref(count))
    if not count.value:
        raise DeviceError(NO_GPU)
    cuda = f"{version.value // 1000}.{version.value % 1000 // 10}"
    return tuple(_facts(library, i, cuda) for i in range(count.value))


def described() -> list[str]:
    """Name, compute capability, memory and driver of each GPU; empty if there are none."""
    try:
        return [str(gpu) for gpu in gpus()]
    except DeviceError:
        return []


def is_backend_installed() -> bool:
    """Whether the packages of the extra are installed; importing them would take half a second."""
    try:
        return importlib.util.find_spec("cuda.core") is not None
    except ImportError:  # there is not even a package `cuda`
        return False


def too_old(name: str, capability: tuple[int, ...]) -> str | None:
    """The reason why a GPU cannot be used, if it is too old; otherwise None."""
    if capability >= OLDEST:
        return None
    has, needed = (f"{major}.{minor}" for major, minor in (capability, OLDEST))
    return f"{name} is too old: it has compute capability {has}, and {needed} is needed"


def _facts(library: Any, index: int, cuda: str) -> GpuFacts:
    device, major, minor, size = ctypes.c_int(), ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
    name = ctypes.create_string_buffer(_NAME_BYTES)
    _call(library, "cuDeviceGet", ctypes.byref(device), index)
    _call(library, "cuDeviceGetName", name, _NAME_BYTES, device)
    _call(library, "cuDeviceGetAttribute", ctypes.byref(major), _CAPABILITY_MAJOR, device)
    _call(library, "cuDeviceGetAttribute", ctypes.byref(minor), _CAPABILITY_MINOR, device)
    _call(library, "cuDeviceTotalMem_v2", ctypes.byref(size), device)
    return GpuFacts(name.value.decode(errors="replace"), (major.value, minor.value), size.value, cuda)


def _library() -> Any:
    """The driver's library; None if there is no driver."""
    try:
        if sys.platform == "win32":
            return ctypes.WinDLL("nvcuda.dll")
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None


def _call(library: Any, name: str, *args: Any) -> None:
    if (code := getattr(library, name)(*args)) == _NO_DEVICE:
        raise DeviceError(NO_GPU)
    if code:
        raise DeviceError(f"the NVIDIA driver cannot be used: {name} gave {code}")
