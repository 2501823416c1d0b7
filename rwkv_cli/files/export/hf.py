"""A folder in the layout of flash-linear-attention: config.json and model.safetensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rwkv_cli.config import ModelConfig, Shape
from rwkv_cli.errors import StorageError
from rwkv_cli.files.atomic import replacing, storage_error
from rwkv_cli.files.checkpoints.hf import LAYER_NAMES, OUTER_NAMES
from rwkv_cli.files.export import Export
from rwkv_cli.files.export.tensors import LOW_RANK, SHIFT, each, encoded
from rwkv_cli.files.safetensors import SafetensorsWriter

_DTYPES = {"bf16": ("BF16", "bfloat16"), "fp16": ("F16", "float16"), "fp32": ("F32", "float32")}
_OUTER = {official: name for name, official in OUTER_NAMES.items()}
_LAYER = {official: name for name, official in LAYER_NAMES.items()}


def write_hf(target: Path, what: Export) -> None:
    """Write a folder; the weights first, so that a folder without config.json is not complete. Raises StorageError."""
    config = what.source.config
    dtype, torch_dtype = _DTYPES[what.type]
    try:
        target.mkdir(exist_ok=True)
    except OSError as error:
        raise storage_error(target, error) from None
    if not target.is_dir():
        raise StorageError(f"cannot write {target}: it is no folder")
    shapes = config.tensor_shapes()
    announced = {hf_name(name): (dtype, hf_shape(name, shapes[name])) for name in shapes}
    with SafetensorsWriter(target / "model.safetensors", announced, {"format": "pt"}) as writer:
        for name, tensor in each(what.source, what.progress):
            tensor = tensor.T if LOW_RANK.search(name) else tensor.reshape(hf_shape(name, shapes[name]))
            writer.write(hf_name(name), encoded(name, tensor, what.type))
    if what.tokenizer and what.tokenizer.kind == "tokenizer.json" and what.tokenizer.data:
        _write(target / "tokenizer.json", what.tokenizer.data)
    _write(target / "config.json", json.dumps(settings(config, torch_dtype), indent=2).encode() + b"\n")


def hf_name(name: str) -> str:
    """The name of a tensor in this layout."""
    if name in _OUTER:
        shown = _OUTER[name]
    else:
        _, layer, rest = name.split(".", 2)
        shown = f"layers.{layer}.{_LAYER[rest]}"
    return shown if shown.startswith("lm_head") else f"model.{shown}"


def hf_shape(name: str, shape: Shape) -> Shape:
    """The shape of a tensor in this layout: low-rank matrices are turned, the shifts of attention are rows."""
    if LOW_RANK.search(name):
        return shape[::-1]
    return (1, 1, *shape) if SHIFT.search(name) else shape


def settings(config: ModelConfig, torch_dtype: str) -> dict[str, Any]:
    """The config.json of RWKV7ForCausalLM."""
    return {
        "architectures": ["RWKV7ForCausalLM"],
        "model_type": "rwkv7",
        "hidden_size": config.n_embd,
        "intermediate_size": config.n_ffn,
        "hidden_ratio": config.n_ffn / config.n_embd,
        "num_hidden_layers": config.n_layer,
        "num_heads": config.n_head,
        "head_dim": config.head_size,
        "value_dim": [config.n_embd] * config.n_layer,
        "vocab_size": config.vocab_size,
        "decay_low_rank_dim": config.rank_w,
        "a_low_rank_dim": config.rank_a,
        "v_low_rank_dim": config.rank_v,
        "gate_low_rank_dim": config.rank_g,
        "hidden_act": "sqrelu",
        "norm_first": True,
        "norm_bias": True,
        "norm_eps": 1e-5,
        "attn": None,
        "attn_mode": "chunk",
        "fuse_norm": False,
        "fuse_cross_entropy": True,
        "initializer_range": 0.006,
        "max_position_embeddings": 2048,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "tie_word_embeddings": False,
        "torch_dtype": torch_dtype,
        "use_cache": True,
    }


def _write(path: Path, data: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(data)
