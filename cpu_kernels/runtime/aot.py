"""Entry points as functions: compiled ahead of time, and loaded by LLVM alone.

Their machine code comes with the installation (`cpu_kernels.runtime.prebuilt`), or is compiled once
(`cpu_kernels.runtime.isolated`) and kept (`cpu_kernels.runtime.cache`). Importing Numba takes a third of a second and
60 MB, so a run that does not compile does not import it.

An entry point is a function of a module of kernels, without a decorator, whose arguments are 64-bit integers: numbers,
and the addresses of arrays. It raises nothing and allocates nothing, so that its machine code does not need Numba's
runtime.
"""

from __future__ import annotations

import ctypes
import functools
import os
import threading
from collections.abc import Callable, Iterable
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from numpy.typing import NDArray

from cpu_kernels.runtime import cache, compiler, host, isolated, prebuilt
from cpu_kernels.runtime.compiler import ENTRY_POINTS, CompilationError
from cpu_kernels.runtime.instructions import CHOSEN

LARGEST = "forward.passes"

Argument = int | NDArray[Any]
"""Of an entry point: an integer, or a contiguous array that stands for its address."""

_one_at_a_time = threading.Lock()
_loaded = set[str]()  # names of entry points


def _after_fork() -> None:
    """In the child, which has none of its parent's threads, so that nobody would release the lock."""
    global _one_at_a_time
    _one_at_a_time = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def is_compiled(name: str) -> bool:
    """Whether the installation or the cache has an entry point, so that `kernel` need not compile it."""
    return _stored(name) is not None


def is_loaded(name: str) -> bool:
    """Whether this process has used an entry point, so that `kernel` gives it at once, wherever it came from."""
    return name in _loaded


def compile_missing(names: Iterable[str]) -> None:
    """Compile those entry points that neither the installation nor the cache has; on all processors.

    One that cannot be compiled or kept is left to `kernel`. Raises CompilationError if a compiler dies.
    """
    missing = [name for name in names if not is_compiled(name)]
    # By far the largest one takes as long as all others.
    parts = [
        tuple(name for name in missing if (name == LARGEST) == is_largest) for is_largest in (True, False)
    ]
    jobs = [_job(part) for part in parts if part]
    for codes in isolated.compiled(jobs):
        for name, code in codes.items():
            cache.write(name, code)


def _job(names: tuple[str, ...]) -> isolated.Job:
    return isolated.Job(names, host.this_cpu(), CHOSEN)


def kernel(name: str) -> Callable[..., int]:
    """An entry point, as a function of integers and contiguous arrays, which stand for their addresses.

    It returns an integer: 0 if the entry point returns nothing. It releases the GIL, and raises TypeError for a wrong
    number of arguments, ValueError for an array that is not contiguous. Raises CompilationError if it cannot be
    compiled on this machine.
    """
    with _one_at_a_time:
        return _kernel(name)


@functools.cache
def _kernel(name: str) -> Callable[..., int]:
    code = _stored(name)
    if code is None:
        [codes] = isolated.compiled([_job((name,))])
        if codes:
            code = codes[name]
            cache.write(name, code)
        else:
            code = _compiled_here(name)
    # An engine for each entry point: symbol names are unique only within the compiling process.
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), compiler.target_machine())
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    function = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * ENTRY_POINTS[name])(
        engine.get_function_address(name)
    )
    function.engine = engine  # type: ignore[attr-defined]  # keeps the machine code alive
    _loaded.add(name)

    def call(*arguments: Argument) -> int:
        # Not by `from_param` of ctypes, which turns a KeyboardInterrupt into ArgumentError.
        return int(function(*map(_integer, arguments)))

    return call


def _stored(name: str) -> bytes | None:
    """The machine code of an entry point, if it need not be compiled."""
    code = prebuilt.read(name)
    return cache.read(name) if code is None else code


def _compiled_here(name: str) -> bytes:
    """The object file of an entry point, where no other process can compile it."""
    is_pure = not isolated.has_settings()
    try:
        code = compiler.compile_entry_point(name)
    except Exception as error:  # whatever Numba or the settings that it found come up with
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CompilationError(f"Numba cannot compile {name} ({reason[:200]})") from error
    if is_pure:
        cache.write(name, code)
    return code


def _integer(argument: Argument) -> int:
    return address(argument) if isinstance(argument, np.ndarray) else int(argument)


def address(array: NDArray[Any]) -> int:
    """The address of a contiguous array. Raises ValueError for any other."""
    if not array.flags.c_contiguous:
        raise ValueError("a kernel needs a contiguous array")
    return int(array.ctypes.data)
