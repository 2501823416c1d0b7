"""A GPU: its memory, its kernels, its matrix products. NVIDIA's Python packages are imported by this module only.

Work is done in the order of one stream, but for kernels that may begin before the previous one has ended
(`wait_for_previous` in cuda/intrinsics.cuh).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from cuda.bindings import driver
from cuda.core import Buffer, Device, LaunchConfig, LegacyPinnedMemoryResource, launch
from numpy.typing import NDArray

from rwkv_cli.engine.gpu import nvrtc
from rwkv_cli.engine.gpu.launch_plan import Launch, Parallel, Product, Step, max_parallel
from rwkv_cli.engine.gpu.probe import NO_GPU, too_old
from rwkv_cli.errors import DeviceError

WORKSPACE = 32 << 20
"""Bytes of cuBLAS's workspace: what NVIDIA recommends for Hopper, and fixed, so that results repeat."""

_FLOAT32, _FLOAT16 = 0, 2  # cudaDataType
_COMPUTE_FLOAT32 = 68  # cublasComputeType: float32 sums, whatever the inputs
_PLAIN, _TRANSPOSED = 0, 1  # cublasOperation
_DEFAULT_ALGORITHM = -1


class Memory:
    """Bytes of the device, which are freed with this object."""

    def __init__(self, address: int, nbytes: int, context: Any) -> None:
        self.address, self.nbytes, self._context = address, nbytes, context

    def __del__(self) -> None:
        driver.cuCtxSetCurrent(self._context)  # any thread may run this
        driver.cuMemFree(self.address)


class Gpu:
    """A device with the kernels for one type of weights."""

    def __init__(
        self,
        weight_type: str,
        compiling: Callable[[], AbstractContextManager[None]] = nullcontext,
        index: int = 0,
    ) -> None:
        """Compile the kernels if needed, inside `compiling()`. Raises DeviceError if there is no usable GPU `index`."""
        self._device = _current_device(index)
        self._context = _check(driver.cuCtxGetCurrent())
        self._stream = self._device.create_stream()
        properties = self._device.properties
        self.name: str = self._device.name
        self.capability = f"{properties.compute_capability_major}.{properties.compute_capability_minor}"
        self.multiprocessors: int = properties.multiprocessor_count
        self.shared_memory: int = properties.max_shared_memory_per_multiprocessor
        self._kernels = nvrtc.load(weight_type, self._device.arch, compiling)
        self._pinned = LegacyPinnedMemoryResource()
        self._pinned_buffers: list[Buffer] = []
        self._blas = Blas()
        self._workspaces = [self.allocate(WORKSPACE)]
        self._begin_early = properties.compute_capability_major >= 9

    def free_memory(self) -> int:
        """Bytes that are free now."""
        return int(_check(driver.cuMemGetInfo())[0])

    def allocate(self, nbytes: int) -> Memory:
        """Allocate uninitialised memory. Raises DeviceError if too little is free."""
        error, address = driver.cuMemAlloc(max(nbytes, 16))
        if error == driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
            raise DeviceError(
                f"{self.name} has too little memory: {nbytes / 1e9:.1f} GB more are needed and "
                f"{self.free_memory() / 1e9:.1f} GB are free; use {{device=cpu}}, or a smaller {{type}}"
            )
        _check((error, address))
        return Memory(int(address), nbytes, self._context)

    def pinned(self, nbytes: int) -> NDArray[np.uint8]:
        """Page-locked host memory, which copies are fastest from and to."""
        buffer = self._pinned.allocate(nbytes)
        self._pinned_buffers.append(buffer)  # which frees it with this object
        return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(int(buffer.handle)))

    def make_current(self) -> None:
        """Make this the device of the calling thread."""
        _check(driver.cuCtxSetCurrent(self._context))

    def upload(self, address: int, array: NDArray[Any]) -> None:
        """Copy a C-contiguous array to the device; it must not change before the copy is done."""
        _check(driver.cuMemcpyHtoDAsync(address, array.ctypes.data, array.nbytes, self._stream.handle))

    def download(self, address: int, array: NDArray[Any]) -> None:
        """Copy from the device into a C-contiguous array; blocks until it is there."""
        _check(driver.cuMemcpyDtoHAsync(array.ctypes.data, address, array.nbytes, self._stream.handle))
        self._stream.sync()

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Copy from one address of the device to another."""
        _check(driver.cuMemcpyDtoDAsync(target, source, nbytes, self._stream.handle))

    def clear(self, address: int, nbytes: int) -> None:
        """Fill with zero bytes."""
        _check(driver.cuMemsetD8Async(address, 0, nbytes, self._stream.handle))

    def synchronize(self) -> None:
        """Block until all queued work has finished."""
        self._stream.sync()

    def run(self, steps: Sequence[Step]) -> None:
        """Queue steps, one after another."""
        for step in steps:
            if isinstance(step, Parallel):
                for branch in step.branches:
                    self.run(branch)
            else:
                self._start(self._stream, int(self._stream.handle), step, 0)

    def graph(self, steps: Sequence[Step]) -> Callable[[], None]:
        """Record steps as a graph: a function that queues it, which takes the host one call."""
        while len(self._workspaces) < max_parallel(steps):
            self._workspaces.append(self.allocate(WORKSPACE))
        builder = self._device.create_graph_builder()
        builder.begin_building()
        self._record(builder, steps, 0)
        graph = builder.end_building().complete()
        return lambda: graph.launch(self._stream)

    def _record(self, builder: Any, steps: Sequence[Step], workspace: int) -> None:
        """Add steps to a graph; those that run side by side have workspaces of their own, from this index on."""
        for step in steps:
            if isinstance(step, Parallel):
                builders = builder.split(len(step.branches))
                first = workspace
                for one, branch in zip(builders, step.branches, strict=True):
                    self._record(one, branch, first)
                    first += max_parallel(branch)
                builder.join(*builders)
            else:
                self._start(builder, int(builder.stream.handle), step, workspace)

    def _start(self, where: Any, stream: int, step: Launch | Product, workspace: int) -> None:
        """Queue a step on a stream, or record it: `where` is the stream or the graph builder."""
        if isinstance(step, Product):
            self._blas.multiply(step, stream, self._workspaces[workspace].address)
            return
        kernel = self._kernels[step.kernel]
        if step.shared:
            self._allow_shared(kernel, step.shared)
        config = LaunchConfig(
            grid=step.grid,
            block=step.block,
            shmem_size=step.shared,
            programmatic_stream_serialization=step.overlaps and self._begin_early,
        )
        launch(where, config, kernel, *step.values)

    def _allow_shared(self, kernel: Any, nbytes: int) -> None:
        """Let a kernel have this much dynamic shared memory, which may be more than the default limit."""
        attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        device = driver.CUdevice(self._device.device_id)
        (error,) = driver.cuKernelSetAttribute(attribute, nbytes, driver.CUkernel(int(kernel.handle)), device)
        if error != driver.CUresult.CUDA_SUCCESS:
            raise DeviceError(f"{self.name} has too little shared memory for this model; use {{device=cpu}}")


class Blas:
    """cuBLAS: NVIDIA's matrix products, for the tensor cores of every GPU."""

    def __init__(self) -> None:
        """Raises DeviceError if the library is missing."""
        from cuda.pathfinder import load_nvidia_dynamic_lib

        try:
            self._library = ctypes.CDLL(load_nvidia_dynamic_lib("cublas").abs_path)
        except (RuntimeError, OSError) as error:
            raise DeviceError(f"cuBLAS is missing ({error}): pip install nvidia-cublas") from None
        self._handle = ctypes.c_void_p()
        self._call("cublasCreate_v2", ctypes.byref(self._handle))
        self._used = -1, -1

    def multiply(self, product: Product, stream: int, workspace: int) -> None:
        """Queue a product on a stream; `workspace` is the address of `WORKSPACE` bytes for it alone."""
        if (stream, workspace) != self._used:
            self._use(stream, workspace)
        x_stride, out_stride = product.x_stride or product.K, product.out_stride or product.R
        one, beta = ctypes.c_float(1), ctypes.c_float(1 if product.add else 0)
        # cuBLAS is column-major: it computes out^T [R, T] = W x^T.
        self._call(
            "cublasGemmStridedBatchedEx",
            self._handle,
            _PLAIN if product.by_input else _TRANSPOSED,
            _PLAIN,
            product.R,
            product.T,
            product.K,
            ctypes.byref(one),
            ctypes.c_void_p(product.weights),
            _FLOAT16,
            product.R if product.by_input else product.K,
            ctypes.c_longlong(product.R * product.K),
            ctypes.c_void_p(product.x),
            _FLOAT16,
            x_stride,
            ctypes.c_longlong(product.T * x_stride),
            ctypes.byref(beta),
            ctypes.c_void_p(product.out),
            _FLOAT16 if product.half else _FLOAT32,
            out_stride,
            ctypes.c_longlong(product.T * out_stride),
            product.times,
            _COMPUTE_FLOAT32,
            _DEFAULT_ALGORITHM,
        )

    def _use(self, stream: int, workspace: int) -> None:
        """Switch to another stream, which makes the library forget its workspace."""
        self._call("cublasSetStream_v2", self._handle, ctypes.c_void_p(stream))
        self._call(
            "cublasSetWorkspace_v2",
            self._handle,
            ctypes.c_void_p(workspace),
            ctypes.c_size_t(WORKSPACE),
        )
        self._used = stream, workspace

    def _call(self, name: str, *args: Any) -> None:
        if code := getattr(self._library, name)(*args):
            raise DeviceError(f"the GPU failed: {name} gave {code}")


def _current_device(index: int) -> Device:
    """A GPU, made current. Raises DeviceError with the reason if it cannot be used."""
    try:
        (error,) = driver.cuInit(0)
    except RuntimeError:
        raise DeviceError("no NVIDIA driver was found") from None
    if error == driver.CUresult.CUDA_ERROR_NO_DEVICE:
        raise DeviceError(NO_GPU)
    _check((error,))
    version, needed = _check(driver.cuDriverGetVersion()), driver.CUDA_VERSION // 1000 * 1000
    if version < needed:
        raise DeviceError(
            f"the NVIDIA driver supports CUDA {version // 1000}.{version % 1000 // 10}, but {needed // 1000}.0 is "
            "needed: update it or, in the folder of rwkv's sources, pip install '.[cuda12]'"
        )
    device = Device(index)
    device.set_current()
    if reason := too_old(device.name, tuple(device.compute_capability)):
        raise DeviceError(reason)
    return device


def _check(result: tuple[Any, ...]) -> Any:
    """The results of a driver call. Raises DeviceError if its error code says so."""
    error, *rest = result
    if error != driver.CUresult.CUDA_SUCCESS:
        _, name = driver.cuGetErrorName(error)
        raise DeviceError(f"the GPU failed: {name.decode() if name else error}")
    return rest[0] if len(rest) == 1 else rest
