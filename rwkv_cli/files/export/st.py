"""The file of web-rwkv and Ai00: safetensors under official names, with the low-rank matrices transposed."""

from __future__ import annotations

from pathlib import Path

from rwkv_cli import tensors
from rwkv_cli.files.export import ExportJob
from rwkv_cli.files.export.encoding import SAFETENSORS, each_tensor, encoded
from rwkv_cli.files.safetensors import SafetensorsWriter


def write_st(target: Path, job: ExportJob) -> None:
    """Write a `.st` file. Raises StorageError, UnsupportedModelError."""
    shapes = job.source.config.tensor_shapes()
    announced = {
        name: (SAFETENSORS[job.type], row.shape_in("st", shapes[name]))
        for name, row in tensors.every(job.source.config.n_layer)
    }
    with SafetensorsWriter(target, announced, {"format": "pt"}) as writer:
        for name, _, tensor in each_tensor(job, "st"):
            writer.write(name, encoded(name, tensor, job.type))
