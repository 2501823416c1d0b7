#!/usr/bin/env python3
"""Checkpoints of the published shapes with random weights, in the formats of all programs that are compared.

    python benchmarks/synthetic.py FOLDER 0.1b 0.4b

Random weights take the same time as trained ones, with one exception: half of the hidden units of the channel mix are
zero here, and many more in a trained model, where `rwkv` skips their rows. Half is too few for any program to gain.

The GGUF files have the types that llama.cpp's own converter and quantizer choose for an F16 model: big matrices
quantized, the low-rank maps in F16, those of the decay and all vectors in F32. Only the output matrix differs, which
the quantizer keeps in Q6_K when the others become Q4_0; here it is Q4_0 too, which is faster.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from helpers.writers import Tensors, gguf_tensors, random_weights, write_pth

from rwkv_cli.config import ModelConfig
from rwkv_cli.convert.conversion import convert_checkpoint
from rwkv_cli.files.checkpoints import open_checkpoint
from rwkv_cli.files.export.gguf import add_sizes, add_tokenizer
from rwkv_cli.files.model_file import is_usable
from rwkv_cli.files.weight_layouts import WeightType
from rwkv_cli.text.tokenizer import TokenizerSpec

VOCAB_SIZE = 65_536
SHAPES = {
    "0.1b": ModelConfig(12, 768, 3072, VOCAB_SIZE, rank_w=64, rank_a=64, rank_v=32, rank_g=128),
    "0.4b": ModelConfig(24, 1024, 4096, VOCAB_SIZE, rank_w=64, rank_a=64, rank_v=32, rank_g=128),
    "1.5b": ModelConfig(24, 2048, 8192, VOCAB_SIZE, rank_w=96, rank_a=96, rank_v=64, rank_g=256),
}
WEIGHT_TYPES: tuple[WeightType, ...] = ("int8", "int4")
GGUF_TYPES = ("Q8_0", "Q4_0")
BYTES_PER_WEIGHT = 6  # of all files together, with some margin

_LOW_RANK = re.compile(r"time_mix_[avg][12]\.weight$")
_LOW_RANK_DECAY = re.compile(r"time_mix_w[12]\.weight$")


def build(folder: Path, size: str) -> None:
    """Write the missing files of `size` into `folder`: a .pth, a model file of each type, a GGUF file of each type."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / f"{size}.pth"
    foreign = [checkpoint, *(folder / f"{size}-{kind}.gguf" for kind in GGUF_TYPES)]
    if not all(file.exists() for file in foreign):
        _check_free_space(folder, SHAPES[size])
        _say(f"building the {size} checkpoints in {folder}, once")
        _write_foreign(foreign, SHAPES[size])
    for weight_type in WEIGHT_TYPES:
        target = folder / f"{size}-{weight_type}.safetensors"
        if not is_usable(target):
            _say(f"quantizing {size} to {weight_type}")
            convert_checkpoint(open_checkpoint(checkpoint), target, weight_type)


def _write_foreign(files: list[Path], config: ModelConfig) -> None:
    """The .pth and the GGUF files; each gets its name once it is complete."""
    weights = random_weights(config, seed=1)
    parts = [file.with_suffix(".part") for file in files]
    write_pth(parts[0], weights)
    parts[0].rename(files[0])
    for kind, part, file in zip(GGUF_TYPES, parts[1:], files[1:], strict=True):
        _write_gguf(part, weights, config, kind)
        part.rename(file)


def _write_gguf(path: Path, weights: Tensors, config: ModelConfig, kind: str) -> None:
    """A GGUF file, written one tensor at a time after a header that lists all of them."""
    writer = gguf.GGUFWriter(path, "rwkv7")
    add_sizes(writer, config)
    add_tokenizer(writer, TokenizerSpec("world"), VOCAB_SIZE)
    tensors = gguf_tensors(weights)
    types = {name: _gguf_type(name, tensor, kind) for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        block, block_bytes = gguf.GGML_QUANT_SIZES[types[name]]
        n_bytes = tensor.size // block * block_bytes
        writer.add_tensor_info(name, tensor.shape, np.dtype(np.float32), n_bytes, types[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, tensor in tensors.items():
        writer.write_tensor_data(_as_type(tensor, types[name]))
    writer.close()


def _gguf_type(name: str, tensor: NDArray[np.float32], kind: str) -> gguf.GGMLQuantizationType:
    if _LOW_RANK.search(name):
        return gguf.GGMLQuantizationType.F16
    if tensor.ndim != 2 or _LOW_RANK_DECAY.search(name):
        return gguf.GGMLQuantizationType.F32
    return gguf.GGMLQuantizationType[kind]


def _as_type(tensor: NDArray[np.float32], kind: gguf.GGMLQuantizationType) -> NDArray[Any]:
    stored: NDArray[Any] = gguf.quantize(np.ascontiguousarray(tensor), kind)
    return stored


def _check_free_space(folder: Path, config: ModelConfig) -> None:
    """Exit if the files would not fit on the disk."""
    needed, free = BYTES_PER_WEIGHT * config.n_params, shutil.disk_usage(folder).free
    if free < needed:
        raise SystemExit(f"{folder} has {free / 1e9:.1f} GB free and the files need {needed / 1e9:.1f} GB")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    for name in sys.argv[2:]:
        build(Path(sys.argv[1]), name)
