"""Compiles entry points: Numba turns functions into LLVM IR, which LLVM optimizes and turns into machine code.

Numba by itself optimizes each function together with all that it calls, generates machine code for it, and wraps it for
Python, since any function may be called from Python. Here only the entry point is: `compile_as_a_whole` has Numba do no
more than type and lower the functions, and optimizes them once, as one module. That takes a third of the time. It
reaches into Numba's internals, which another release may have changed: `compile_entry_point` does not.

Neither depends on the machine that it runs on, but for what `cpu_kernels.runtime.host` says of it, so that machine code
can be built for other CPUs.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir

from cpu_kernels.runtime import host

ENTRY_POINTS = {
    "forward.passes": 6,
    "sampling.passes": 4,
    "bandwidth.passes": 6,
    "quantize.int4": 8,
    "trie.build": 6,
    "trie.pack": 4,
    "trie.longest_matches": 6,
}
"""module.function -> the number of its arguments."""

LIBRARY = {"memcpy", "memmove", "memset", "sqrtf", "sched_yield", "SwitchToThread"}
"""External functions that an entry point may call: those of C and of the operating system."""


class CompilationError(RuntimeError):
    """An entry point cannot be compiled on this machine."""


def compile_entry_point(name: str) -> bytes:
    """The object file of an entry point, as a C function of the same name; by Numba's public interface alone.

    Raises CompilationError if its machine code would need Numba's runtime, and whatever Numba does.
    """
    overload, signature = _compiled_by_numba(name)
    module = llvm.parse_assembly(overload.library.get_llvm_str())
    return _object_file(name, module, overload.fndesc.llvm_func_name, len(signature))


def compile_as_a_whole(name: str) -> bytes:
    """The same, in a third of the time: for a process in which nothing else is done with Numba."""
    with _lowering_only():
        overload, signature = _compiled_by_numba(name)
    module = _linked(overload.library)
    machine = target_machine()
    module.triple, module.data_layout = machine.triple, str(machine.target_data)
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    options.loop_vectorization, options.slp_vectorization = True, False  # as Numba does
    passes = llvm.create_pass_builder(machine, options)
    passes.getModulePassManager().run(module, passes)
    return _object_file(name, module, overload.fndesc.llvm_func_name, len(signature))


def _compiled_by_numba(name: str) -> tuple[Any, tuple[Any, ...]]:
    """What Numba makes of an entry point, and its signature."""
    from numba import njit, types

    module_name, function_name = name.split(".")
    function = getattr(importlib.import_module(f"cpu_kernels.{module_name}"), function_name)
    signature = (types.int64,) * ENTRY_POINTS[name]
    compiled = njit(no_cpython_wrapper=True, no_cfunc_wrapper=True)(function)
    compiled.compile(signature)
    return compiled.overloads[signature], signature


@contextmanager
def _lowering_only() -> Iterator[None]:
    """Have Numba only type and lower functions: without optimization, machine code, and wrappers for Python.

    Nothing that Numba compiles meanwhile can be called from Python, even later.
    """
    from numba import _dynfunc
    from numba.core import codegen, cpu

    class Lowered(codegen.JITCodeLibrary):  # type: ignore[misc]
        """The unoptimized module of a function, and the libraries of those that it calls."""

        def _optimize_functions(self, module: Any) -> None:
            module.data_layout = self._codegen._data_layout

        def finalize(self) -> None:
            self._raise_if_finalized()
            self._finalized = True

    def function_object(_context: Any, library: Any, described: Any, environment: Any) -> Any:
        """An object that stands for a function in Numba's tables, each for one; it has no address."""
        name = described.qualname.rpartition(".")[2]
        return _dynfunc.make_function(described.lookup_module(), name, "", 1, environment, (library,))

    replaced = [
        (codegen.JITCPUCodegen, "_library_class", Lowered),
        (cpu.CPUContext, "create_cpython_wrapper", lambda *_, **__: None),
        (cpu.CPUContext, "create_cfunc_wrapper", lambda *_, **__: None),
        (cpu.CPUContext, "get_executable", function_object),
    ]
    before = [(owner, name, vars(owner)[name]) for owner, name, _ in replaced]
    for owner, name, value in replaced:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def _linked(root: Any) -> Any:
    """The module of a library together with those of all that it calls."""
    libraries, found = [root], {id(root): root}
    for library in libraries:
        for called in library._linking_libraries:
            if found.setdefault(id(called), called) is called and called not in libraries:
                libraries.append(called)
    module = root._final_module
    for library in libraries[1:]:
        for function in library._final_module.functions:
            if not function.is_declaration and function.linkage == llvm.Linkage.external:
                function.linkage = llvm.Linkage.linkonce_odr
        module.link_in(library._final_module, preserve=True)
    return module


def _object_file(name: str, module: Any, native: str, n: int) -> bytes:
    """The object file of an optimized module in which Numba's function of n integers is called `native`."""
    module.link_in(llvm.parse_assembly(_c_function(name, native, n)))
    # LLVM aborts the process when it loads code with a missing symbol: better to find it here.
    outside = {value.name for value in (*module.functions, *module.global_variables) if value.is_declaration}
    missing = sorted(symbol for symbol in outside - LIBRARY if not symbol.startswith("llvm."))
    if missing:
        raise CompilationError(f"{name} needs what only Numba has: {', '.join(missing)}")
    return bytes(target_machine().emit_object(module))


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


def target_machine() -> Any:
    """The `llvm.TargetMachine` of the CPU that `host` describes, with all its features."""
    cpu = host.cpu()
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    target = llvm.Target.from_triple(cpu.triple)
    return target.create_target_machine(
        cpu=cpu.name,
        features=cpu.flags,
        opt=3,
        # Not position-independent, and anywhere in memory: the options that Numba itself uses.
        reloc="static" if target.name.startswith("x86") else "default",
        codemodel="jitdefault",
        jit=True,
    )
