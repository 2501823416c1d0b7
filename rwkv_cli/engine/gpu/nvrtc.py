"""The CUDA sources, compiled at first use for the GPU of this machine, and cached.

NVRTC compiles them: users need a driver and wheels, but no compiler. Binaries for every architecture would be 20 times
as large as the sources, and would not run on GPUs that come after them. NVIDIA's own cache class keeps the machine code
in the user's cache folder, under the hash of source, options, architecture and compiler.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from rwkv_cli import paths
from rwkv_cli.engine.gpu.kernel_sources import kernels, kind_of, operations, source

_LARGEST_CACHE = 64 << 20  # bytes


def compile_operation(name: str, weight_type: str, architecture: str, cache: Any = None) -> Any:
    """The machine code of one operation, as a cuda.core.ObjectCode."""
    from cuda.core import Program, ProgramOptions

    options = ProgramOptions(
        arch=f"sm_{architecture}",
        define_macro=("KIND", kind_of(weight_type)),
        name=name,
        std="c++17",
    )
    return Program(source(name), "c++", options).compile("cubin", cache=cache)


def load(
    weight_type: str,
    architecture: str,
    compiling: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> dict[str, Any]:
    """All kernels by name. `compiling()` is entered while they are compiled, which happens once.

    Raises DeviceError for a type of weights that has no kernels.
    """
    with nullcontext() if is_compiled(weight_type, architecture) else compiling():
        codes = compile_and_keep(weight_type, architecture)
    return {kernel.name: codes[kernel.file].get_kernel(kernel.name) for kernel in kernels().values()}


def folder() -> Path:
    """The folder of the machine code."""
    return paths.cache_folder() / "cuda"


def is_compiled(weight_type: str, architecture: str) -> bool:
    """Whether all kernels for a type of weights are in the cache. Raises DeviceError for a type that has none."""
    return _marker(weight_type, architecture).exists()


def compile_and_keep(weight_type: str, architecture: str) -> dict[str, Any]:
    """The machine code of every operation, by file; what is not in the cache is compiled, and put there."""
    codes = compile_all(weight_type, architecture, folder())
    with contextlib.suppress(OSError):
        _marker(weight_type, architecture).touch()
    return codes


def _marker(weight_type: str, architecture: str) -> Path:
    """An empty file that says whether compilation is needed, and so whether to announce it."""
    sources = "".join(map(source, operations()))
    digest = hashlib.sha256(sources.encode()).hexdigest()[:16]
    return folder() / f"{digest}-sm_{architecture}-{kind_of(weight_type)}"


def compile_all(weight_type: str, architecture: str, folder: Path) -> dict[str, Any]:
    """The machine code of every operation, by file; cached in `folder`, if that can be written."""
    from cuda.core.utils import FileStreamProgramCache

    try:
        with FileStreamProgramCache(folder, max_size_bytes=_LARGEST_CACHE) as cache:
            return {name: compile_operation(name, weight_type, architecture, cache) for name in operations()}
    except OSError:  # a full disk, or no permission
        return {name: compile_operation(name, weight_type, architecture) for name in operations()}
