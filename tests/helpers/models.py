"""What the tests of the engine share: shapes, models in memory and in files, and how close two results are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from helpers.writers import TINY, Tensors, random_weights
from rwkv_cli.config import ModelConfig
from rwkv_cli.engine.state import State
from rwkv_cli.files.model_file import ModelFile, ModelInfo, write_model
from rwkv_cli.files.weight_layouts import WeightType
from rwkv_cli.text.templates import get_template
from rwkv_cli.text.tokenizer import TokenizerSpec

SHARED = Path(__file__).resolve().parents[3] / "shared" / "models"
needs_shared = pytest.mark.skipif(
    not SHARED.exists(), reason="the trained model and its text are not on this machine"
)


def _config(L: int, C: int, F: int, V: int, ranks: tuple[int, int, int, int]) -> ModelConfig:
    w, a, v, g = ranks
    return ModelConfig(n_layer=L, n_embd=C, n_ffn=F, vocab_size=V, rank_w=w, rank_a=a, rank_v=v, rank_g=g)


SHAPES = {
    "tiny": TINY,
    "one-layer": _config(1, 64, 64, 37, (5, 3, 0, 7)),
    "odd-ranks": _config(2, 192, 448, 101, (17, 9, 5, 33)),
    "four-layers": _config(4, 256, 1024, 509, (48, 24, 40, 72)),
    "narrow-ffn": _config(2, 128, 64, 65, (64, 64, 32, 128)),
}
"""Shapes unlike the published ones: no formula gives their sizes, and few are multiples of 16."""

SMALLEST = _config(2, 64, 64, 2, (1, 1, 1, 1))


class Weights:
    """Tensors in memory, as the source of a backend or of a model file."""

    def __init__(self, tensors: Mapping[str, NDArray[np.float32]]) -> None:
        self.config = ModelConfig.from_shapes({name: tensor.shape for name, tensor in tensors.items()})
        self._tensors = tensors

    def tensor(self, name: str) -> NDArray[np.float32]:
        """One tensor by its official name."""
        return self._tensors[name]


def fine_weights(config: ModelConfig = TINY, seed: int = 0) -> Tensors:
    """Like `random_weights`, with all the bits of float32: rounding them to another type loses something."""
    rng = np.random.default_rng(seed)
    return {
        name: (w * rng.uniform(0.99, 1.01, w.shape)).astype(np.float32)
        for name, w in random_weights(config, seed).items()
    }


def write_file(
    path: Path,
    tensors: Tensors,
    weight_type: WeightType = "int8",
    tokenizer: TokenizerSpec | None = None,
    **info: Any,
) -> Path:
    """A model file of ours; `info` are fields of `ModelInfo`."""
    source = Weights(tensors)
    fields: dict[str, Any] = {"sampling": {"temperature": 0.5}, "source": {"name": "random"}} | info
    template = get_template(fields.pop("template", "raw"))
    write_model(path, source, ModelInfo(source.config, weight_type, tokenizer, template, **fields))
    return path


def write_and_open(path: Path, tensors: Tensors, weight_type: WeightType = "int8") -> ModelFile:
    """The file of `write_file`, opened."""
    return ModelFile(write_file(path, tensors, weight_type))


def some_tokens(config: ModelConfig, length: int, seed: int = 0) -> list[int]:
    """Random tokens of a model's vocabulary."""
    return [int(token) for token in np.random.default_rng(seed).integers(0, config.vocab_size, length)]


def difference(a: NDArray[Any], b: NDArray[Any]) -> float:
    """max |a - b| / max |b|; NaN if either has one."""
    assert a.shape == b.shape
    return float(np.abs(a - b).max() / np.abs(b).max())


def state_difference(a: State, b: State) -> float:
    """The largest `difference` of the three parts of two states."""
    return max(difference(getattr(a, part), getattr(b, part)) for part in State.PARTS)


def assert_same_state(a: State, b: State) -> None:
    """Equal to the bit."""
    for part in State.PARTS:
        np.testing.assert_array_equal(getattr(a, part), getattr(b, part), err_msg=part)


def byte_tokenizer() -> TokenizerSpec:
    """One token per byte, after id 0, the end of a document: 257 in all."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = {piece: i for i, piece in enumerate(["<|endoftext|>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=pieces, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>")])
    return TokenizerSpec("tokenizer.json", tokenizer.to_str().encode())
