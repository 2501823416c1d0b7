"""Intel's AMX: whether Linux lets this process use its tile registers, which it has to be asked for.

A process has to ask since a tile register file is 8 KB, which the kernel then keeps for each thread that uses it. What
it grants holds for all threads of the process, those to come included, and for processes that it forks.
"""

from __future__ import annotations

import ctypes
import functools
import platform
import sys

_ARCH_PRCTL = 158  # the number of the system call on x86-64
_GET_PERMISSION, _REQUEST_PERMISSION = 0x1022, 0x1023  # ARCH_GET_XCOMP_PERM, ARCH_REQ_XCOMP_PERM
_TILE_DATA = 18  # XFEATURE_XTILE_DATA, a bit of the permissions


@functools.cache
def is_permitted() -> bool:
    """Ask Linux for the tile registers, for all threads of this process; False if it refuses, or on other systems."""
    if sys.platform != "linux" or platform.machine() != "x86_64" or sys.maxsize < 1 << 32:
        return False
    try:
        system_call = ctypes.CDLL(None).syscall
    except (OSError, AttributeError):
        return False
    system_call.restype = ctypes.c_long
    granted = ctypes.c_uint64()
    request = (ctypes.c_long(_ARCH_PRCTL), ctypes.c_long(_REQUEST_PERMISSION), ctypes.c_long(_TILE_DATA))
    question = (ctypes.c_long(_ARCH_PRCTL), ctypes.c_long(_GET_PERMISSION), ctypes.byref(granted))
    return system_call(*request) == 0 == system_call(*question) and bool(granted.value >> _TILE_DATA & 1)
