"""The backends in one table, and the choice among them. A backend's module is imported only when it is opened."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

from rwkv_cli import machine
from rwkv_cli.engine.backends.base import Backend
from rwkv_cli.engine.gpu import probe
from rwkv_cli.errors import DeviceError, UsageError
from rwkv_cli.files.mixed import Widened
from rwkv_cli.files.model_file import ModelFile
from rwkv_cli.files.weight_layouts import MIXED, WeightType
from rwkv_cli.files.weight_source import WeightSource

AUTO = "auto"

Compiling = Callable[[str], AbstractContextManager[None]]
"""Entered while kernels for the "CPU" or "GPU" are compiled, which takes seconds and happens once."""


class Selection(NamedTuple):
    """A backend by name, and why it was chosen."""

    device: str
    reason: str


class Opened(NamedTuple):
    """A backend that runs, and how it was chosen."""

    backend: Backend
    selection: Selection
    failure: str | None = None  # why the preferred backend failed


@dataclass(frozen=True)
class Entry:
    """A backend before its module is imported."""

    name: str
    open: Callable[[ModelFile, int | None, Compiling, int], Backend]
    """Of a model, threads of the CPU, what is entered while kernels are compiled, and which GPU."""

    # A cheap probe, see `why_not_cuda`.
    why_not: Callable[[WeightType, int], str | None] = lambda _type, _bytes: None
    is_automatic: bool = True


def why_not_cuda(weight_type: WeightType, weight_bytes: int = 0, index: int = 0) -> str | None:
    """Why a GPU cannot run a model of this type and size, as far as is known before it is tried; None if it may."""
    try:
        gpus = probe.gpus()
    except DeviceError as error:
        return str(error)
    if index >= len(gpus):
        return f"there is no GPU {index}: this machine has {len(gpus)}, which are counted from 0"
    gpu = gpus[index]
    if reason := probe.too_old(gpu.name, gpu.capability):
        return reason
    if not probe.is_backend_installed():
        return probe.NOT_INSTALLED
    if weight_type == "fp32":
        return "the GPU has no kernels for fp32 weights"
    if weight_bytes > gpu.memory_bytes:
        return f"{gpu.name} has too little memory for this model"
    return None


def _open_cuda(model: ModelFile, _threads: int | None, compiling: Compiling, index: int) -> Backend:
    if reason := why_not_cuda(model.info.weight_type, index=index):
        raise DeviceError(reason)
    from rwkv_cli.engine.backends import cuda

    if model.info.weight_type == MIXED:  # each kernel is compiled for one type
        model = Widened(model)
    return cuda.open_cuda(model, lambda: compiling("GPU"), index)


def _open_cpu(model: ModelFile, threads: int | None, compiling: Compiling, _index: int) -> Backend:
    try:
        from cpu_kernels.runtime.compiler import CompilationError
        from rwkv_cli.engine.backends.cpu import CpuBackend, is_compiled
    except (ImportError, ValueError) as error:  # LLVM is broken, or RWKV_CPU_KERNEL is wrong
        raise DeviceError(f"the CPU kernels cannot run: {error}") from None
    try:
        with nullcontext() if is_compiled() else compiling("CPU"):
            return CpuBackend(model, threads)
    except CompilationError as error:
        raise DeviceError(f"the CPU kernels cannot run: {error}") from None


def _open_reference(model: WeightSource, _threads: int | None, _compiling: Compiling, _index: int) -> Backend:
    from rwkv_cli.engine.backends.reference import ReferenceBackend

    return ReferenceBackend(model)


BACKENDS = {
    entry.name: entry
    for entry in (
        Entry("cuda", _open_cuda, why_not_cuda),
        Entry("cpu", _open_cpu),
        Entry("reference", _open_reference, is_automatic=False),
    )
}
"""By name; of the automatic ones the fastest first. The last of those runs on every machine."""

DEVICES = (AUTO, *BACKENDS)
"""What the setting `device` may be."""


_ONE_GPU = re.compile(r"cuda:([0-9]{1,4})")

ALL = "all"
"""Every GPU: what `expand` knows beside single devices."""


def is_known(devices: str) -> bool:
    """Whether `expand` knows the names, whatever this machine has."""
    names = devices.split(",")
    return devices == ALL or all(
        name.strip() in DEVICES or _ONE_GPU.fullmatch(name.strip()) for name in names
    )


def check(device: str) -> None:
    """Raise UsageError for the name of an unknown device."""
    if device not in DEVICES and not _ONE_GPU.fullmatch(device):
        raise UsageError(
            f"{{device}} is {device!r}: it must be one of {', '.join(DEVICES)}, or a GPU such as cuda:1"
        )


def expand(devices: str) -> list[str]:
    """The devices of a setting for several replicas: "cuda:0,cuda:1", or "all" for every GPU of this machine.

    Raises UsageError for an unknown device, DeviceError for all GPUs where there are none.
    """
    if devices == ALL:
        return [f"cuda:{i}" for i in range(len(probe.gpus()))]
    names = [each.strip() for each in devices.split(",")]
    for name in names:
        check(name)
    gpus = [name for name in names if name.startswith("cuda")]
    if len({*gpus}) < len(gpus):
        raise UsageError(f"{{device}} names a GPU twice: {devices}")
    return names


def threads_each(threads: int | None, devices: Sequence[str]) -> int | None:
    """The threads of each of several replicas: those that were chosen, otherwise a share of the machine's."""
    n_cpu = sum(device in ("cpu", "reference") for device in devices)
    if threads is not None or n_cpu < 2:
        return threads
    return max(1, machine.default_threads() // n_cpu)


def _split(device: str) -> tuple[str, int]:
    """The backend of a device, and which GPU."""
    one = _ONE_GPU.fullmatch(device)
    return ("cuda", int(one[1])) if one else (device, 0)


def select(device: str, weight_type: WeightType, weight_bytes: int = 0) -> Selection:
    """The backend for the setting `device` and a model of this type and size; nothing is loaded, and little probed.

    Raises UsageError for an unknown device.
    """
    check(device)
    if device != AUTO:
        return Selection(device, "chosen by name")
    reason = "the fastest backend on this machine"
    for entry in BACKENDS.values():
        if not entry.is_automatic:
            continue
        obstacle = entry.why_not(weight_type, weight_bytes)
        if obstacle is None:
            return Selection(entry.name, reason)
        reason = obstacle
    raise DeviceError(reason)


def open_backend(
    device: str,
    source: ModelFile | WeightSource,
    threads: int | None = None,
    compiling: Compiling = lambda _: nullcontext(),
) -> Opened:
    """Open the backend for the setting `device`. A source that is not a model file runs on the reference backend only.

    "auto" falls back to the next backend where one fails. `threads` is for the CPU; None takes
    `machine.default_threads`. Raises UsageError for an unknown device, DeviceError if the backend cannot run on this
    machine.
    """
    check(device)
    if not isinstance(source, ModelFile):
        return Opened(_open_reference(source, None, compiling, 0), Selection("reference", "chosen by name"))
    selection = select(device, source.info.weight_type, source.weight_bytes)
    candidates = [entry.name for entry in BACKENDS.values() if entry.is_automatic] if device == AUTO else []
    failure = None
    for name in candidates[candidates.index(selection.device) :] if candidates else [selection.device]:
        try:
            kind, index = _split(name)
            backend = BACKENDS[kind].open(source, threads, compiling, index)
            return Opened(backend, Selection(name, failure or selection.reason), failure)
        except DeviceError as error:
            if device != AUTO or name == candidates[-1]:
                raise
            failure = str(error)
    raise AssertionError("unreachable")
