"""Checkpoints of the published sizes with random weights, in the formats of all the programs that are compared.

Random weights take the same time as trained ones, but for the hidden units of the channel mix: about half of them are
zero here, and more in a trained model, whose zeros `rwkv` does not read.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from writers import random_weights, write_gguf, write_pth

from rwkv_cli.checkpoints import open_checkpoint
from rwkv_cli.config import ModelConfig
from rwkv_cli.model import convert
from rwkv_cli.quantize import WeightType
from rwkv_cli.tokenizer import TokenizerSpec, load_tokenizer

VOCAB_SIZE = 65_536
SHAPES = {
    "0.1b": ModelConfig(12, 768, 3072, VOCAB_SIZE, rank_w=64, rank_a=64, rank_v=32, rank_g=128),
    "0.4b": ModelConfig(24, 1024, 4096, VOCAB_SIZE, rank_w=64, rank_a=64, rank_v=32, rank_g=128),
    "1.5b": ModelConfig(24, 2048, 8192, VOCAB_SIZE, rank_w=96, rank_a=96, rank_v=64, rank_g=256),
}
WEIGHT_TYPES: tuple[WeightType, ...] = ("int8", "int4")
GGUF_TYPES = ("Q8_0", "Q4_0")


def build(folder: Path, size: str) -> None:
    """Write what is missing of `size` into `folder`: a .pth, a model file of each type, a GGUF file of each type."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{size}.pth", *(folder / f"{size}-{kind}.gguf" for kind in GGUF_TYPES)]
    if not all(file.exists() for file in files):
        weights = random_weights(SHAPES[size], seed=1)
        write_pth(files[0], weights)
        for kind, file in zip(GGUF_TYPES, files[1:], strict=True):
            write_gguf(file, weights, kind, _tokenizer(), **_numbers(SHAPES[size]))
        del weights
    for weight_type in WEIGHT_TYPES:
        target = folder / f"{size}-{weight_type}.safetensors"
        if not target.exists():
            convert(open_checkpoint(files[0]), target, weight_type)


def _numbers(config: ModelConfig) -> dict[str, int]:
    """What llama.cpp reads from a file besides what every reader needs."""
    return {
        "context_length": 4096,
        "feed_forward_length": config.n_ffn,
        "attention__head_count": 0,
        "attention__iclr_lora_rank": config.rank_a,
        "attention__value_residual_mix_lora_rank": config.rank_v,
        "attention__gate_lora_rank": config.rank_g,
    }


def _tokenizer() -> dict[str, object]:
    """The World vocabulary as llama.cpp stores it: escaped bytes, unused ids as padding."""
    world = load_tokenizer(TokenizerSpec("world"), VOCAB_SIZE)
    texts = ["".join(f"\\x{byte:02x}" for byte in world.token_bytes(token)) for token in range(VOCAB_SIZE)]
    tokens = [text or f"[PAD{token}]" for token, text in enumerate(texts)]
    return {"model": "rwkv", "tokens": ["<s>", *tokens[1:]], "types": [1 if text else 5 for text in texts]}


if __name__ == "__main__":
    for name in sys.argv[2:]:
        build(Path(sys.argv[1]), name)
