"""A Ray cluster: the connection, and what of it a replica of a model gets."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rwkv_cli.errors import DeviceError, UsageError, literal

if TYPE_CHECKING:
    from ray.data import ActorPoolStrategy

AHEAD = 2
"""Shards, or batches, that a replica has at the same time: one takes the slots that the last rows of another leave."""


_PATIENCE = 10  # seconds until an address counts as one where nothing listens


def check_installed() -> None:
    """Raise UsageError unless Ray is there."""
    try:
        import ray.data  # noqa: F401
    except ImportError:
        raise UsageError(
            "Ray needs packages: in the folder of rwkv's sources, pip install '.[ray]'"
        ) from None


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Be connected to a cluster until the end of the block: one at an address, that of the variable RAY_ADDRESS, the
    one that runs on this machine, or a new one on this machine.

    A connection that is there already is used, and stays. Raises UsageError where there is no such cluster.
    """
    check_installed()
    import ray

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster that is started here reports to nobody
    place = address or os.environ.get("RAY_ADDRESS") or "this machine"
    try:
        _check_reachable(place)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray has many, some of which are its own
        raise UsageError(f"cannot reach a Ray cluster at {literal(place)}: {first_line(error)}") from None
    try:
        yield
    finally:
        ray.shutdown()


def _check_reachable(place: str) -> None:
    """Raise OSError where nothing listens at an address with a port: Ray would try it for minutes."""
    host, _, port = place.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), _PATIENCE).close()


def replicas(size: int) -> ActorPoolStrategy:
    """How `map_batches` is to run this many replicas: each has a batch more than the one that it answers."""
    from ray.data import ActorPoolStrategy

    return ActorPoolStrategy(
        size=size, max_concurrent_calls_per_actor=AHEAD, enable_true_multi_threading=True
    )


@dataclass(frozen=True)
class Resources:
    """What a replica gets: cores, which are its threads, and GPUs."""

    num_cpus: int
    num_gpus: float

    def fitting(self) -> int:
        """How many replicas the cluster has room for now. Raises DeviceError for none."""
        import ray

        found = ray.cluster_resources()
        counts = [int(found.get("CPU", 0) // self.num_cpus)]
        if self.num_gpus:
            counts.append(int(found.get("GPU", 0) / self.num_gpus))
        if not min(counts):
            raise DeviceError(
                f"the Ray cluster has {found.get('CPU', 0):g} cores and {found.get('GPU', 0):g} GPUs: too few for a "
                f"replica with {self.num_cpus} and {self.num_gpus:g}"
            )
        return min(counts)

    def options(self) -> dict[str, Any]:
        """As arguments for `ray.remote` and `map_batches`."""
        return {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus}


def resources_for(device: str, threads: int | None, gpus: float | None) -> Resources:
    """What a replica gets unless it is said: a core and, where the cluster has any and `device` may be one, a GPU."""
    import ray

    if gpus is None:
        has_gpus = device in ("auto", "cuda") and ray.cluster_resources().get("GPU", 0) >= 1
        gpus = 1.0 if has_gpus or device == "cuda" else 0.0
    return Resources(threads or 1, gpus)


def device_for(device: str, resources: Resources) -> str:
    """The device of a replica with these resources: Ray shows it no other GPUs than its own."""
    if device != "auto":
        return device
    return "cuda" if resources.num_gpus else "cpu"


def first_line(error: BaseException) -> str:
    """What an error of Ray says, without a traceback."""
    if isinstance(error, OSError) and error.strerror:
        return literal(error.strerror.lower())
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return literal(lines[0] if lines else type(error).__name__)
