"""Compile beforehand what the first runs would compile: the kernels for this CPU, and for GPUs."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from rwkv_cli import machine, paths
from rwkv_cli.engine.backends.registry import Compiling, why_not_cuda
from rwkv_cli.engine.gpu import probe
from rwkv_cli.engine.gpu.kernel_sources import KINDS
from rwkv_cli.errors import DeviceError, StorageError


@dataclass(frozen=True)
class Warmed:
    """Kernels that are in the cache now."""

    target: str  # the processor that they are for
    folder: Path
    is_new: bool  # False if all of them were there already


def warm_up_cpu(compiling: Compiling) -> Warmed:
    """Compile all kernels for this CPU: of models, of the tokenizer and of `rwkv bench`.

    Raises DeviceError if they cannot be compiled, StorageError if they cannot be kept.
    """
    try:
        from cpu_kernels.runtime import aot, cache, compiler, instructions, prebuilt
    except (ImportError, ValueError) as error:  # LLVM is broken, or RWKV_CPU_KERNEL is wrong
        raise DeviceError(f"the CPU kernels cannot run: {error}") from None
    missing = [name for name in compiler.ENTRY_POINTS if not aot.is_compiled(name)]
    try:
        with compiling("CPU") if missing else nullcontext():
            aot.compile_missing(missing)
            for name in missing:
                aot.kernel(name)
    except compiler.CompilationError as error:
        raise DeviceError(f"the CPU kernels cannot run: {error}") from None
    if not all(map(aot.is_compiled, missing)):
        raise StorageError(
            f"the kernels cannot be kept in the cache folder {paths.cache_folder()}: "
            "set RWKV_CACHE_DIR to a folder that can be written"
        )
    target = prebuilt.target()
    is_prebuilt = target is not None and all(map(prebuilt.read, compiler.ENTRY_POINTS))
    folder = prebuilt.FOLDER / target if target and is_prebuilt else cache.folder()
    return Warmed(f"{machine.cpu_name()} ({instructions.CHOSEN})", folder, bool(missing))


def why_no_gpu() -> str | None:
    """Why the first GPU of this machine cannot be used, or None if it can."""
    return why_not_cuda("int8")


def own_capability() -> tuple[int, int]:
    """The compute capability of the first GPU. Raises DeviceError if there is none."""
    return probe.gpus()[0].capability


def warm_up_gpu(capability: tuple[int, int], compiling: Compiling) -> Warmed:
    """Compile the kernels for GPUs of a compute capability, for all types of weights; no GPU is needed.

    Raises DeviceError if they cannot be compiled, StorageError if they cannot be kept.
    """
    shown, architecture = ".".join(map(str, capability)), "".join(map(str, capability))
    if reason := probe.too_old("such a GPU", capability):
        raise DeviceError(reason)
    if not probe.is_backend_installed():
        raise DeviceError(probe.NOT_INSTALLED)
    try:
        return _compiled_for(shown, architecture, compiling)
    except Exception as error:
        if not type(error).__module__.startswith("cuda."):  # which have no public base class
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DeviceError(
            f"the kernels for compute capability {shown} cannot be compiled: {reason}"
        ) from error


def _compiled_for(shown: str, architecture: str, compiling: Compiling) -> Warmed:
    from rwkv_cli.engine.gpu import nvrtc

    missing = [kind for kind in KINDS if not nvrtc.is_compiled(kind, architecture)]
    with compiling("kind of GPU") if missing else nullcontext():
        for kind in missing:
            nvrtc.compile_and_keep(kind, architecture)
    if not all(nvrtc.is_compiled(kind, architecture) for kind in missing):
        raise StorageError(
            f"the kernels cannot be kept in the cache folder {paths.cache_folder()}: "
            "set RWKV_CACHE_DIR to a folder that can be written"
        )
    return Warmed(f"compute capability {shown}", nvrtc.folder(), bool(missing))
