"""The CUDA sources, compiled at first use for the GPU that is there, and kept.

NVRTC compiles them: a user needs a driver and wheels, no compiler. Binaries for every architecture would be 20 times as
large as the sources, and could not know GPUs that come after them. What was compiled is kept in the user's cache under
the hash of source, options, architecture and compiler, which NVIDIA's own cache class sees to.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from rwkv_cli import paths
from rwkv_cli.errors import DeviceError

KINDS = {"fp16": 0, "int8": 1, "int4": 2}
"""As cuda/common.cuh numbers them."""

_INCLUDE = re.compile(r'^#include "(.+)"\n', re.MULTILINE)
_KERNEL = re.compile(r'extern "C" __global__ void (?:__launch_bounds__\([\w, ]+\)\s+)?(\w+)\(')
_LARGEST_CACHE = 64 << 20  # bytes


def source_folder() -> Path:
    """Where the sources are: in the package when installed, at the top of a checkout."""
    packaged = Path(__file__).parents[2] / "cuda"
    return packaged if packaged.exists() else Path(__file__).parents[3] / "cuda"


def source(name: str, seen: set[str] | None = None) -> str:
    """One file with all that it includes, each once."""
    seen = set() if seen is None else seen

    def included(match: re.Match[str]) -> str:
        if match[1] in seen:
            return ""
        seen.add(match[1])
        return source(match[1], seen)

    text = (source_folder() / name).read_text(encoding="utf-8").replace("#pragma once\n", "")
    return f'#line 1 "{name}"\n' + _INCLUDE.sub(included, text)


def operations() -> list[str]:
    """The files that have kernels."""
    return sorted(path.name for path in source_folder().glob("*.cu"))


def kernels_of(text: str) -> list[str]:
    """The names of the kernels in a source."""
    return _KERNEL.findall(text)


def compile_operation(name: str, weight_type: str, architecture: str, cache: Any = None) -> Any:
    """The machine code of one operation, as a cuda.core.ObjectCode."""
    from cuda.core import Program, ProgramOptions

    options = ProgramOptions(
        arch=f"sm_{architecture}",
        define_macro=("KIND", str(KINDS[weight_type])),
        name=name,
        std="c++17",
    )
    return Program(source(name), "c++", options).compile("cubin", cache=cache)


def load(
    weight_type: str,
    architecture: str,
    compiling: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> dict[str, Any]:
    """All kernels by name. `compiling()` is around their compilation, which is only needed once."""
    if weight_type not in KINDS:
        raise DeviceError(
            f"the GPU has no kernels for {weight_type} weights: `rwkv quantize --type fp16` makes a file that it runs"
        )
    sources = {name: source(name) for name in operations()}
    digest = hashlib.sha256("".join(sources.values()).encode()).hexdigest()[:16]
    folder = paths.cache_folder() / "cuda"
    # Only to know whether to say that it takes long.
    marker = folder / f"{digest}-sm_{architecture}-{weight_type}"
    with nullcontext() if marker.exists() else compiling():
        codes = compile_all(weight_type, architecture, folder)
    with contextlib.suppress(OSError):
        marker.touch()
    return {
        kernel: codes[name].get_kernel(kernel) for name in sources for kernel in kernels_of(sources[name])
    }


def compile_all(weight_type: str, architecture: str, folder: Path) -> dict[str, Any]:
    """The machine code of every operation, by its file; kept in a folder, or, where that cannot be, made anew."""
    from cuda.core.utils import FileStreamProgramCache

    try:
        with FileStreamProgramCache(folder, max_size_bytes=_LARGEST_CACHE) as cache:
            return {name: compile_operation(name, weight_type, architecture, cache) for name in operations()}
    except OSError:  # no room, no permission
        return {name: compile_operation(name, weight_type, architecture) for name in operations()}
