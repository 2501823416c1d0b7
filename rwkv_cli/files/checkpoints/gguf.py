"""GGUF files of the architecture `rwkv7`, as llama.cpp's converter writes them."""

from __future__ import annotations

import math
import re
from pathlib import Path

from rwkv_cli.errors import CheckpointError, UnsupportedModelError
from rwkv_cli.files.checkpoints.base import (
    Checkpoint,
    LazyTensor,
    refuse_foreign,
    renamed,
    split_fused_shifts,
)
from rwkv_cli.files.checkpoints.gguf_header import Gguf, map_gguf
from rwkv_cli.files.checkpoints.gguf_tokenizer import tokenizer_spec

OUTER_NAMES = {
    "token_embd": "emb.weight",
    "token_embd_norm": "blocks.0.ln0.weight",
    "token_embd_norm.bias": "blocks.0.ln0.bias",
    "output_norm": "ln_out.weight",
    "output_norm.bias": "ln_out.bias",
    "output": "head.weight",
}
LAYER_NAMES = {
    "attn_norm": "ln1.weight",
    "attn_norm.bias": "ln1.bias",
    "attn_norm_2": "ln2.weight",
    "attn_norm_2.bias": "ln2.bias",
    "time_mix_lerp_fused": "att.x_x",
    **{f"time_mix_{letter}{digit}": f"att.{letter}{digit}" for letter in "wav" for digit in "012"},
    **{f"time_mix_{name}": f"att.{name}" for name in ("g1", "g2", "k_k", "k_a", "r_k")},
    **{f"time_mix_{name}": f"att.{name}.weight" for name in ("receptance", "key", "value", "output")},
    "time_mix_ln": "att.ln_x.weight",
    "time_mix_ln.bias": "att.ln_x.bias",
    "channel_mix_lerp_k": "ffn.x_k",
    "channel_mix_key": "ffn.key.weight",
    "channel_mix_value": "ffn.value.weight",
}
_LOW_RANK = re.compile(r"blocks\.[0-9]+\.att\.[wavg][12]")
_NORM_EPSILON = 1e-5


def open_gguf(path: Path) -> Checkpoint:
    """Open a GGUF file. Raises CheckpointError, or UnsupportedModelError for another kind of model."""
    file = map_gguf(path)
    if file.keys.get("split.count", 1) != 1:
        raise CheckpointError(
            f"{path} is one part of a split model: join the parts with llama-gguf-split --merge"
        )
    refuse_foreign(path, file.tensors, file.text("general.architecture"))
    tensors = renamed(path, file.tensors, official_name)
    split_fused_shifts(path, tensors)
    head_size = file.keys.get("rwkv7.wkv.head_size")
    for name, tensor in tensors.items():
        if _LOW_RANK.fullmatch(name):
            tensors[name] = tensor.transposed()
        elif name.endswith(".att.r_k"):
            tensors[name] = _by_heads(path, tensor, head_size)
    checkpoint = Checkpoint(path, "gguf", (path,), tensors, tokenizer_spec(path, file.keys))
    _check_keys(path, file, checkpoint)
    return checkpoint


def official_name(name: str) -> str:
    """The official name of a tensor; a name of no place in the architecture is returned as it is."""
    stem = name.removesuffix(".weight")
    if stem in OUTER_NAMES:
        return OUTER_NAMES[stem]
    prefix, _, rest = stem.partition(".")
    layer, _, rest = rest.partition(".")
    return f"blocks.{layer}.{LAYER_NAMES[rest]}" if prefix == "blk" and rest in LAYER_NAMES else name


def _by_heads(path: Path, tensor: LazyTensor, head_size: object) -> LazyTensor:
    """r_k as [H, N]; the converter flattens it to [C]."""
    size = math.prod(tensor.shape)
    if type(head_size) is not int or head_size < 1 or size % head_size:
        raise CheckpointError(f"{path} has no sensible rwkv7.wkv.head_size ({str(head_size)[:20]})")
    return tensor.reshaped(size // head_size, head_size)


def _check_keys(path: Path, file: Gguf, checkpoint: Checkpoint) -> None:
    """Refuse keys that describe another model than the tensors."""
    n_layer = file.keys.get("rwkv7.block_count", checkpoint.config.n_layer)
    if n_layer != checkpoint.config.n_layer:
        raise CheckpointError(
            f"{path} announces {str(n_layer)[:20]} layers and holds {checkpoint.config.n_layer}: get it again"
        )
    epsilon = file.keys.get("rwkv7.attention.layer_norm_epsilon", _NORM_EPSILON)
    if not isinstance(epsilon, float) or not math.isclose(epsilon, _NORM_EPSILON, rel_tol=1e-4):
        raise UnsupportedModelError(
            f"{path} sets layer_norm_epsilon to {str(epsilon)[:20]}; RWKV-7 models have {_NORM_EPSILON}"
        )
