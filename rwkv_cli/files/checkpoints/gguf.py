"""GGUF files of the architecture `rwkv7`, as llama.cpp's converter writes them."""

from __future__ import annotations

import math
from pathlib import Path

from rwkv_cli import tensors as table
from rwkv_cli.config import LAYER_NORM_EPS
from rwkv_cli.errors import CheckpointError, UnsupportedModelError
from rwkv_cli.files.checkpoints.base import (
    Checkpoint,
    LazyTensor,
    official_orientation,
    refuse_foreign,
    renamed,
    split_fused_shifts,
)
from rwkv_cli.files.checkpoints.beside import sensible_name
from rwkv_cli.files.checkpoints.chat_templates import template_of_keys
from rwkv_cli.files.checkpoints.gguf_header import Gguf, map_gguf
from rwkv_cli.files.checkpoints.gguf_tokenizer import tokenizer_spec


def open_gguf(path: Path) -> Checkpoint:
    """Open a GGUF file. Raises CheckpointError, or UnsupportedModelError for another kind of model."""
    file = map_gguf(path)
    if file.keys.get("split.count", 1) != 1:
        raise CheckpointError(
            f"{path} is one part of a split model: join the parts with llama-gguf-split --merge"
        )
    refuse_foreign(path, file.tensors, file.text("general.architecture"))
    tensors = renamed(path, file.tensors, table.from_gguf)
    split_fused_shifts(path, tensors)
    head_size = file.keys.get("rwkv7.wkv.head_size")
    official_orientation(tensors)
    for name, tensor in tensors.items():
        if (row := table.find(name)) and row.dims == "H N":
            tensors[name] = _by_heads(path, tensor, head_size)
    checkpoint = Checkpoint(
        path,
        "gguf",
        (path,),
        tensors,
        tokenizer_spec(path, file.keys),
        template_of_keys(path, file.keys),
        sensible_name(file.text("general.name")),
    )
    _check_keys(path, file, checkpoint)
    return checkpoint


def _by_heads(path: Path, tensor: LazyTensor, head_size: object) -> LazyTensor:
    """r_k as [H, N]; the converter flattens it to [C]."""
    size = math.prod(tensor.shape)
    if type(head_size) is not int or head_size < 1 or size % head_size:
        raise CheckpointError(f"{path} has an invalid rwkv7.wkv.head_size ({str(head_size)[:20]})")
    return tensor.reshaped(size // head_size, head_size)


def _check_keys(path: Path, file: Gguf, checkpoint: Checkpoint) -> None:
    """Refuse keys that describe another model than the tensors."""
    n_layer = file.keys.get("rwkv7.block_count", checkpoint.config.n_layer)
    if n_layer != checkpoint.config.n_layer:
        raise CheckpointError(
            f"{path} announces {str(n_layer)[:20]} layers but has {checkpoint.config.n_layer}: get it again"
        )
    epsilon = file.keys.get("rwkv7.attention.layer_norm_epsilon", LAYER_NORM_EPS)
    if not isinstance(epsilon, float) or not math.isclose(epsilon, LAYER_NORM_EPS, rel_tol=1e-4):
        raise UnsupportedModelError(
            f"{path} sets layer_norm_epsilon to {str(epsilon)[:20]}; RWKV-7 models have {LAYER_NORM_EPS}"
        )
