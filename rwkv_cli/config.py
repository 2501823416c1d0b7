"""The shape of a model, read from its tensors.

Dimension letters, used throughout the project:

    L  layers                     V  vocabulary entries
    C  channels (n_embd)          T  tokens in a sequence
    H  heads, C / N               N  head size, 64
    F  hidden units of the channel mix, usually 4C
    Dw, Da, Dv, Dg  ranks of the low-rank maps of decay, in-context learning rate, value residual and gate
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields

from rwkv_cli import tensors
from rwkv_cli.errors import CheckpointError
from rwkv_cli.tensors import Shape

__all__ = ["HEAD_SIZE", "LAYER_NORM_EPS", "ModelConfig", "Shape"]

HEAD_SIZE = 64  # the only one that kernels exist for
LAYER_NORM_EPS = 1e-5

# Dimension letters of the table of tensors that are fields of a configuration; H follows from them.
_FIELDS = {
    "C": "n_embd",
    "F": "n_ffn",
    "V": "vocab_size",
    "Dw": "rank_w",
    "Da": "rank_a",
    "Dv": "rank_v",
    "Dg": "rank_g",
    "N": "head_size",
}


@dataclass(frozen=True)
class ModelConfig:
    """The sizes of one RWKV-7 model; every one is read from a tensor's shape, none from a formula."""

    n_layer: int  # L
    n_embd: int  # C
    n_ffn: int  # F
    vocab_size: int  # V
    rank_w: int  # Dw, decay
    rank_a: int  # Da, in-context learning rate
    rank_v: int  # Dv, value residual; 0 for a model of one layer, which has none
    rank_g: int  # Dg, gate
    head_size: int = HEAD_SIZE  # N

    @property
    def n_head(self) -> int:
        """H"""
        return self.n_embd // self.head_size

    @property
    def state_bytes(self) -> int:
        """Bytes of the float32 recurrent state: two token shifts and one [H, N, N] wkv state per layer."""
        return 4 * self.n_layer * (2 * self.n_embd + self.n_embd * self.head_size)

    @property
    def n_params(self) -> int:
        """The number of weights."""
        return sum(map(math.prod, self.tensor_shapes().values()))

    def tensor_shapes(self) -> dict[str, Shape]:
        """Official name -> shape of every tensor, in the order of the forward pass; matrices are as published.

        Vectors are [C]; `r_k` is [H, N]; big matrices are [out, in]; low-rank pairs are [C, D] and [D, C], to be
        multiplied from the left (`x @ w1 @ w2`). Layer 0 has no value residual.
        """
        sizes = {letter: getattr(self, field) for letter, field in _FIELDS.items()} | {"H": self.n_head}
        return {name: tensor.shape(sizes) for name, tensor in tensors.every(self.n_layer)}

    def as_dict(self) -> dict[str, int]:
        """For a file's metadata."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> ModelConfig:
        """The inverse of `as_dict`, for files of any version.

        A missing field takes its default, if it has one. A field that this version does not know is ignored where its
        value is neutral (0, false, null or empty), because such a value asks for nothing; any other value may change
        what the model computes. Raises ValueError for that, and for missing or invalid fields.
        """
        known: dict[str, int] = {}
        for name, value in values.items():
            if name in cls.__dataclass_fields__:
                known[name] = _size(name, value)
            elif value:
                raise ValueError(f"this version does not know its field {name[:40]!r}; update rwkv-cli")
        for field in fields(cls):
            if field.name not in known and field.default is MISSING:
                raise ValueError(f"the field {field.name!r} is missing")
        config = cls(**known)
        if config.n_embd % config.head_size:
            raise ValueError(f"n_embd {config.n_embd} is not a multiple of head_size {config.head_size}")
        return config

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, Shape]) -> ModelConfig:
        """Derive the sizes from the shapes of officially named tensors and check every one of them.

        Raises CheckpointError naming the first tensor that is missing or has another shape than the rest demand.
        """
        layers = {
            int(part)
            for name in shapes
            if name.startswith("blocks.") and (part := name.split(".")[1]).isdigit()
        }
        n_layer = max(layers, default=0) + 1
        sizes = _sizes(shapes, 2 if 1 in layers else 1)
        if sizes["H"] * sizes["N"] != sizes["C"]:
            raise CheckpointError(
                f"{sizes['H']} heads of {sizes['N']} (blocks.0.att.r_k) do not make {sizes['C']} channels (emb.weight)"
            )
        config = cls(n_layer=n_layer, **{field: sizes[letter] for letter, field in _FIELDS.items()})
        for name, expected in config.tensor_shapes().items():
            if _shape(shapes, name, len(expected)) != expected:
                raise CheckpointError(
                    f"the tensor {name} has the shape {list(shapes[name])}; the others demand {list(expected)}"
                )
        return config


def _sizes(shapes: Mapping[str, Shape], layers: int) -> dict[str, int]:
    """The extent of every dimension letter, read from the first tensor that has it in the first `layers` layers, or 0.

    Two layers are enough: the second one has what the first one lacks.
    """
    sizes: dict[str, int] = {}
    for name, tensor in tensors.every(layers):
        letters = tensor.dims.split()
        if not sizes.keys() >= set(letters):
            sizes = dict(zip(letters, _shape(shapes, name, len(letters)), strict=True)) | sizes
    return dict.fromkeys(_FIELDS, 0) | sizes


def _shape(shapes: Mapping[str, Shape], name: str, n_dims: int) -> Shape:
    """The shape of a tensor that has to be there, with this number of dimensions, none of them empty."""
    found = shapes.get(name)
    if found is None:
        raise CheckpointError(f"the tensor {name} is missing: the checkpoint is incomplete")
    if len(found) != n_dims or 0 in found:
        raise CheckpointError(
            f"the tensor {name} has the shape {list(found)}; it should have {n_dims} dimensions"
        )
    return found


def _size(name: str, value: object) -> int:
    """A size as JSON has it. Raises ValueError."""
    lowest = 0 if name == "rank_v" else 1
    if type(value) is not int or not lowest <= value < 2**31:  # not isinstance: true is an int for Python
        raise ValueError(f"{name} is {value!r}")
    return value
