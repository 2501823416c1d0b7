"""A device without a GPU: the kernels of cuda/, compiled for the CPU, and matrix products by NumPy."""

from __future__ import annotations

import ctypes
import functools
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from helpers.models import write_and_open
from helpers.writers import TINY, random_weights
from rwkv_cli.engine.backends.cuda import CudaBackend
from rwkv_cli.engine.gpu import batched_pass, device_sampler, kernel_sources, weights
from rwkv_cli.engine.gpu.device_protocol import ALIGNMENT, aligned
from rwkv_cli.engine.gpu.launch_plan import Launch, Product, Step
from rwkv_cli.files.weight_layouts import WeightType

EMULATOR = Path(__file__).parent / "cuda_emulator"
COMPILER = shutil.which("g++") or shutil.which("clang++")

Kernel = Callable[["ctypes.Array[ctypes.c_longlong]", "ctypes.Array[ctypes.c_uint]", int], None]
"""A function of the arguments, the three sizes of the grid, and the number of threads per block."""

_DYNAMIC = re.compile(r"extern __shared__ __align__\(16\) (\w+) (\w+)\[\];")
_NAN = 0xFF  # of every byte: NaN in any floating-point type

_one_at_a_time = threading.Lock()  # the emulator keeps its threads in static variables


@contextmanager
def few_threads() -> Iterator[None]:
    """Launch few threads where the number is arbitrary: each takes time to emulate."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights, "_COPY_BLOCKS", 4)
        patch.setattr(batched_pass, "MANY_BLOCKS", 4)
        patch.setattr(device_sampler, "SURVEY_THREADS", 64)
        patch.setattr(device_sampler, "SAMPLE_THREADS", 64)
        yield


def tiny_backend(folder: Path, weight_type: WeightType = "fp16") -> CudaBackend:
    """The CUDA backend on an emulated GPU, with random weights of the sizes `TINY`."""
    model = write_and_open(folder / "model", random_weights(TINY), weight_type)
    return CudaBackend(model, EmulatedGpu(build(weight_type)))


@functools.cache
def build(weight_type: str) -> dict[str, Kernel]:
    """Every kernel by name, compiled for one type of weights, once in a run: it takes seconds."""
    names = kernel_sources.operations()
    with ThreadPoolExecutor() as pool, tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        libraries = dict(
            zip(names, pool.map(lambda name: _build(name, weight_type, folder), names), strict=True)
        )
    return {
        kernel.name: getattr(libraries[kernel.file], f"launch_{kernel.name}")
        for kernel in kernel_sources.kernels().values()
    }


def _build(name: str, weight_type: str, folder: Path) -> ctypes.CDLL:
    text = kernel_sources.source(name, {"intrinsics.cuh"})
    text = _DYNAMIC.sub(r"static \1* const \2 = (\1*)emulator::dynamic_memory;", text)
    launchers = "".join(
        f'extern "C" void launch_{kernel.name}(const long long* arguments, const unsigned* grid, unsigned threads)'
        f"{{ emulator::launch({kernel.name}, arguments, grid, threads); }}\n"
        for kernel in kernel_sources.kernels().values()
        if kernel.file == name
    )
    path = folder / f"{name}-{weight_type}.cpp"
    path.write_text('#include "emulator.hpp"\n#include "intrinsics.cuh"\n' + text + launchers)
    library = path.with_suffix(".so")
    options = ["-O1", "-std=c++20", "-fPIC", "-shared", "-w", "-U_FORTIFY_SOURCE", f"-I{EMULATOR}"]
    kind = f"-DKIND={kernel_sources.kind_of(weight_type)}"
    subprocess.run([str(COMPILER), *options, kind, str(path), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


class Bytes:
    """Memory, filled with NaN, so that reading what was never written shows."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self._memory = np.full(nbytes + ALIGNMENT, _NAN, np.uint8)
        self.address = aligned(self._memory.ctypes.data)


class EmulatedGpu:
    """Replaces `rwkv_cli.engine.gpu.device.Gpu`: see `device_protocol.Device` for its methods."""

    name = "emulated"
    shared_memory = 96 << 10

    def __init__(self, kernels: Mapping[str, Kernel], multiprocessors: int = 3) -> None:
        self._kernels, self.multiprocessors = kernels, multiprocessors

    def free_memory(self) -> int:
        return 1 << 30

    def allocate(self, nbytes: int) -> Bytes:
        return Bytes(nbytes)

    def pinned(self, nbytes: int) -> NDArray[np.uint8]:
        return np.zeros(nbytes, np.uint8)

    def upload(self, address: int, array: NDArray[Any]) -> None:
        assert array.flags.c_contiguous
        ctypes.memmove(address, array.ctypes.data, array.nbytes)

    def download(self, address: int, array: NDArray[Any]) -> None:
        assert array.flags.c_contiguous
        ctypes.memmove(array.ctypes.data, address, array.nbytes)

    def copy(self, target: int, source: int, nbytes: int) -> None:
        ctypes.memmove(target, source, nbytes)

    def make_current(self) -> None:
        pass

    def clear(self, address: int, nbytes: int) -> None:
        ctypes.memset(address, 0, nbytes)

    def synchronize(self) -> None:
        pass

    def run(self, steps: Sequence[Step]) -> None:
        for step in steps:
            if isinstance(step, Launch):
                self._launch(step)
            elif isinstance(step, Product):
                _multiply(step)
            else:  # branches are independent: any order must be right
                self.run([one for branch in reversed(step.branches) for one in branch])

    def graph(self, steps: Sequence[Step]) -> Callable[[], None]:
        return lambda: self.run(steps)

    def _launch(self, launch: Launch) -> None:
        grid = (ctypes.c_uint * 3)(*launch.grid, *[1] * (3 - len(launch.grid)))
        arguments = (ctypes.c_longlong * len(launch.values))(*launch.values)
        with _one_at_a_time:
            self._kernels[launch.kernel](arguments, grid, launch.block)


def _view(
    address: int, rows: int, columns: int, stride: int, dtype: type[np.float16 | np.float32]
) -> NDArray[np.float16 | np.float32]:
    """A matrix in memory, writable; `stride` is from one row to the next, in elements."""
    size = ((rows - 1) * stride + columns) * np.dtype(dtype).itemsize
    flat = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address)).view(dtype)
    return np.lib.stride_tricks.as_strided(flat, (rows, columns), (stride * flat.itemsize, flat.itemsize))


def _multiply(p: Product) -> None:
    for i in range(p.times):
        out = p.out + i * p.T * (p.out_stride or p.R) * (2 if p.half else 4)
        x = p.x + i * p.T * (p.x_stride or p.K) * 2
        _multiply_one(p._replace(weights=p.weights + i * p.R * p.K * 2, x=x, out=out))


def _multiply_one(p: Product) -> None:
    shape = (p.K, p.R) if p.by_input else (p.R, p.K)
    weights = _view(p.weights, *shape, shape[1], np.float16).astype(np.float32)
    x = _view(p.x, p.T, p.K, p.x_stride or p.K, np.float16).astype(np.float32)
    out = _view(p.out, p.T, p.R, p.out_stride or p.R, np.float16 if p.half else np.float32)
    total = x @ (weights if p.by_input else weights.T)
    out[...] = out + total if p.add else total
