"""From the names, shapes and orientations that files use to the official ones.

RWKV-7 has been ported to Hugging Face's transformers several times, and every port renamed its modules. These names are
understood, in any combination with a prefix such as `model.`, `rwkv7.`, `module.` or `_orig_mod.`:

    blocks.0.att.w1                         official: .pth, and safetensors of web-rwkv, Ai00 and RwkvForCausalLM
    blocks.0.att.w1.weight                  Rwkv7ForCausalLM whose low-rank maps are linear layers
    blocks.0.attention.w1                   Rwkv7ForCausalLM of the Pile models
    layers.0.linear_attn.w1                 RwkvForCausalLM of the rwkv-rs folders
    layers.0.attn.w_lora.lora.0.weight      flash-linear-attention, see `tensors`

Low-rank matrices are [C, rank] and [rank, C] in official files; web-rwkv, Ai00 and all linear layers store the
transpose. Nothing in a file says which it is but the shapes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

from rwkv_cli import tensors as table
from rwkv_cli.config import HEAD_SIZE, Shape
from rwkv_cli.errors import CheckpointError
from rwkv_cli.files.checkpoints.base import LazyTensor, renamed, split_fused_shifts
from rwkv_cli.tensors import FUSED_SHIFTS, Tensor

_PREFIX = re.compile(r"(model\.|rwkv7\.|rwkv\.|module\.|_orig_mod\.)+")
_IN_BLOCK = re.compile(r"(?:blocks|layers)\.(\d{1,4})\.([^.]+)\.(.+)", re.DOTALL)

# Modules of the ports and what they are officially; those of flash-linear-attention are in `tensors`.
_OUTER = {
    "embeddings": "emb",
    "embed_tokens": "emb",
    "embedding_norm": "blocks.0.ln0",
    "pre_ln": "blocks.0.ln0",
    "norm": "ln_out",
    "lm_head": "head",
}
_MODULES = {
    "pre_ln": "ln0",
    "input_layernorm": "ln1",
    "post_attention_layernorm": "ln2",
    "attention": "att",
    "linear_attn": "att",
    "feed_forward": "ffn",
    "mlp": "ffn",
}
_PARTS = {
    ("att", "r_proj"): "receptance",
    ("att", "k_proj"): "key",
    ("att", "v_proj"): "value",
    ("att", "o_proj"): "output",
    ("att", "g_norm"): "ln_x",
    ("ffn", "up_proj"): "key",
    ("ffn", "down_proj"): "value",
}


def official_tensors(
    path: Path,
    raw: Mapping[str, LazyTensor],
    head_size: int = HEAD_SIZE,
    is_transposed: bool | None = None,
) -> dict[str, LazyTensor]:
    """The tensors of a file under their official names and the right way round; unknown names stay as they are.

    `head_size` splits r_k into heads where it is stored flat. `is_transposed` says how low-rank matrices are stored in
    the one case that their shapes leave open, all ranks being equal to C. Raises CheckpointError for two tensors of one
    name, for low-rank matrices in both orientations, and for that one case if nothing decides it.
    """
    tensors = renamed(path, raw, official_name)
    split_fused_shifts(path, tensors)
    for name, tensor in tensors.items():
        if (row := table.find(name)) and row.dims == "H N":
            tensors[name] = _by_heads(tensor, head_size)
    linear = {official_name(name) for name in raw if name.endswith(".weight")}
    _turn(path, tensors, linear, is_transposed)
    return tensors


def official_name(name: str) -> str:
    """The official name of a tensor of any known port; another name is returned unchanged."""
    bare = _PREFIX.sub("", name, count=1) if _PREFIX.match(name) else name
    for candidate in (bare, table.from_hf(bare), _translated(bare)):
        if _is_known(candidate):
            return candidate
    return name


def _is_known(name: str) -> bool:
    return table.find(name) is not None or name.endswith(f".{FUSED_SHIFTS.name}")


def _translated(name: str) -> str:
    """A name of a port, without its prefix, part by part."""
    match = _IN_BLOCK.fullmatch(name)
    if match is None:
        module, _, rest = name.partition(".")
        return f"{_OUTER.get(module, module)}.{rest}"
    module = _MODULES.get(match[2], match[2])
    part, dot, rest = match[3].partition(".")
    official = f"blocks.{match[1]}.{module}.{_PARTS.get((module, part), part)}"
    row = table.find(official)
    # The weight of a linear layer, where official files have a bare matrix.
    return official if row and row.role == "low_rank" and rest == "weight" else official + dot + rest


def _by_heads(tensor: LazyTensor, head_size: int) -> LazyTensor:
    """r_k as [H, N] where it is stored flat, with dimensions of one or without; unchanged if heads do not fit."""
    size = math.prod(tensor.shape)
    is_flat = sum(extent > 1 for extent in tensor.shape) <= 1
    return tensor.reshaped(size // head_size, head_size) if is_flat and size % head_size == 0 else tensor


def _turn(path: Path, tensors: dict[str, LazyTensor], linear: set[str], is_transposed: bool | None) -> None:
    """Transpose all low-rank matrices if the file stores the transposes."""
    rows = {name: row for name in tensors if (row := table.find(name)) and row.is_transposed}
    embedding = tensors.get("emb.weight")
    n_embd = embedding.shape[-1] if embedding and embedding.shape else 0
    seen: dict[bool, str] = {}
    for name, row in rows.items():
        turned = _is_turned(row, tensors[name].shape, n_embd)
        if turned is not None:
            seen.setdefault(turned, name)
    if len(seen) == 2:
        raise CheckpointError(
            f"{path} stores {seen[False]} as {list(tensors[seen[False]].shape)} but {seen[True]} as "
            f"{list(tensors[seen[True]].shape)}: one of them is the wrong way round"
        )
    if not seen and all(name in linear for name in rows):
        is_transposed = True
    elif not seen and is_transposed is None and any(tensors[name].shape == (n_embd, n_embd) for name in rows):
        raise CheckpointError(
            f"{path} does not show which way round its low-rank matrices are, since all of them are square: use the "
            ".pth that it was made of"
        )
    if next(iter(seen), is_transposed):
        for name in rows:
            tensors[name] = tensors[name].transposed()


def _is_turned(row: Tensor, shape: Shape, n_embd: int) -> bool | None:
    """Whether a shape is that of the transpose; None if it may be either, or is neither."""
    if len(shape) != 2 or (shape[0] == n_embd) == (shape[1] == n_embd):
        return None
    return row.size_of("C", shape) != n_embd
