"""A GGUF file as llama.cpp's own converter writes it, big matrices in F16 or Q8_0."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from numpy.typing import NDArray

from rwkv_cli.config import ModelConfig, Shape
from rwkv_cli.errors import UsageError
from rwkv_cli.files.atomic import replacing
from rwkv_cli.files.checkpoints.gguf import LAYER_NAMES, OUTER_NAMES
from rwkv_cli.files.export import Export
from rwkv_cli.files.export.tensors import LOW_RANK, Array, each, encoded
from rwkv_cli.text.tokenizer import TokenizerSpec, load_tokenizer

_KINDS = {"fp16": Kind.F16, "q8_0": Kind.Q8_0, "fp32": Kind.F32}
_FILE_TYPES = {
    "fp16": gguf.LlamaFileType.MOSTLY_F16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "fp32": gguf.LlamaFileType.ALL_F32,
}
_CONTEXT = 4096  # a name for llama.cpp to show; the model has no limit
_EPSILON = 1e-5
_DECAY = re.compile(r"\.att\.w[12]$")
_MATRIX = re.compile(r"(emb|head|receptance|key|value|output)\.weight$")
_SHIFTS = [f"att.x_{letter}" for letter in "rwkvag"]  # in the order of time_mix_lerp_fused
# layer 0 has no value residual, but llama.cpp wants these tensors; they are not used
_DUMMIES = {f"blocks.0.att.a{digit}": f"blocks.0.att.v{digit}" for digit in "012"}

_OUTER = {official: name for name, official in OUTER_NAMES.items()}
_LAYER = {official: name for name, official in LAYER_NAMES.items()}
_NORMAL, _CONTROL, _UNUSED = 1, 3, 5  # values of tokenizer.ggml.token_type


def write_gguf(target: Path, what: Export) -> None:
    """Write a GGUF file. Raises StorageError, UnsupportedModelError, UsageError for a tokenizer that it cannot hold."""
    config = what.source.config
    with replacing(target) as temporary:
        writer = gguf.GGUFWriter(temporary, "rwkv7")
        try:
            writer.add_name(what.name)
            writer.add_file_type(_FILE_TYPES[what.type])
            add_sizes(writer, config)
            add_tokenizer(writer, what.tokenizer, config.vocab_size)
            for name, shape, kind in _announced(config, what.type):
                block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
                n_bytes = int(np.prod(shape)) // block * block_bytes
                writer.add_tensor_info(name, shape, np.dtype(np.float32), n_bytes, kind)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for name, tensor in _laid_out(what):
                writer.write_tensor_data(_stored(name, tensor, kind_of(name, what.type)))
        finally:
            writer.close()


def gguf_name(name: str) -> str:
    """The name of an official tensor in llama.cpp; without a suffix, `.weight` is added."""
    if name in _OUTER:
        shown = _OUTER[name]
    else:
        _, layer, rest = name.split(".", 2)
        shown = f"blk.{layer}.{_LAYER[rest]}"
    return shown if shown.endswith(".bias") else f"{shown}.weight"


def kind_of(name: str, type: str) -> Kind:
    """How an official tensor is stored: big matrices as asked for, vectors and the decay in F32."""
    if _MATRIX.search(name):
        return _KINDS[type]
    if LOW_RANK.search(name) and not _DECAY.search(name) and type != "fp32":
        return Kind.F16
    return Kind.F32


def _shape(name: str, shape: Shape) -> Shape:
    if LOW_RANK.search(name):
        return shape[::-1]
    return (int(np.prod(shape)),) if name.endswith(".r_k") else shape


def _announced(config: ModelConfig, type: str) -> Iterator[tuple[str, Shape, Kind]]:
    """Name, shape and type of every tensor of the file, in the order of `_laid_out`."""
    for name, shape in config.tensor_shapes().items():
        if name.endswith("att.x_g"):
            fused = name.replace("x_g", "x_x")
            yield gguf_name(fused), (6, 1, 1, *shape), Kind.F32
        elif not name.endswith(tuple(_SHIFTS)):
            for each_name in (name, *([_DUMMIES[name]] if name in _DUMMIES else [])):
                yield gguf_name(each_name), _shape(name, shape), kind_of(name, type)


def _laid_out(what: Export) -> Iterator[tuple[str, Array]]:
    """Official names and tensors as the file has them."""
    shifts: list[Array] = []
    for name, tensor in each(what.source, what.progress):
        if name.endswith(tuple(_SHIFTS)):
            shifts.append(tensor.reshape(-1))
            if name.endswith("att.x_g"):
                yield name, np.stack(shifts).reshape(6, 1, 1, -1)
                shifts = []
            continue
        laid_out = np.ascontiguousarray(tensor.T) if LOW_RANK.search(name) else tensor
        if name.endswith(".r_k"):
            laid_out = laid_out.reshape(-1)
        yield name, laid_out
        if name in _DUMMIES:
            yield name, laid_out


def _stored(name: str, tensor: Array, kind: Kind) -> NDArray[Any]:
    if kind == Kind.Q8_0:
        stored: NDArray[Any] = gguf.quantize(np.ascontiguousarray(tensor), kind)
        return stored
    return encoded(name, tensor, "fp16" if kind == Kind.F16 else "fp32")


def add_sizes(writer: gguf.GGUFWriter, config: ModelConfig) -> None:
    """What llama.cpp wants to know of the model's shape."""
    numbers = {
        "block_count": config.n_layer,
        "embedding_length": config.n_embd,
        "context_length": _CONTEXT,
        "feed_forward_length": config.n_ffn,
        "wkv.head_size": config.head_size,
        "attention.head_count": 0,
        "attention.decay_lora_rank": config.rank_w,
        "attention.iclr_lora_rank": config.rank_a,
        "attention.value_residual_mix_lora_rank": config.rank_v,
        "attention.gate_lora_rank": config.rank_g,
    }
    for key, value in numbers.items():
        writer.add_uint32(f"rwkv7.{key}", value)
    writer.add_float32("rwkv7.attention.layer_norm_epsilon", _EPSILON)


def add_tokenizer(writer: gguf.GGUFWriter, spec: TokenizerSpec | None, vocab_size: int) -> None:
    """The vocabulary as llama.cpp stores it. Raises UsageError for one that it cannot hold."""
    if spec is None:
        writer.add_tokenizer_model("none")
        writer.add_vocab_size(vocab_size)
    elif spec.kind == "world":
        _add_world(writer, spec, vocab_size)
    else:
        _add_byte_level(writer, spec.data or b"", vocab_size)


def _add_world(writer: gguf.GGUFWriter, spec: TokenizerSpec, vocab_size: int) -> None:
    """Byte strings as llama.cpp writes them, escaped; ids without one are unused."""
    world = load_tokenizer(spec, vocab_size)
    texts = [
        "".join(f"\\x{byte:02x}" for byte in (world.token_bytes(token) if token < world.vocab_size else b""))
        for token in range(vocab_size)
    ]
    writer.add_tokenizer_model("rwkv")
    writer.add_token_list(["<s>", *(text or f"[PAD{token}]" for token, text in enumerate(texts) if token)])
    writer.add_token_types([_CONTROL, *(_NORMAL if text else _UNUSED for text in texts[1:])])


def _add_byte_level(writer: gguf.GGUFWriter, data: bytes, vocab_size: int) -> None:
    """A byte-level BPE with the word splitting of GPT-2. Raises UsageError for a tokenizer.json of another kind."""
    try:
        content = json.loads(data)
        model, split = content["model"], content.get("pre_tokenizer") or {}
        known = model["type"] == "BPE" and split.get("type") == "ByteLevel" and split.get("use_regex", True)
        ids = {
            **model["vocab"],
            **{added["content"]: added["id"] for added in content.get("added_tokens", ())},
        }
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
        special = {added["content"] for added in content.get("added_tokens", ()) if added.get("special")}
    except (ValueError, KeyError, TypeError, AttributeError):
        known = False
    if not known:
        raise UsageError(
            "this tokenizer.json is of a kind that a GGUF file cannot hold: byte-level BPE alone can"
        )
    texts = {index: text for text, index in ids.items()}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([texts.get(token, f"[PAD{token}]") for token in range(vocab_size)])
    types = [
        _UNUSED if text is None else _CONTROL if text in special else _NORMAL
        for text in map(texts.get, range(vocab_size))
    ]
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
