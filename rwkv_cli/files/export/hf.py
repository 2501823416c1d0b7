"""A folder in the layout of flash-linear-attention: config.json and model.safetensors."""

from __future__ import annotations

import json
from pathlib import Path

from rwkv_cli import tensors
from rwkv_cli.config import LAYER_NORM_EPS, ModelConfig
from rwkv_cli.errors import StorageError
from rwkv_cli.files.atomic import replacing, storage_error
from rwkv_cli.files.export import ExportJob
from rwkv_cli.files.export.encoding import SAFETENSORS, each_tensor, encoded
from rwkv_cli.files.safetensors import SafetensorsWriter
from rwkv_cli.tensors import hf_name

_TORCH_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


def write_hf(target: Path, job: ExportJob) -> None:
    """Write a folder; config.json comes last, so that a folder that has it is complete. Raises StorageError."""
    config = job.source.config
    try:
        target.mkdir(exist_ok=True)
    except OSError as error:
        raise storage_error(target, error) from None
    if not target.is_dir():
        raise StorageError(f"cannot write {target}: it is not a folder")
    shapes = config.tensor_shapes()
    announced = {
        hf_name(name): (SAFETENSORS[job.type], row.shape_in("hf", shapes[name]))
        for name, row in tensors.every(config.n_layer)
    }
    with SafetensorsWriter(target / "model.safetensors", announced, {"format": "pt"}) as writer:
        for name, _, tensor in each_tensor(job, "hf"):
            writer.write(hf_name(name), encoded(name, tensor, job.type))
    if job.tokenizer and job.tokenizer.kind == "tokenizer.json" and job.tokenizer.data:
        _write(target / "tokenizer.json", job.tokenizer.data)
    config_json = json.dumps(settings(config, _TORCH_DTYPES[job.type]), indent=2)
    _write(target / "config.json", config_json.encode() + b"\n")


def settings(config: ModelConfig, torch_dtype: str) -> dict[str, object]:
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
        "norm_eps": LAYER_NORM_EPS,
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
