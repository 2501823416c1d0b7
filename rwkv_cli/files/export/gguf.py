"""A GGUF file as llama.cpp's own converter writes it, big matrices in F16 or Q8_0."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from numpy.typing import NDArray

from rwkv_cli import tensors
from rwkv_cli.config import LAYER_NORM_EPS, ModelConfig, Shape
from rwkv_cli.errors import UsageError
from rwkv_cli.files.atomic import replacing
from rwkv_cli.files.export import ExportJob, ExportType
from rwkv_cli.files.export.encoding import each_tensor, encoded
from rwkv_cli.files.quantization import Array
from rwkv_cli.tensors import FUSED_SHIFTS, SHIFTS, gguf_name
from rwkv_cli.text.tokenizer import TokenizerSpec, load_tokenizer

_KINDS: Mapping[ExportType, Kind] = {"fp16": Kind.F16, "q8_0": Kind.Q8_0, "fp32": Kind.F32}
_FILE_TYPES = {
    "fp16": gguf.LlamaFileType.MOSTLY_F16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "fp32": gguf.LlamaFileType.ALL_F32,
}
_CONTEXT = 4096  # a number for llama.cpp to show; the model has no limit
# Layer 0 has no value residual, but llama.cpp requires the tensors and does not use them: those on the left stand in.
_DUMMIES = {f"blocks.0.att.a{digit}": f"blocks.0.att.v{digit}" for digit in "012"}

_NORMAL, _CONTROL, _UNUSED = 1, 3, 5  # values of tokenizer.ggml.token_type


def write_gguf(target: Path, job: ExportJob) -> None:
    """Write a GGUF file. Raises StorageError, UnsupportedModelError, UsageError for a tokenizer that it cannot hold."""
    config = job.source.config
    with replacing(target) as temporary:
        writer = gguf.GGUFWriter(temporary, "rwkv7")
        try:
            writer.add_name(job.name)
            writer.add_file_type(_FILE_TYPES[job.type])
            add_sizes(writer, config)
            add_tokenizer(writer, job.tokenizer, config.vocab_size)
            for name, shape, kind in _announced(config, job.type):
                block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
                n_bytes = math.prod(shape) // block * block_bytes
                writer.add_tensor_info(name, shape, np.dtype(np.float32), n_bytes, kind)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for name, tensor, kind in _values(job):
                writer.write_tensor_data(_stored(name, tensor, kind))
        finally:
            writer.close()


def _kind(row: tensors.Tensor, type: ExportType) -> Kind:
    """How a tensor is stored: big matrices as asked for, vectors and the low-rank maps of the decay in F32."""
    if row.role == "vector" or row.gguf_float32:
        return Kind.F32
    if row.role == "low_rank":
        return Kind.F32 if type == "fp32" else Kind.F16
    return _KINDS[type]


def _announced(config: ModelConfig, type: ExportType) -> Iterator[tuple[str, Shape, Kind]]:
    """GGUF name, shape and type of every tensor of the file, in the order of `_values`."""
    shapes = config.tensor_shapes()
    for name, row in tensors.every(config.n_layer):
        if row.name == SHIFTS[-1]:
            block = name.removesuffix(row.name)
            yield gguf_name(block + FUSED_SHIFTS.name), (len(SHIFTS), 1, 1, *shapes[name]), Kind.F32
        elif row.name not in SHIFTS:
            for stored_name in (name, *([_DUMMIES[name]] if name in _DUMMIES else [])):
                yield gguf_name(stored_name), row.shape_in("gguf", shapes[name]), _kind(row, type)


def _values(job: ExportJob) -> Iterator[tuple[str, Array, Kind]]:
    """Official name, values and type of the file's tensors; the six token shifts of a layer are stacked into one."""
    shifts: list[Array] = []
    for name, row, tensor in each_tensor(job, "gguf"):
        if row.name in SHIFTS:
            shifts.append(tensor)
            if row.name == SHIFTS[-1]:
                yield name, np.stack(shifts).reshape(len(SHIFTS), 1, 1, -1), Kind.F32
                shifts = []
            continue
        for _ in range(2 if name in _DUMMIES else 1):
            yield name, tensor, _kind(row, job.type)


def _stored(name: str, tensor: Array, kind: Kind) -> NDArray[Any]:
    if kind == Kind.Q8_0:
        stored: NDArray[Any] = gguf.quantize(np.ascontiguousarray(tensor), kind)
        return stored
    return encoded(name, tensor, "fp16" if kind == Kind.F16 else "fp32")


def add_sizes(writer: gguf.GGUFWriter, config: ModelConfig) -> None:
    """The sizes that llama.cpp requires."""
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
    writer.add_float32("rwkv7.attention.layer_norm_epsilon", LAYER_NORM_EPS)


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
            "a GGUF file cannot hold a tokenizer.json of this kind: only byte-level BPE is supported"
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
