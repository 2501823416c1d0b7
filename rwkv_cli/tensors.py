"""The one table of tensors: what RWKV-7 consists of, and what every tensor is called and stored like elsewhere.

All else that the program knows about tensors is computed from it: shapes, the check of names, layouts and types of a
model file, the names and orientations of GGUF and Hugging Face, what a LoRA may adapt. The dimension letters are those
of `rwkv_cli.config`. A new tensor needs a row here, and kernels that use it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

Shape = tuple[int, ...]

Role = Literal["vector", "embedding", "matrix", "low_rank", "by_hidden_unit"]
"""What a tensor is to the computation; how it is stored follows from it, see `files.weight_layouts`.

    vector          norms, token-shift mixes, biases: small, and sensitive to rounding
    embedding       the table [V, C] that one row is read from per token
    matrix          a big matrix [out, in], read whole for every token
    low_rank        half of a low-rank pair, [C, D] or [D, C]: multiplied from the left, `x @ w1 @ w2`
    by_hidden_unit  ffn.value [C, F], most of whose inputs are zero: read by hidden unit
"""

Format = Literal["pth", "hf", "st", "gguf"]
"""Official checkpoints, Hugging Face in the layout of flash-linear-attention (fla), web-rwkv, and llama.cpp."""


@dataclass(frozen=True)
class Tensor:
    """One row of the table."""

    name: str  # official; of a block's tensor what follows "blocks.i."
    dims: str  # a letter for each dimension, as in official files
    role: Role
    gguf: str | None  # the name in GGUF, of a block what follows "blk.i."; None where it is only stored fused
    hf: str  # the name in fla, without "model."; of a block's tensor what follows "layers.i."
    first_layer: int = 0  # the first layer that has it
    row_in: tuple[Format, ...] = ()  # the formats that store it as [1, 1, C]
    gguf_float32: bool = False  # a matrix that GGUF always stores as float32

    def shape(self, sizes: Mapping[str, int]) -> Shape:
        """The shape in a model of these sizes, by dimension letter."""
        return tuple(sizes[letter] for letter in self.dims.split())

    def size_of(self, letter: str, shape: Shape) -> int | None:
        """The extent of a dimension in a shape of this tensor, or None if it has no such dimension."""
        letters = self.dims.split()
        return shape[letters.index(letter)] if letter in letters else None

    @property
    def is_transposed(self) -> bool:
        """Whether GGUF, fla and web-rwkv store it as [out, in], the transpose of the official [in, out]."""
        return self.role == "low_rank"

    @property
    def takes_lora(self) -> bool:
        """Whether a LoRA adapter can change it."""
        return self.role != "vector"

    def shape_in(self, format: Format, shape: Shape) -> Shape:
        """The shape of this tensor in a file of another format, given its official shape."""
        if format in self.row_in:
            return (1, 1, *shape)
        if format != "pth" and self.is_transposed:
            return shape[::-1]
        if format == "gguf" and self.role == "vector":
            return (math.prod(shape),)  # r_k [H, N] is flat there
        return shape


_ROW: tuple[Format, ...] = ("pth", "st")
_ROW_EVERYWHERE: tuple[Format, ...] = ("pth", "st", "hf")

# In the order of the forward pass, which is also the order in which files are written.
# fmt: off
INPUT = (
    Tensor("emb.weight", "V C", "embedding", "token_embd.weight", "embeddings.weight"),
    Tensor("blocks.0.ln0.weight", "C", "vector", "token_embd_norm.weight", "layers.0.pre_norm.weight"),
    Tensor("blocks.0.ln0.bias", "C", "vector", "token_embd_norm.bias", "layers.0.pre_norm.bias"),
)
BLOCK = (
    Tensor("ln1.weight", "C", "vector", "attn_norm.weight", "attn_norm.weight"),
    Tensor("ln1.bias", "C", "vector", "attn_norm.bias", "attn_norm.bias"),
    Tensor("att.x_r", "C", "vector", None, "attn.x_r", row_in=_ROW_EVERYWHERE),
    Tensor("att.x_w", "C", "vector", None, "attn.x_w", row_in=_ROW_EVERYWHERE),
    Tensor("att.x_k", "C", "vector", None, "attn.x_k", row_in=_ROW_EVERYWHERE),
    Tensor("att.x_v", "C", "vector", None, "attn.x_v", row_in=_ROW_EVERYWHERE),
    Tensor("att.x_a", "C", "vector", None, "attn.x_a", row_in=_ROW_EVERYWHERE),
    Tensor("att.x_g", "C", "vector", None, "attn.x_g", row_in=_ROW_EVERYWHERE),
    Tensor("att.w0", "C", "vector", "time_mix_w0.weight", "attn.w_lora.lora.2.bias", row_in=_ROW),
    Tensor("att.w1", "C Dw", "low_rank", "time_mix_w1.weight", "attn.w_lora.lora.0.weight", gguf_float32=True),
    Tensor("att.w2", "Dw C", "low_rank", "time_mix_w2.weight", "attn.w_lora.lora.2.weight", gguf_float32=True),
    Tensor("att.a0", "C", "vector", "time_mix_a0.weight", "attn.a_lora.lora.2.bias", row_in=_ROW),
    Tensor("att.a1", "C Da", "low_rank", "time_mix_a1.weight", "attn.a_lora.lora.0.weight"),
    Tensor("att.a2", "Da C", "low_rank", "time_mix_a2.weight", "attn.a_lora.lora.2.weight"),
    Tensor("att.v0", "C", "vector", "time_mix_v0.weight", "attn.v_lora.lora.2.bias", 1, row_in=_ROW),
    Tensor("att.v1", "C Dv", "low_rank", "time_mix_v1.weight", "attn.v_lora.lora.0.weight", 1),
    Tensor("att.v2", "Dv C", "low_rank", "time_mix_v2.weight", "attn.v_lora.lora.2.weight", 1),
    Tensor("att.g1", "C Dg", "low_rank", "time_mix_g1.weight", "attn.g_lora.lora.0.weight"),
    Tensor("att.g2", "Dg C", "low_rank", "time_mix_g2.weight", "attn.g_lora.lora.2.weight"),
    Tensor("att.k_k", "C", "vector", "time_mix_k_k.weight", "attn.k_k", row_in=_ROW),
    Tensor("att.k_a", "C", "vector", "time_mix_k_a.weight", "attn.k_a", row_in=_ROW),
    Tensor("att.r_k", "H N", "vector", "time_mix_r_k.weight", "attn.r_k"),
    Tensor("att.receptance.weight", "C C", "matrix", "time_mix_receptance.weight", "attn.r_proj.weight"),
    Tensor("att.key.weight", "C C", "matrix", "time_mix_key.weight", "attn.k_proj.weight"),
    Tensor("att.value.weight", "C C", "matrix", "time_mix_value.weight", "attn.v_proj.weight"),
    Tensor("att.output.weight", "C C", "matrix", "time_mix_output.weight", "attn.o_proj.weight"),
    Tensor("att.ln_x.weight", "C", "vector", "time_mix_ln.weight", "attn.g_norm.weight"),
    Tensor("att.ln_x.bias", "C", "vector", "time_mix_ln.bias", "attn.g_norm.bias"),
    Tensor("ln2.weight", "C", "vector", "attn_norm_2.weight", "ffn_norm.weight"),
    Tensor("ln2.bias", "C", "vector", "attn_norm_2.bias", "ffn_norm.bias"),
    Tensor("ffn.x_k", "C", "vector", "channel_mix_lerp_k.weight", "ffn.x_k", row_in=_ROW),
    Tensor("ffn.key.weight", "F C", "matrix", "channel_mix_key.weight", "ffn.key.weight"),
    Tensor("ffn.value.weight", "C F", "by_hidden_unit", "channel_mix_value.weight", "ffn.value.weight"),
)
OUTPUT = (
    Tensor("ln_out.weight", "C", "vector", "output_norm.weight", "norm.weight"),
    Tensor("ln_out.bias", "C", "vector", "output_norm.bias", "norm.bias"),
    Tensor("head.weight", "V C", "matrix", "output.weight", "lm_head.weight"),
)
# fmt: on

# The six token shifts of the time mix stacked into one tensor: GGUF always, fla in some versions.
SHIFTS = tuple(tensor.name for tensor in BLOCK if tensor.name.startswith("att.x_"))
FUSED_SHIFTS = Tensor("att.x_x", "6 C", "vector", "time_mix_lerp_fused.weight", "attn.x_x")

# The order in which the kernels of cpu_kernels/ and cuda/ index a layer's vectors (the six mixes, what the recurrence
# takes, and the norms with the mix of the channel mix), a layer's matrices, and the norms around all layers.
VECTORS = (
    *("att.x_r", "att.x_k", "att.x_v", "att.x_w", "att.x_a", "att.x_g", "att.w0", "att.a0", "att.v0"),
    *("att.k_k", "att.k_a", "att.r_k", "att.ln_x.weight", "att.ln_x.bias"),
    *("ln1.weight", "ln1.bias", "ln2.weight", "ln2.bias", "ffn.x_k"),
)
MATRICES = (
    *("att.receptance.weight", "att.key.weight", "att.value.weight"),
    *("att.w1", "att.a1", "att.v1", "att.g1", "att.w2", "att.a2", "att.v2", "att.g2"),
    *("att.output.weight", "ffn.key.weight", "ffn.value.weight"),
)
NORMS = tuple(tensor.name for tensor in (*INPUT, *OUTPUT) if tensor.role == "vector")

# A layer number of a hostile file must not size a loop: at most four digits.
_IN_BLOCK = re.compile(r"blocks\.(0|[1-9][0-9]{0,3})\.(.+)", re.DOTALL)

_OUTER = {tensor.name: tensor for tensor in (*INPUT, *OUTPUT)}
_BLOCK = {tensor.name: tensor for tensor in BLOCK}


def every(n_layer: int) -> Iterator[tuple[str, Tensor]]:
    """The official name and the row of every tensor of a model, in the order of the table."""
    yield from ((tensor.name, tensor) for tensor in INPUT)
    for layer in range(n_layer):
        yield from (
            (f"blocks.{layer}.{tensor.name}", tensor) for tensor in BLOCK if layer >= tensor.first_layer
        )
    yield from ((tensor.name, tensor) for tensor in OUTPUT)


@lru_cache(maxsize=4096)  # more than the tensors of the largest model: they are looked up again and again
def find(name: str) -> Tensor | None:
    """The row of an official name, of whatever layer below 10,000; None for another name."""
    if name in _OUTER:
        return _OUTER[name]
    match = _IN_BLOCK.fullmatch(name)
    return _BLOCK.get(match[2]) if match else None


def row_of(name: str) -> Tensor:
    """The row of an official name. Raises KeyError for another name."""
    tensor = find(name)
    if tensor is None:
        raise KeyError(name)
    return tensor


def is_absent(name: str) -> bool:
    """Whether a tensor is named that the layer does not have, though later ones do: some files carry it, unused."""
    match, tensor = _IN_BLOCK.fullmatch(name), find(name)
    return match is not None and tensor is not None and int(match[1]) < tensor.first_layer


class _Names:
    """The names of another format, to and from."""

    def __init__(self, prefix: str, outer: Mapping[str, str], block: Mapping[str, str]) -> None:
        """Official name -> name there; those of a block are what follows "blocks.i." and `prefix` with "i."."""
        self._prefix = prefix
        self._outer, self._block = outer, block
        self._outer_back = {there: official for official, there in outer.items()}
        self._block_back = {there: official for official, there in block.items()}

    def to(self, name: str) -> str:
        """The name there of an official tensor. Raises KeyError for another name."""
        if name in self._outer:
            return self._outer[name]
        layer, _, rest = name.removeprefix("blocks.").partition(".")
        return f"{self._prefix}{layer}.{self._block[rest]}"

    def back(self, name: str) -> str | None:
        """The official name, or None for a name that has no place in the format."""
        if name in self._outer_back:
            return self._outer_back[name]
        layer, _, rest = name.removeprefix(self._prefix).partition(".")
        if not name.startswith(self._prefix) or rest not in self._block_back:
            return None
        return f"blocks.{layer}.{self._block_back[rest]}"


def _stems(tensors: Iterable[Tensor]) -> dict[str, str]:
    """Official name -> name in GGUF without `.weight`."""
    return {tensor.name: tensor.gguf.removesuffix(".weight") for tensor in tensors if tensor.gguf}


_GGUF = _Names("blk.", _stems(_OUTER.values()), _stems((*BLOCK, FUSED_SHIFTS)))
_HF = _Names(
    "layers.",
    {tensor.name: tensor.hf for tensor in _OUTER.values()},
    {tensor.name: tensor.hf for tensor in (*BLOCK, FUSED_SHIFTS)},
)


def gguf_name(name: str) -> str:
    """The name in GGUF of an official tensor, or of fused token shifts. Raises KeyError for one without a name."""
    stem = _GGUF.to(name)
    return stem if stem.endswith(".bias") else f"{stem}.weight"


def from_gguf(name: str) -> str:
    """The official name of a tensor in GGUF, with or without `.weight`; an unknown name is returned unchanged."""
    return _GGUF.back(name.removesuffix(".weight")) or name


def hf_name(name: str) -> str:
    """The name in fla of an official tensor. Raises KeyError for another name."""
    renamed = _HF.to(name)
    return renamed if renamed.startswith("lm_head") else f"model.{renamed}"


def from_hf(name: str) -> str:
    """The official name of a tensor in fla, with or without `model.`; an unknown name is returned without `model.`."""
    name = name.removeprefix("model.")
    return _HF.back(name) or name
