"""What the formats have in common: tensors one after another, as a format orients and encodes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkv_cli import tensors
from rwkv_cli.files.export import ExportJob
from rwkv_cli.files.quantization import Array, check_range, f32_to_bf16
from rwkv_cli.files.safetensors import release_pages
from rwkv_cli.tensors import Format, Tensor

SAFETENSORS = {"bf16": "BF16", "fp16": "F16", "fp32": "F32"}
"""What safetensors files call the types that `encoded` makes."""


def each_tensor(job: ExportJob, format: Format) -> Iterator[tuple[str, Tensor, Array]]:
    """Official name, row of the table and values, in the shape of the format, of every tensor; read one at a time."""
    config = job.source.config
    done, total = 0, config.n_params
    for name, row in tensors.every(config.n_layer):
        tensor = job.source.tensor(name)
        size, shape = tensor.size, row.shape_in(format, tensor.shape)
        yield name, row, tensor.T if format != "pth" and row.is_transposed else tensor.reshape(shape)
        release_pages(tensor)
        del tensor
        done += size
        job.progress(done, total)


def encoded(name: str, tensor: Array, kind: str) -> NDArray[Any]:
    """A tensor as bf16 (uint16), fp16 or fp32. Raises UnsupportedModelError for values beyond the type."""
    tensor = np.ascontiguousarray(tensor, np.float32)
    if kind == "fp32":
        return tensor
    check_range(name, tensor, kind)
    return f32_to_bf16(tensor) if kind == "bf16" else tensor.astype(np.float16)
