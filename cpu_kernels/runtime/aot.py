"""Ahead-of-time compilation: entry points compiled by Numba once, cached on disk, and loaded by LLVM alone.

Importing Numba takes a third of a second and 60 MB: a run that finds its machine code in
`cpu_kernels.runtime.cache` does not import it, and another one has `cpu_kernels.runtime.isolated` compile it.

An entry point is a function of a module of kernels, without a decorator, whose arguments are 64-bit integers: numbers,
and the addresses of arrays. It raises nothing and allocates nothing, so that its machine code does not need Numba's
runtime.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import os
import threading
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from cpu_kernels.runtime import cache, isolated
from cpu_kernels.runtime.host import host_features
from cpu_kernels.runtime.isolated import CompilationError

ENTRY_POINTS = {
    "forward.passes": 6,
    "sampling.passes": 4,
    "bandwidth.passes": 6,
    "trie.build": 6,
    "trie.pack": 4,
    "trie.longest_matches": 6,
}
"""module.function -> the number of its arguments."""

Argument = int | NDArray[Any]
"""Of an entry point: an integer, or a contiguous array that stands for its address."""

LIBRARY = {"memcpy", "memmove", "memset", "sqrtf", "sched_yield", "SwitchToThread"}
"""External functions that an entry point may call: those of C and of the operating system."""

_one_at_a_time = threading.Lock()


def _after_fork() -> None:
    """In the child, which has none of its parent's threads, so that nobody would release the lock."""
    global _one_at_a_time
    _one_at_a_time = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def is_compiled(name: str) -> bool:
    """Whether the cache has an entry point, so that `kernel` need not compile it."""
    return cache.read(name) is not None


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
    code = cache.read(name)
    if code is None:
        code = isolated.compiled(name)
        if code is not None:
            cache.write(name, code)
        else:
            code = _compiled_here(name)
    # An engine for each entry point: symbol names are unique only within the compiling process.
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _target_machine())
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    function = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * ENTRY_POINTS[name])(
        engine.get_function_address(name)
    )
    function.engine = engine  # type: ignore[attr-defined]  # keeps the machine code alive

    def call(*arguments: Argument) -> int:
        # Not by `from_param` of ctypes, which turns a KeyboardInterrupt into ArgumentError.
        return int(function(*map(_integer, arguments)))

    return call


def _compiled_here(name: str) -> bytes:
    """The object file of an entry point, where no other process can compile it."""
    is_pure = not isolated.has_settings()
    try:
        code = compile_entry_point(name)
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


def compile_entry_point(name: str) -> bytes:
    """The object file of an entry point for this CPU, as a C function of the same name.

    Raises CompilationError if its machine code would need Numba's runtime, and whatever Numba does.
    """
    from numba import njit, types

    module_name, function_name = name.split(".")
    function = getattr(importlib.import_module(f"cpu_kernels.{module_name}"), function_name)
    n = ENTRY_POINTS[name]
    signature = (types.int64,) * n
    compiled = njit(no_cpython_wrapper=True, no_cfunc_wrapper=True)(function)
    compiled.compile(signature)
    module = llvm.parse_assembly(compiled.inspect_llvm(signature))
    # The functions that it calls are in the same module, but not external.
    [native] = [
        f.name for f in module.functions if not f.is_declaration and f.linkage == llvm.Linkage.external
    ]
    module.link_in(llvm.parse_assembly(_c_function(name, native, n)))
    # LLVM aborts the process when it loads code with a missing symbol: better to find it here.
    outside = {value.name for value in (*module.functions, *module.global_variables) if value.is_declaration}
    missing = sorted(symbol for symbol in outside - LIBRARY if not symbol.startswith("llvm."))
    if missing:
        raise CompilationError(f"{name} needs what only Numba has: {', '.join(missing)}")
    return bytes(_target_machine().emit_object(module))


def _c_function(name: str, native: str, n: int) -> str:
    """LLVM IR of a C function of n integers that calls a function compiled by Numba.

    Numba's take the addresses of a result and of an error as well, and return a status. Since entry points do not
    raise, the C function drops status and error, and returns the result, or 0 if there is none.
    """
    i32, i64 = ir.IntType(32), ir.IntType(64)
    address, module = i64.as_pointer(), ir.Module()
    numba_function = ir.Function(module, ir.FunctionType(i32, [address, address, *[i64] * n]), native)
    c_function = ir.Function(module, ir.FunctionType(i64, [i64] * n), name)
    builder = ir.IRBuilder(c_function.append_basic_block())
    result, error = builder.alloca(i64), builder.alloca(i64)
    builder.store(i64(0), result)
    builder.call(numba_function, [result, error, *c_function.args])
    builder.ret(builder.load(result))
    return str(module)


def _target_machine() -> Any:
    """The `llvm.TargetMachine` of this CPU, with all its features."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_default_triple()
    return target.create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=host_features().flatten(),
        opt=3,
        # Not position-independent, and anywhere in memory: the options that Numba itself uses.
        reloc="static" if target.name.startswith("x86") else "default",
        codemodel="jitdefault",
        jit=True,
    )
