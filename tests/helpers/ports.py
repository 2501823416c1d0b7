"""Small models as safetensors under the names that web-rwkv and the ports to Hugging Face's transformers use."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from helpers.writers import Tensors, rows, with_low_rank_transposed, write_folder, write_safetensors
from rwkv_cli.config import ModelConfig


def write_st(path: Path, tensors: Tensors, dtype: str = "f16") -> Path:
    """The file that the converters of web-rwkv and Ai00 write."""
    return write_safetensors(path, rows(with_low_rank_transposed(tensors)), dtype)


def write_port(
    folder: Path, tensors: Tensors, port: str, shards: int = 1, dtype: str = "bf16", **changes: Any
) -> Path:
    """The folder that the converter of a port writes, with changes to its `config.json`."""
    config = ModelConfig.from_shapes({name: tensor.shape for name, tensor in tensors.items()})
    rename, settings = PORTS[port]
    return write_folder(folder, rename(tensors), settings(config) | changes, shards, dtype)


def _renamed(tensors: Tensors, pairs: Mapping[str, str]) -> Tensors:
    """The tensors under other names; each pair is a pattern and what replaces it."""
    result = {}
    for name, tensor in tensors.items():
        for pattern, replacement in pairs.items():
            name = re.sub(pattern, replacement, name)
        result[name] = tensor
    return result


def _official(tensors: Tensors) -> Tensors:
    return _renamed(tensors, {r"^(?!head)": "model."})


def _official_rwkv7(tensors: Tensors) -> Tensors:
    return _renamed(rows(tensors), {r"^(?!head)": "rwkv7."})


def _linear(tensors: Tensors) -> Tensors:
    pairs = {r"^emb\.": "embeddings.", r"(\.att\.[wavg][12])$": r"\1.weight", r"^(?!head)": "model."}
    return _renamed(rows(with_low_rank_transposed(tensors)), pairs)


def _pile(tensors: Tensors) -> Tensors:
    pairs = {
        r"^emb\.": "embeddings.",
        r"\.ln0\.": ".pre_ln.",
        r"\.att\.": ".attention.",
        r"\.ffn\.": ".feed_forward.",
        r"^(?!head)": "rwkv7.",
    }
    return _renamed(rows(tensors), pairs)


_QWEN_STYLE = {
    r"^emb\.": "model.embed_tokens.",
    r"^blocks\.0\.ln0\.": "model.embedding_norm.",
    r"^ln_out\.": "model.norm.",
    r"^head\.": "lm_head.",
    r"^blocks\.": "model.layers.",
    r"\.ln1\.": ".input_layernorm.",
    r"\.ln2\.": ".post_attention_layernorm.",
    r"\.att\.receptance\.": ".att.r_proj.",
    r"\.att\.key\.": ".att.k_proj.",
    r"\.att\.value\.": ".att.v_proj.",
    r"\.att\.output\.": ".att.o_proj.",
    r"\.att\.ln_x\.": ".att.g_norm.",
    r"\.att\.": ".linear_attn.",
}


def _qwen_style(tensors: Tensors) -> Tensors:
    return _renamed(tensors, _QWEN_STYLE | {r"\.ffn\.": ".mlp."})


def _qwen_style_mlp(tensors: Tensors) -> Tensors:
    pairs = {r"\.ffn\.key\.": ".mlp.up_proj.", r"\.ffn\.value\.": ".mlp.down_proj.", r"\.ffn\.": ".mlp."}
    return _renamed(rows(tensors), _QWEN_STYLE | pairs)


def _sizes(config: ModelConfig) -> dict[str, Any]:
    return {
        "hidden_size": config.n_embd,
        "intermediate_size": config.n_ffn,
        "num_hidden_layers": config.n_layer,
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": False,
    }


def _rwkv7_config(config: ModelConfig) -> dict[str, Any]:
    return _sizes(config) | {
        "architectures": ["Rwkv7ForCausalLM"],
        "model_type": "rwkv7",
        "head_dim": config.head_size,
        "attention_hidden_size": config.n_embd,
        "decay_low_rank_dim": config.rank_w,
        "a_low_rank_dim": config.rank_a,
        "value_low_rank_dim": config.rank_v,
        "gate_low_rank_dim": config.rank_g,
        "wkv_mode": "fp32io16",
    }


def _linear_config(config: ModelConfig) -> dict[str, Any]:
    return _sizes(config) | {
        "architectures": ["Rwkv7ForCausalLM"],
        "model_type": "rwkv7",
        "head_size": config.head_size,
        "layer_norm_epsilon": 1e-5,
        "group_norm_epsilon": 64e-5,
        "embedding_layer_norm_fused": False,
    }


def _pile_config(config: ModelConfig) -> dict[str, Any]:
    return _sizes(config) | {
        "architectures": ["Rwkv7ForCausalLM"],
        "model_type": "rwkv7",
        "head_size": config.head_size,
        "intermediate_size": None,
        "layer_norm_epsilon": 1e-5,
        "lora_rank_decay": config.rank_w,
        "lora_rank_iclr": config.rank_a,
        "lora_rank_value_residual_mix": config.rank_v,
        "lora_rank_gate": config.rank_g,
    }


def _rwkv_config(config: ModelConfig) -> dict[str, Any]:
    return _sizes(config) | {
        "architectures": ["RwkvForCausalLM"],
        "architecture_version": "rwkv7",
        "model_type": "rwkv",
        "head_size": config.head_size,
        "num_attention_heads": config.n_head,
        "layer_norm_epsilon": 1e-5,
        "group_norm_epsilon": 64e-5,
        "decay_low_rank_dim": config.rank_w,
        "a_low_rank_dim": config.rank_a,
        "v_low_rank_dim": config.rank_v,
        "gate_low_rank_dim": config.rank_g,
        "wkv_mode": "fp32io16",
    }


PORTS: dict[str, tuple[Callable[[Tensors], Tensors], Callable[[ModelConfig], dict[str, Any]]]] = {
    "Rwkv7ForCausalLM": (_official, _rwkv7_config),
    "Rwkv7ForCausalLM, prefix rwkv7": (_official_rwkv7, _rwkv7_config),
    "Rwkv7ForCausalLM, linear layers": (_linear, _linear_config),
    "Rwkv7ForCausalLM, Pile": (_pile, _pile_config),
    "RwkvForCausalLM, official names": (_official, _rwkv_config),
    "RwkvForCausalLM": (_qwen_style, _rwkv_config),
    "RwkvForCausalLM, mlp": (_qwen_style_mlp, _rwkv_config),
}
"""Port -> names and orientations of its tensors, and its `config.json`."""
