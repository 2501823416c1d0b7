"""Hugging Face directories in the layout of flash-linear-attention: `config.json` and safetensors files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rwkv_cli.config import ModelConfig
from rwkv_cli.errors import CheckpointError, UnsupportedModelError
from rwkv_cli.files.checkpoints.base import (
    Checkpoint,
    LazyTensor,
    mapped_tensor,
    refuse_foreign,
    renamed,
    split_fused_shifts,
)
from rwkv_cli.files.checkpoints.pth import read_state_dict
from rwkv_cli.files.safetensors import map_safetensors

CONFIG = "config.json"
# One file or an index of several, in safetensors or in the older PyTorch pickles.
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_INDEX = ".index.json"
_MAX_JSON = 64 << 20

_FLOATS = ("bf16", "f16", "f32", "f64")

OUTER_NAMES = {
    "embeddings.weight": "emb.weight",
    "layers.0.pre_norm.weight": "blocks.0.ln0.weight",
    "layers.0.pre_norm.bias": "blocks.0.ln0.bias",
    "norm.weight": "ln_out.weight",
    "norm.bias": "ln_out.bias",
    "lm_head.weight": "head.weight",
}
LAYER_NAMES = {
    "attn_norm.weight": "ln1.weight",
    "attn_norm.bias": "ln1.bias",
    "ffn_norm.weight": "ln2.weight",
    "ffn_norm.bias": "ln2.bias",
    "attn.r_proj.weight": "att.receptance.weight",
    "attn.k_proj.weight": "att.key.weight",
    "attn.v_proj.weight": "att.value.weight",
    "attn.o_proj.weight": "att.output.weight",
    "attn.g_norm.weight": "att.ln_x.weight",
    "attn.g_norm.bias": "att.ln_x.bias",
    **{f"attn.x_{letter}": f"att.x_{letter}" for letter in "rwkvagx"},
    **{f"attn.{letter}_lora.lora.0.weight": f"att.{letter}1" for letter in "wavg"},
    **{f"attn.{letter}_lora.lora.2.weight": f"att.{letter}2" for letter in "wavg"},
    **{f"attn.{letter}_lora.lora.2.bias": f"att.{letter}0" for letter in "wav"},
    **{f"attn.{name}": f"att.{name}" for name in ("k_k", "k_a", "r_k")},
    **{f"ffn.{name}": f"ffn.{name}" for name in ("x_k", "key.weight", "value.weight")},
}
_LOW_RANK = re.compile(r"blocks\.[0-9]+\.att\.[wavg][12]")

# Settings of the layout that a checkpoint cannot show in its tensors, with the only values that RWKV-7 has.
_FIXED_SETTINGS = {"norm_eps": 1e-5, "hidden_act": "sqrelu", "norm_first": True}
# Settings that repeat the sizes of the tensors, and their names in ModelConfig.
_SIZES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "vocab_size": "vocab_size",
    "head_dim": "head_size",
    "intermediate_size": "n_ffn",
}


def open_hf(path: Path) -> Checkpoint:
    """Open a directory, or one safetensors file with the `config.json` beside it.

    Raises CheckpointError, or UnsupportedModelError for another kind of model.
    """
    folder = path if path.is_dir() else path.parent
    settings = _read_settings(folder / CONFIG)
    files = weight_files(path) if path.is_dir() else (path,)
    raw: dict[str, LazyTensor] = {}
    for file in files:
        for name, tensor in _map_weights(file).items():
            if name in raw:
                raise CheckpointError(f"{file} repeats the tensor {name[:80]!r} of another file")
            raw[name] = tensor
    refuse_foreign(path, raw, settings.get("model_type"))
    for name, tensor in raw.items():
        if tensor.dtype not in _FLOATS:
            raise CheckpointError(
                f"{path} holds the tensor {name[:80]!r} as {tensor.dtype}: no type for weights"
            )
    tensors = renamed(path, raw, official_name)
    split_fused_shifts(path, tensors)
    for name in tensors:
        if _LOW_RANK.fullmatch(name):
            tensors[name] = tensors[name].transposed()
    if (
        settings.get("tie_word_embeddings") is True
        and "head.weight" not in tensors
        and "emb.weight" in tensors
    ):
        tensors["head.weight"] = tensors["emb.weight"]
    checkpoint = Checkpoint(path, "hf", files, tensors)
    _check_settings(folder / CONFIG, settings, checkpoint.config)
    return checkpoint


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The weight files of a directory, in the order of their names; empty where it holds no model.

    Raises CheckpointError where a shard is missing or the choice is not clear.
    """
    for name in WEIGHTS:
        if (folder / name).is_file():
            return (folder / name,)
        if (folder / (name + _INDEX)).is_file():
            return _shards(folder / (name + _INDEX))
    others = sorted(folder.glob("*.safetensors"))
    if len(others) > 1:
        raise CheckpointError(
            f"{folder} holds {len(others)} safetensors files but no {WEIGHTS[0]}{_INDEX} to join them"
        )
    return tuple(others)


def official_name(name: str) -> str:
    """The official name of a tensor in this layout; a name of no place in it is returned as it is."""
    name = name.removeprefix("model.")
    if name in OUTER_NAMES:
        return OUTER_NAMES[name]
    layer, _, rest = name.removeprefix("layers.").partition(".")
    if name.startswith("layers.") and rest in LAYER_NAMES:
        return f"blocks.{layer}.{LAYER_NAMES[rest]}"
    return name


def _map_weights(file: Path) -> dict[str, LazyTensor]:
    if file.suffix == ".bin":
        return read_state_dict(file)
    try:
        mapped = map_safetensors(file)
    except ValueError as error:
        raise CheckpointError(f"{file} cannot be read: {error}; get it again") from None
    tensors = {}
    for name, (dtype, _, array) in mapped.tensors.items():
        tensors[name] = mapped_tensor(array, dtype.lower())
    return tensors


def _shards(index: Path) -> tuple[Path, ...]:
    names = _read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise CheckpointError(f"{index} lists no weight files: get it again")
    files = []
    for name in sorted(set(names.values())):
        # A list of files from elsewhere must not lead out of its own folder.
        if not name or Path(name).name != name or "\\" in name:
            raise CheckpointError(f"{index} names a file outside its folder: {name[:80]!r}")
        if not (index.parent / name).is_file():
            raise CheckpointError(f"the file {name} is missing in {index.parent}: get it too")
        files.append(index.parent / name)
    return tuple(files)


def _read_settings(path: Path) -> dict[str, Any]:
    """`config.json`, or nothing where there is none: the sizes come from the tensors."""
    return _read_json(path) if path.is_file() else {}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes()) if path.stat().st_size <= _MAX_JSON else None
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is no JSON object: get it again")
    return content


def _check_settings(path: Path, settings: Mapping[str, Any], config: ModelConfig) -> None:
    """Refuse a `config.json` that describes another model than the tensors."""
    for name, value in _FIXED_SETTINGS.items():
        if name in settings and settings[name] != value:
            shown = str(settings[name])[:20]
            raise UnsupportedModelError(f"{path} sets {name} to {shown}; RWKV-7 models have {value}")
    sizes = config.as_dict()
    for name, field in _SIZES.items():
        value = settings.get(name)
        if value is not None and value != sizes[field]:
            raise CheckpointError(
                f"{path} sets {name} to {str(value)[:20]}, but the tensors say {sizes[field]}"
            )
