"""A GPU: its memory, its kernels, its matrix products. All that is NVIDIA's is in this package, and imported here only.

Kernels are launched so that one may begin before the one before it has ended (`wait_for_previous` in
cuda/intrinsics.cuh); everything happens in the order of one stream.
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
from rwkv_cli.engine.gpu.blas import WORKSPACE, Blas
from rwkv_cli.engine.gpu.launch_plan import Launch, Product, Step, Together, lanes
from rwkv_cli.engine.gpu.probe import too_old
from rwkv_cli.errors import DeviceError


class Memory:
    """Some bytes of the device, free again when nobody holds this."""

    def __init__(self, address: int, nbytes: int, context: Any) -> None:
        self.address, self.nbytes, self._context = address, nbytes, context

    def __del__(self) -> None:
        driver.cuCtxSetCurrent(self._context)  # this may be any thread
        driver.cuMemFree(self.address)


class Gpu:
    """A device with the kernels for one type of weights."""

    def __init__(
        self,
        weight_type: str,
        compiling: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """Raises DeviceError, in a sentence, where there is no GPU that can do it."""
        self._device = _first_device()
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
        """Bytes that nobody uses now."""
        return int(_check(driver.cuMemGetInfo())[0])

    def allocate(self, nbytes: int) -> Memory:
        """Bytes of whatever was there before. Raises DeviceError if there are not so many."""
        error, address = driver.cuMemAlloc(max(nbytes, 16))
        if error == driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
            raise DeviceError(
                f"{self.name} has too little memory: {nbytes / 1e9:.1f} GB more are needed and "
                f"{self.free_memory() / 1e9:.1f} GB are free; use --device cpu, or a smaller --type"
            )
        _check((error, address))
        return Memory(int(address), nbytes, self._context)

    def pinned(self, nbytes: int) -> NDArray[np.uint8]:
        """Bytes of the host that the device copies to and from without detours."""
        buffer = self._pinned.allocate(nbytes)
        self._pinned_buffers.append(buffer)  # as long as this object
        return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(int(buffer.handle)))

    def make_current(self) -> None:
        """Have the calls of this thread go to this device."""
        _check(driver.cuCtxSetCurrent(self._context))

    def upload(self, address: int, array: NDArray[Any]) -> None:
        """Copy an array that lies in one piece to the device."""
        _check(driver.cuMemcpyHtoDAsync(address, array.ctypes.data, array.nbytes, self._stream.handle))

    def download(self, address: int, array: NDArray[Any]) -> None:
        """Copy from the device into an array that lies in one piece; it is there when this returns."""
        _check(driver.cuMemcpyDtoHAsync(array.ctypes.data, address, array.nbytes, self._stream.handle))
        self._stream.sync()

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Copy from one place of the device to another."""
        _check(driver.cuMemcpyDtoDAsync(target, source, nbytes, self._stream.handle))

    def clear(self, address: int, nbytes: int) -> None:
        """Zeros."""
        _check(driver.cuMemsetD8Async(address, 0, nbytes, self._stream.handle))

    def synchronize(self) -> None:
        """Wait for everything."""
        self._stream.sync()

    def run(self, steps: Sequence[Step]) -> None:
        """Start them, one after another."""
        for step in steps:
            if isinstance(step, Together):
                for branch in step.branches:
                    self.run(branch)
            else:
                self._start(self._stream, int(self._stream.handle), step, 0)

    def graph(self, steps: Sequence[Step]) -> Callable[[], None]:
        """A function that starts all of them at once: the host's work is done here, once."""
        while len(self._workspaces) < lanes(steps):
            self._workspaces.append(self.allocate(WORKSPACE))
        builder = self._device.create_graph_builder()
        builder.begin_building()
        self._record(builder, steps, 0)
        graph = builder.end_building().complete()
        return lambda: graph.launch(self._stream)

    def _record(self, builder: Any, steps: Sequence[Step], lane: int) -> None:
        """Put steps into a graph; `lane` is the first of as many as run side by side: each has a workspace."""
        for step in steps:
            if isinstance(step, Together):
                builders = builder.split(len(step.branches))
                first = lane
                for one, branch in zip(builders, step.branches, strict=True):
                    self._record(one, branch, first)
                    first += lanes(branch)
                builder.join(*builders)
            else:
                self._start(builder, int(builder.stream.handle), step, lane)

    def _start(self, where: Any, stream: int, one: Launch | Product, lane: int) -> None:
        if isinstance(one, Product):
            self._blas.multiply(one, stream, self._workspaces[lane].address)
            return
        kernel = self._kernels[one.kernel]
        if one.shared:
            self._allow_shared(kernel, one)
        config = LaunchConfig(
            grid=one.grid,
            block=one.block,
            shmem_size=one.shared,
            programmatic_stream_serialization=one.overlaps and self._begin_early,
        )
        launch(where, config, kernel, *one.arguments)

    def _allow_shared(self, kernel: Any, one: Launch) -> None:
        """With what it declares itself, a kernel may need more than it gets unasked."""
        attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        device = driver.CUdevice(self._device.device_id)
        (error,) = driver.cuKernelSetAttribute(
            attribute, one.shared, driver.CUkernel(int(kernel.handle)), device
        )
        if error != driver.CUresult.CUDA_SUCCESS:
            raise DeviceError(f"{self.name} has too little shared memory for this model; use --device cpu")


def _first_device() -> Device:
    """The first GPU, made current. Raises DeviceError with the reason if there is none that can be used."""
    try:
        (error,) = driver.cuInit(0)
    except RuntimeError:
        raise DeviceError("there is no NVIDIA driver") from None
    if error == driver.CUresult.CUDA_ERROR_NO_DEVICE:
        raise DeviceError("there is no NVIDIA GPU")
    _check((error,))
    version, needed = _check(driver.cuDriverGetVersion()), driver.CUDA_VERSION // 1000 * 1000
    if version < needed:
        raise DeviceError(
            f"the NVIDIA driver is for CUDA {version // 1000}.{version % 1000 // 10} and {needed // 1000}.0 is needed: "
            "update it, or pip install 'rwkv-cli[cuda12]'"
        )
    device = Device(0)
    device.set_current()
    if reason := too_old(device.name, tuple(device.compute_capability)):
        raise DeviceError(reason)
    return device


def _check(result: tuple[Any, ...]) -> Any:
    """What a driver call gives beside its error code. Raises DeviceError for an error."""
    error, *rest = result
    if error != driver.CUresult.CUDA_SUCCESS:
        _, name = driver.cuGetErrorName(error)
        raise DeviceError(f"the GPU failed: {name.decode() if name else error}")
    return rest[0] if len(rest) == 1 else rest
