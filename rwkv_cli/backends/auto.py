"""The choice of a backend: imports only what it chooses, and says why."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, NamedTuple, get_args

from rwkv_cli.backends.base import Backend
from rwkv_cli.checkpoints import Checkpoint
from rwkv_cli.errors import DeviceError, UsageError
from rwkv_cli.modelfile import ModelFile

Device = Literal["auto", "cpu", "reference"]
DEVICES: tuple[Device, ...] = get_args(Device)


class Selection(NamedTuple):
    """A backend by name, and why it was taken."""

    device: Literal["cpu", "reference"]
    reason: str


def select(device: str) -> Selection:
    """The backend for a --device option. Raises UsageError for a name that nothing has."""
    if device not in DEVICES:
        raise UsageError(f"there is no device {device!r}: choose among {', '.join(DEVICES)}")
    if device == "auto":
        return Selection("cpu", "the fastest backend that this version has")
    return Selection("cpu" if device == "cpu" else "reference", "chosen with --device")


def create(
    selection: Selection,
    source: ModelFile | Checkpoint,
    threads: int | None = None,
    compiling: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Backend:
    """Build the selected backend; a checkpoint that is no model file can only be read by the reference.

    `threads` is for the CPU; None takes `machine.default_threads`. `compiling()` is around the compilation of kernels,
    which takes long and happens once. Raises DeviceError when the backend cannot run on this machine.
    """
    if selection.device == "cpu" and isinstance(source, ModelFile):
        try:
            from rwkv_cli.backends.cpu import CpuBackend, is_compiled
        except (ImportError, ValueError) as error:  # Numba is broken, or RWKV_CPU_KERNEL is wrong
            raise DeviceError(f"the CPU kernels cannot run: {error}") from None
        with nullcontext() if is_compiled() else compiling():
            return CpuBackend(source, threads)
    from rwkv_cli.backends.reference import ReferenceBackend

    return ReferenceBackend(source)
