"""What the formats have in common: tensors one after another, encoded, into a file that appears when it is whole."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkv_cli.errors import UnsupportedModelError
from rwkv_cli.files.export import Progress
from rwkv_cli.files.safetensors import let_go
from rwkv_cli.files.weight_layouts import f32_to_bf16
from rwkv_cli.files.weight_source import WeightSource

Array = NDArray[np.float32]

LOW_RANK = re.compile(r"\.att\.[wavg][12]$")
SHIFT = re.compile(r"\.att\.x_[rwkvag]$")


def each(source: WeightSource, progress: Progress) -> Iterator[tuple[str, Array]]:
    """Every tensor by its official name, one in memory at a time."""
    done, total = 0, source.config.n_params
    for name in source.config.tensor_shapes():
        tensor = source.tensor(name)
        size = tensor.size
        yield name, tensor
        let_go(tensor)
        del tensor
        done += size
        progress(done, total)


def encoded(name: str, tensor: Array, kind: str) -> NDArray[Any]:
    """A tensor as bf16 (uint16), fp16 or fp32. Raises UnsupportedModelError for values beyond the type."""
    tensor = np.ascontiguousarray(tensor, np.float32)
    if kind == "fp32":
        return tensor
    largest = max(float(tensor.max()), -float(tensor.min()))
    if largest > (3.3895e38 if kind == "bf16" else float(np.finfo(np.float16).max)):
        raise UnsupportedModelError(f"{name} holds values too large for {kind}; use --type fp32")
    return f32_to_bf16(tensor) if kind == "bf16" else tensor.astype(np.float16)
