"""Entry points as machine code: compiled by Numba once, kept by `cpu_kernels.cache`, and loaded by LLVM alone.

Numba, with its way of loading what it has compiled, takes a third of a second and 60 MB: a run that finds machine code
does without it.

An entry point is a function of a module of kernels, without a decorator, that takes integers of 64 bits: numbers, and
the addresses of arrays. It raises nothing and makes no objects, so that its machine code needs nothing of Numba either.
"""

import ctypes
import functools
import importlib
import threading
from collections.abc import Callable

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir

from cpu_kernels import cache

ENTRY_POINTS = {
    "forward.passes": 6,
    "bandwidth.passes": 6,
    "trie.build": 6,
    "trie.pack": 4,
    "trie.longest_matches": 6,
}
"""module.function -> the number of its arguments."""

LIBRARY = {"memcpy", "memmove", "memset", "sqrtf", "sched_yield", "SwitchToThread"}
"""Functions outside of an entry point that it may call: those of C and of the operating system."""

_one_at_a_time = threading.Lock()


def is_compiled(name: str) -> bool:
    """Whether the cache holds an entry point, so that its first call comes at once."""
    return cache.read(name) is not None


def kernel(name: str) -> Callable[..., int]:
    """An entry point, as a function of integers and contiguous arrays, which stand for their addresses.

    It gives an integer, and 0 where the entry point gives nothing. While it runs, other threads can use Python.
    """
    with _one_at_a_time:
        return _kernel(name)


@functools.cache
def _kernel(name: str) -> Callable[..., int]:
    code = cache.read(name)
    if code is None:
        code = compile_entry_point(name)
        cache.write(name, code)
    # One engine for each: what entry points call has names that say something in the process that compiled it only.
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _target_machine())
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    function = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * ENTRY_POINTS[name])(
        engine.get_function_address(name)
    )
    function.engine = engine  # holds the machine code

    def call(*arguments: int | np.ndarray) -> int:
        # Not by `from_param` of ctypes, which makes another error of an interrupt that comes meanwhile.
        return function(*map(_integer, arguments))

    return call


def _integer(argument: int | np.ndarray) -> int:
    return address(argument) if isinstance(argument, np.ndarray) else int(argument)


def address(array: np.ndarray) -> int:
    """Where a contiguous array lies."""
    if not array.flags.c_contiguous:
        raise ValueError("a kernel needs a contiguous array")
    return array.ctypes.data


def compile_entry_point(name: str) -> bytes:
    """The object file of an entry point for this CPU, in which it is a C function of the same name."""
    from numba import njit, types

    module_name, function_name = name.split(".")
    function = getattr(importlib.import_module(f"cpu_kernels.{module_name}"), function_name)
    n = ENTRY_POINTS[name]
    signature = (types.int64,) * n
    compiled = njit(no_cpython_wrapper=True, no_cfunc_wrapper=True)(function)
    compiled.compile(signature)
    module = llvm.parse_assembly(compiled.inspect_llvm(signature))
    # What it calls is in the same module, but not for others to see.
    [native] = [
        f.name for f in module.functions if not f.is_declaration and f.linkage == llvm.Linkage.external
    ]
    module.link_in(llvm.parse_assembly(_c_function(name, native, n)))
    # LLVM ends the process where something is missing: that must not wait until the code is loaded.
    outside = {value.name for value in (*module.functions, *module.global_variables) if value.is_declaration}
    missing = sorted(each for each in outside - LIBRARY if not each.startswith("llvm."))
    if missing:
        raise RuntimeError(f"{name} needs what only Numba has: {', '.join(missing)}")
    return _target_machine().emit_object(module)


def _c_function(name: str, native: str, n: int) -> str:
    """LLVM's text of a C function of n integers that calls one of Numba's.

    These take the addresses of a result and of an error as well, and give a status. Since nothing raises, a C caller
    needs none of this: it gets the result, or 0 where there is none.
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


def _target_machine() -> llvm.TargetMachine:
    """This CPU, with all that it can do."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_default_triple()
    return target.create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=3,
        # Code that stays where it is loaded, anywhere in memory: as Numba has it.
        reloc="static" if target.name.startswith("x86") else "default",
        codemodel="jitdefault",
        jit=True,
    )
