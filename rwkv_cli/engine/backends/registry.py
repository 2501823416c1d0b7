"""The choice of a backend: imports only what it chooses, and says why."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, NamedTuple, get_args

from rwkv_cli.engine.backends.base import Backend
from rwkv_cli.engine.gpu import probe
from rwkv_cli.errors import DeviceError, UsageError
from rwkv_cli.files.checkpoints import Checkpoint
from rwkv_cli.files.model_file import ModelFile
from rwkv_cli.files.weight_layouts import WeightType

Device = Literal["auto", "cuda", "cpu", "reference"]
DEVICES: tuple[Device, ...] = get_args(Device)

Compiling = Callable[[str], AbstractContextManager[None]]
"""Around the compilation of kernels for "CPU" or "GPU", which takes long and happens once."""


class Selection(NamedTuple):
    """A backend by name, and why it was taken."""

    device: Literal["cuda", "cpu", "reference"]
    reason: str


class Created(NamedTuple):
    """A backend that runs, and how it was chosen."""

    backend: Backend
    selection: Selection
    failure: str | None = None  # why another one was tried in vain


def check(device: str) -> None:
    """Raises UsageError for the name of a device that nothing has."""
    if device not in DEVICES:
        raise UsageError(f"there is no device {device!r}: choose among {', '.join(DEVICES)}")


def select(device: str, weight_type: WeightType, weight_bytes: int = 0) -> Selection:
    """The backend for a --device option and a model of this type and size; nothing is loaded, and little asked.

    Raises UsageError for a name that nothing has.
    """
    check(device)
    if device == "cuda":
        return Selection("cuda", "chosen with --device")
    if device == "cpu":
        return Selection("cpu", "chosen with --device")
    if device == "reference":
        return Selection("reference", "chosen with --device")
    if reason := why_not_cuda(weight_type, weight_bytes):
        return Selection("cpu", reason)
    return Selection("cuda", "the fastest backend on this machine")


def why_not_cuda(weight_type: WeightType, weight_bytes: int = 0) -> str | None:
    """Why the GPU cannot run such a model, as far as that is known before it is tried; None if it seems to."""
    try:
        gpu = probe.gpus()[0]
    except DeviceError as error:
        return str(error)
    if reason := probe.too_old(gpu.name, gpu.capability):
        return reason
    if not probe.is_backend_installed():
        return probe.NOT_INSTALLED
    if weight_type == "fp32":
        return "the GPU has no kernels for fp32 weights"
    if weight_bytes > gpu.memory_bytes:
        return f"{gpu.name} has too little memory for this model"
    return None


def create(
    device: str,
    source: ModelFile | Checkpoint,
    threads: int | None = None,
    compiling: Compiling = lambda _: nullcontext(),
) -> Created:
    """Build the backend for a --device option; a checkpoint that is no model file can only be read by the reference.

    `auto` goes on with the CPU where the GPU fails. `threads` is for the CPU; None takes `machine.default_threads`.
    Raises UsageError for a name that nothing has, DeviceError when the backend cannot run on this machine.
    """
    check(device)
    if not isinstance(source, ModelFile):
        from rwkv_cli.engine.backends.reference import ReferenceBackend

        return Created(ReferenceBackend(source), Selection("reference", "chosen with --device"))
    selection = select(device, source.info.weight_type, source.weight_bytes)
    if device != "auto" or selection.device != "cuda":
        return Created(_create(selection.device, source, threads, compiling), selection)
    try:
        return Created(_create("cuda", source, threads, compiling), selection)
    except DeviceError as error:
        failure = str(error)
    return Created(_create("cpu", source, threads, compiling), Selection("cpu", failure), failure)


def _create(device: str, source: ModelFile, threads: int | None, compiling: Compiling) -> Backend:
    if device == "reference":
        from rwkv_cli.engine.backends.reference import ReferenceBackend

        return ReferenceBackend(source)
    if device == "cuda":
        if reason := why_not_cuda(source.info.weight_type):
            raise DeviceError(reason)
        from rwkv_cli.engine.backends.cuda import open_cuda

        return open_cuda(source, lambda: compiling("GPU"))
    try:
        from rwkv_cli.engine.backends.cpu import CpuBackend, is_compiled
    except (ImportError, ValueError) as error:  # Numba is broken, or RWKV_CPU_KERNEL is wrong
        raise DeviceError(f"the CPU kernels cannot run: {error}") from None
    with nullcontext() if is_compiled() else compiling("CPU"):
        return CpuBackend(source, threads)
