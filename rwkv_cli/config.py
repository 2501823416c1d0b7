"""The shape of a model, read from its tensors.

Dimension letters, used throughout the project:

    L  layers                     V  vocabulary entries
    C  channels (n_embd)          T  tokens in a sequence
    H  heads, C / N               N  head size, 64
    F  hidden units of the channel mix, usually 4C
    Dw, Da, Dv, Dg  ranks of the low-rank maps of decay, in-context learning rate, value residual and gate
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rwkv_cli.errors import CheckpointError

Shape = tuple[int, ...]

HEAD_SIZE = 64


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
        """Bytes of the float32 recurrent state: two token shifts and one [H, N, N] wkv state a layer."""
        return 4 * self.n_layer * (2 * self.n_embd + self.n_embd * self.head_size)

    @property
    def n_params(self) -> int:
        """The number of weights."""
        total = 0
        for shape in self.tensor_shapes().values():
            size = 1
            for extent in shape:
                size *= extent
            total += size
        return total

    def tensor_shapes(self) -> dict[str, Shape]:
        """Official name -> shape of every tensor, in the order of the forward pass; matrices are as published.

        Vectors are [C]; `r_k` is [H, N]; big matrices are [out, in]; low-rank pairs are [C, D] and [D, C], to be
        multiplied from the left (`x @ w1 @ w2`). Layer 0 has no value residual.
        """
        C, F, V = self.n_embd, self.n_ffn, self.vocab_size
        ranks = {"w": self.rank_w, "a": self.rank_a, "v": self.rank_v, "g": self.rank_g}
        shapes: dict[str, Shape] = {
            "emb.weight": (V, C),
            "blocks.0.ln0.weight": (C,),
            "blocks.0.ln0.bias": (C,),
        }
        for i in range(self.n_layer):
            block, att, ffn = f"blocks.{i}.", f"blocks.{i}.att.", f"blocks.{i}.ffn."
            shapes |= {block + "ln1.weight": (C,), block + "ln1.bias": (C,)}
            shapes |= {att + f"x_{name}": (C,) for name in "rwkvag"}
            for name, rank in ranks.items():
                if name == "v" and i == 0:
                    continue
                if name != "g":
                    shapes[att + name + "0"] = (C,)
                shapes |= {att + name + "1": (C, rank), att + name + "2": (rank, C)}
            shapes |= {att + "k_k": (C,), att + "k_a": (C,), att + "r_k": (self.n_head, self.head_size)}
            shapes |= {att + f"{name}.weight": (C, C) for name in ("receptance", "key", "value", "output")}
            shapes |= {att + "ln_x.weight": (C,), att + "ln_x.bias": (C,)}
            shapes |= {block + "ln2.weight": (C,), block + "ln2.bias": (C,)}
            shapes |= {ffn + "x_k": (C,), ffn + "key.weight": (F, C), ffn + "value.weight": (C, F)}
        shapes |= {"ln_out.weight": (C,), "ln_out.bias": (C,), "head.weight": (V, C)}
        return shapes

    def as_dict(self) -> dict[str, int]:
        """For a file's metadata."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> ModelConfig:
        """The inverse of `as_dict`. Raises ValueError for missing, unknown or senseless fields."""
        names = set(cls.__dataclass_fields__)
        if set(fields) != names:
            raise ValueError(f"expected the fields {sorted(names)}, found {sorted(fields)}")
        for name, value in fields.items():
            lowest = 0 if name == "rank_v" else 1
            if type(value) is not int or not lowest <= value < 2**31:
                raise ValueError(f"{name} is {value!r}")
        config = cls(**fields)
        if config.n_embd % config.head_size:
            raise ValueError(f"n_embd {config.n_embd} is no multiple of head_size {config.head_size}")
        return config

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, Shape]) -> ModelConfig:
        """Derive the sizes from the shapes of officially named tensors and check every one of them.

        Raises CheckpointError naming the first tensor that is missing or has another shape than the rest demand.
        """

        def shape(name: str, ndim: int) -> Shape:
            found = shapes.get(name)
            if found is None:
                raise CheckpointError(f"the tensor {name} is missing: the checkpoint is incomplete")
            if len(found) != ndim or 0 in found:
                raise CheckpointError(
                    f"the tensor {name} has the shape {list(found)}; it should have {ndim} dimensions"
                )
            return found

        layers = {
            int(part)
            for name in shapes
            if name.startswith("blocks.") and (part := name.split(".")[1]).isdigit()
        }
        V, C = shape("emb.weight", 2)
        H, N = shape("blocks.0.att.r_k", 2)
        if H * N != C:
            raise CheckpointError(
                f"{H} heads of {N} (blocks.0.att.r_k) do not make {C} channels (emb.weight)"
            )
        config = cls(
            n_layer=max(layers) + 1,
            n_embd=C,
            n_ffn=shape("blocks.0.ffn.key.weight", 2)[0],
            vocab_size=V,
            rank_w=shape("blocks.0.att.w1", 2)[1],
            rank_a=shape("blocks.0.att.a1", 2)[1],
            rank_v=shape("blocks.1.att.v1", 2)[1] if 1 in layers else 0,
            rank_g=shape("blocks.0.att.g1", 2)[1],
            head_size=N,
        )
        for name, expected in config.tensor_shapes().items():
            if shape(name, len(expected)) != expected:
                raise CheckpointError(
                    f"the tensor {name} has the shape {list(shapes[name])}; the others demand {list(expected)}"
                )
        return config
