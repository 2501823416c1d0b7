"""Small random models in every published format, for tests.

The writers are independent of the readers under test: the `.pth` is assembled opcode by opcode in the layout of torch,
and GGUF comes from the `gguf` package with llama.cpp's names.
"""

from __future__ import annotations

import json
import re
import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from rwkv_cli.config import ModelConfig

Tensors = dict[str, NDArray[np.float32]]
Stored = dict[str, tuple[NDArray[Any], gguf.GGMLQuantizationType]]

TINY = ModelConfig(
    n_layer=3, n_embd=128, n_ffn=320, vocab_size=300, rank_w=32, rank_a=24, rank_v=16, rank_g=40
)

_TORCH_STORAGES = {
    "bf16": "BFloat16Storage",
    "f16": "HalfStorage",
    "f32": "FloatStorage",
    "f64": "DoubleStorage",
}
_VECTOR = re.compile(r".*\.(x_[rwkvag]|[wav]0|k_k|k_a)")  # stored as [1, 1, C] in the official files
_LOW_RANK = re.compile(r".*\.att\.[wavg][12]")


def random_weights(config: ModelConfig = TINY, seed: int = 0) -> Tensors:
    """Official name -> float32 tensor, of the magnitudes of trained models, exact in bf16 and in f16."""
    rng = np.random.default_rng(seed)
    return {
        name: exact_in_half(_random_tensor(rng, name, shape))
        for name, shape in config.tensor_shapes().items()
    }


def _random_tensor(rng: np.random.Generator, name: str, shape: Sequence[int]) -> NDArray[np.float64]:
    last = name.split(".")[-1]
    normal = rng.standard_normal(shape)
    if ".ln" in name or name.startswith("ln_"):
        return (1 if last == "weight" else 0) + 0.1 * normal
    if last.startswith("x_"):
        return rng.uniform(0.05, 0.95, shape)  # token shift: the weight of the previous token
    centre_and_width = {
        "w0": (-2, 2),  # decays from slow to fast
        "a0": (0, 0.5),
        "v0": (0.7, 0.3),
        "k_k": (0.85, 0.1),
        "k_a": (1, 0.1),
        "r_k": (0, 0.1),
    }
    if last in centre_and_width:
        centre, width = centre_and_width[last]
        return np.asarray(centre + width * normal)
    if name == "emb.weight":
        return normal
    fan_in = shape[0] if _LOW_RANK.fullmatch(name) else shape[1]
    return np.asarray(normal * (1.5 if name == "head.weight" else 0.8) / np.sqrt(fan_in))


def exact_in_half(values: NDArray[Any]) -> NDArray[np.float32]:
    """Rounded to bf16, and kept away from zero, so that f16 has all eight bits of the significand too."""
    values = np.asarray(values, np.float32)
    smallest = np.float32(2.0**-16)
    values = np.where(np.abs(values) < smallest, np.copysign(smallest, values), values)
    return (to_bf16(values).astype(np.uint32) << 16).view(np.float32)


def to_bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The bits of the nearest bf16, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def encoded(values: NDArray[np.float32], dtype: str) -> bytes:
    """The little-endian bytes of a tensor as "bf16", "f16", "f32" or "f64"."""
    if dtype == "bf16":
        return to_bf16(values).tobytes()
    return np.ascontiguousarray(values, {"f16": "<f2", "f32": "<f4", "f64": "<f8"}[dtype]).tobytes()


def layer0_value_residual(tensors: Tensors) -> Tensors:
    """The unused tensors that some files carry: layer 0's v0, v1, v2."""
    rank = tensors["blocks.1.att.v1"].shape[1] if "blocks.1.att.v1" in tensors else 8
    n_embd = tensors["blocks.0.att.w0"].shape[0]
    shapes = {"v0": (n_embd,), "v1": (n_embd, rank), "v2": (rank, n_embd)}
    return {f"blocks.0.att.{name}": np.full(shape, 0.5, np.float32) for name, shape in shapes.items()}


# ---------------------------------------------------------------------------------------------------- .pth


def write_pth(
    path: Path, tensors: Tensors, dtype: str = "bf16", vectors: str = "[1,1,C]", with_layer0_v: bool = False
) -> Path:
    """An official file; `vectors` is "[1,1,C]" or "[C]"."""
    if with_layer0_v:
        tensors = tensors | layer0_value_residual(tensors)
    return write_torch(path, rows(tensors) if vectors == "[1,1,C]" else tensors, dtype)


def rows(tensors: Tensors) -> Tensors:
    """Vectors in the shape [1, 1, C], as the official files have them."""
    return {
        name: tensor.reshape(1, 1, -1) if _VECTOR.fullmatch(name) else tensor
        for name, tensor in tensors.items()
    }


def with_low_rank_transposed(tensors: Tensors) -> Tensors:
    """Low-rank matrices the other way round than in official files."""
    return {name: tensor.T if _LOW_RANK.fullmatch(name) else tensor for name, tensor in tensors.items()}


def write_torch(path: Path, tensors: Mapping[str, NDArray[np.float32]], dtype: str = "bf16") -> Path:
    """The file that `torch.save` writes for a dict of tensors."""
    storages = [encoded(tensor, dtype) for tensor in tensors.values()]
    return write_torch_archive(path, state_dict_pickle(tensors, dtype), storages)


def write_torch_archive(
    path: Path,
    pickled: bytes,
    storages: Sequence[bytes] = (),
    byteorder: bytes = b"little",
    compression: int = zipfile.ZIP_STORED,
) -> Path:
    """The archive around a pickle and its storages."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", byteorder)
        for key, data in enumerate(storages):
            archive.writestr(f"archive/data/{key}", data)
        archive.writestr("archive/version", b"3\n")
    return path


def state_dict_pickle(tensors: Mapping[str, NDArray[Any]], dtype: str) -> bytes:
    """PROTO 2, EMPTY_DICT, MARK, (name, tensor)..., SETITEMS, STOP."""
    items = b"".join(
        pickled_text(name) + pickled_tensor(str(key), tensor.shape, dtype)
        for key, (name, tensor) in enumerate(tensors.items())
    )
    return b"\x80\x02}(" + items + b"u."


def pickled_tensor(
    key: str,
    shape: Sequence[int],
    dtype: str = "f32",
    strides: Sequence[int] | None = None,
    numel: int | None = None,
    offset: int = 0,
) -> bytes:
    """GLOBAL _rebuild_tensor_v2, its arguments with the storage as a persistent id, REDUCE."""
    if strides is None:
        strides = [int(np.prod(shape[axis + 1 :])) for axis in range(len(shape))]
    numel = int(np.prod(shape)) if numel is None else numel
    storage = b"(" + pickled_text("storage") + f"ctorch\n{_TORCH_STORAGES[dtype]}\n".encode()
    storage += pickled_text(key) + pickled_text("cpu") + pickled_int(numel) + b"tQ"
    sizes = [b"(" + b"".join(map(pickled_int, values)) + b"t" for values in (shape, strides)]
    hooks = b"\x89ccollections\nOrderedDict\n)R"
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n"
    return rebuild + b"(" + storage + pickled_int(offset) + b"".join(sizes) + hooks + b"tR"


def pickled_text(text: str) -> bytes:
    """BINUNICODE"""
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def pickled_int(value: int) -> bytes:
    """BININT, or LONG1 beyond 32 bits"""
    if 0 <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes(9, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


# ------------------------------------------------------------------------------------------- Hugging Face

_HF_OUTER = {
    "emb.weight": "model.embeddings.weight",
    "blocks.0.ln0.weight": "model.layers.0.pre_norm.weight",
    "blocks.0.ln0.bias": "model.layers.0.pre_norm.bias",
    "ln_out.weight": "model.norm.weight",
    "ln_out.bias": "model.norm.bias",
    "head.weight": "lm_head.weight",
}
_HF_PARTS = [
    (r"^blocks\.", "model.layers."),
    (r"\.ln1\.", ".attn_norm."),
    (r"\.ln2\.", ".ffn_norm."),
    (r"\.att\.ln_x\.", ".attn.g_norm."),
    (r"\.att\.receptance\.", ".attn.r_proj."),
    (r"\.att\.key\.", ".attn.k_proj."),
    (r"\.att\.value\.", ".attn.v_proj."),
    (r"\.att\.output\.", ".attn.o_proj."),
    (r"\.att\.([wavg])1$", r".attn.\1_lora.lora.0.weight"),
    (r"\.att\.([wavg])2$", r".attn.\1_lora.lora.2.weight"),
    (r"\.att\.([wav])0$", r".attn.\1_lora.lora.2.bias"),
    (r"\.att\.", ".attn."),
]


def hf_tensors(tensors: Tensors, fused: bool = False) -> Tensors:
    """The names and orientations of flash-linear-attention."""
    result: Tensors = {}
    for name, tensor in tensors.items():
        new_name = _HF_OUTER.get(name, name)
        for pattern, replacement in _HF_PARTS:
            new_name = re.sub(pattern, replacement, new_name)
        if _LOW_RANK.fullmatch(name):
            tensor = tensor.T
        elif ".att.x_" in name:
            tensor = tensor.reshape(1, 1, -1)
        result[new_name] = tensor
    if fused:
        for prefix in {name[:-1] for name in result if ".attn.x_" in name}:
            rows = [result.pop(prefix + letter) for letter in "rwkvag"]
            result[prefix + "x"] = np.stack(rows)
    return result


def hf_config(config: ModelConfig, **changes: Any) -> dict[str, Any]:
    """A `config.json` as published, with changes."""
    return {
        "architectures": ["RWKV7ForCausalLM"],
        "model_type": "rwkv7",
        "hidden_size": config.n_embd,
        "intermediate_size": config.n_ffn,
        "num_hidden_layers": config.n_layer,
        "head_dim": config.head_size,
        "vocab_size": config.vocab_size,
        "decay_low_rank_dim": config.rank_w,
        "a_low_rank_dim": config.rank_a,
        "v_low_rank_dim": config.rank_v,
        "gate_low_rank_dim": config.rank_g,
        "hidden_act": "sqrelu",
        "norm_eps": 1e-5,
        "norm_first": True,
        "tie_word_embeddings": False,
    } | changes


def write_hf(
    folder: Path, tensors: Tensors, shards: int = 1, fused: bool = False, dtype: str = "bf16", **changes: Any
) -> Path:
    """A directory with `config.json` (and `changes` to it) and one or more safetensors files."""
    config = ModelConfig.from_shapes({name: tensor.shape for name, tensor in tensors.items()})
    named = hf_tensors(tensors, fused)
    if changes.get("tie_word_embeddings"):
        del named["lm_head.weight"]
    return write_folder(folder, named, hf_config(config, **changes), shards, dtype)


def write_folder(
    folder: Path, named: Tensors, settings: Mapping[str, Any], shards: int = 1, dtype: str = "bf16"
) -> Path:
    """A directory with `config.json` and tensors under any names, in one file or in shards with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(settings))
    if shards == 1:
        write_safetensors(folder / "model.safetensors", named, dtype)
        return folder
    names = sorted(named)
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {name: named[name] for name in names[shard::shards]}
        write_safetensors(folder / file, part, dtype)
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def write_safetensors(path: Path, tensors: Mapping[str, NDArray[np.float32]], dtype: str = "bf16") -> Path:
    """A safetensors file, written by hand: the official library has no bf16 without torch."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, tensor in tensors.items():
        part = encoded(tensor, dtype)
        offsets = [len(data), len(data) + len(part)]
        header[name] = {"dtype": dtype.upper(), "shape": tensor.shape, "data_offsets": offsets}
        data += part
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


# ---------------------------------------------------------------------------------------------------- GGUF

_GGUF_OUTER = {
    "emb.weight": "token_embd.weight",
    "blocks.0.ln0.weight": "token_embd_norm.weight",
    "blocks.0.ln0.bias": "token_embd_norm.bias",
    "ln_out.weight": "output_norm.weight",
    "ln_out.bias": "output_norm.bias",
    "head.weight": "output.weight",
}
_GGUF_PARTS = [
    (r"^blocks\.", "blk."),
    (r"\.ln1\.", ".attn_norm."),
    (r"\.ln2\.", ".attn_norm_2."),
    (r"\.att\.ln_x\.", ".time_mix_ln."),
    (r"\.att\.", ".time_mix_"),
    (r"\.ffn\.x_k$", ".channel_mix_lerp_k"),
    (r"\.ffn\.", ".channel_mix_"),
]


def gguf_tensors(tensors: Tensors, suffix: str = ".weight") -> Tensors:
    """llama.cpp's names and orientations, with its dummy value residual of layer 0.

    `suffix` ends the names of tensors that do not end in .weight or .bias in the official files.
    """
    result: Tensors = {}
    for name, tensor in tensors.items():
        new_name = _GGUF_OUTER.get(name, name)
        for pattern, replacement in _GGUF_PARTS:
            new_name = re.sub(pattern, replacement, new_name)
        if _LOW_RANK.fullmatch(name):
            tensor = np.ascontiguousarray(tensor.T)
        elif name.endswith(".r_k"):
            tensor = tensor.reshape(-1)
        if not new_name.endswith((".weight", ".bias")):
            new_name += suffix
        result[new_name] = tensor
    for prefix in {name.partition("time_mix_x_")[0] for name in result if "time_mix_x_" in name}:
        rows = [result.pop(f"{prefix}time_mix_x_{letter}{suffix}") for letter in "rwkvag"]
        result[f"{prefix}time_mix_lerp_fused.weight"] = np.stack(rows).reshape(6, 1, 1, -1)
    for digit in "012":
        result[f"blk.0.time_mix_v{digit}{suffix}"] = result[f"blk.0.time_mix_a{digit}{suffix}"]
    return result


def write_gguf(
    path: Path,
    tensors: Tensors,
    quantization: str = "F32",
    tokenizer: Mapping[str, Any] | None = None,
    suffix: str = ".weight",
    **header: Any,
) -> Path:
    """A GGUF file; the big matrices are quantized, everything else is F32, as in llama.cpp's own files.

    `tokenizer` and `header` are passed to `write_stored_gguf`.
    """
    config = ModelConfig.from_shapes({name: tensor.shape for name, tensor in tensors.items()})
    stored = stored_in_gguf(tensors, quantization, suffix)
    return write_stored_gguf(path, config, stored, tokenizer, **header)


def stored_in_gguf(
    tensors: Tensors, quantization: str = "F32", suffix: str = ".weight", low_rank: str = "F32"
) -> Stored:
    """llama.cpp's name -> blocks and their type; it leaves the low-rank matrices of the decay alone."""
    stored = {}
    for name, tensor in gguf_tensors(tensors, suffix).items():
        kind = gguf.GGMLQuantizationType.F32
        if tensor.ndim == 2 and not re.search(r"time_mix_w[12]", name):
            is_low_rank = re.search(r"time_mix_[avg][12]", name)
            kind = gguf.GGMLQuantizationType[low_rank if is_low_rank else quantization]
        stored[name] = (gguf.quantize(tensor, kind), kind)
    return stored


def write_stored_gguf(
    path: Path,
    config: ModelConfig,
    stored: Stored,
    tokenizer: Mapping[str, Any] | None = None,
    architecture: str = "rwkv7",
    values: Mapping[str, str | bytes | int] | None = None,
    **keys: int | float,
) -> Path:
    """A GGUF file of tensors in any form.

    `tokenizer` has "model" and "tokens" and optionally "merges", "types", "pre". `keys` replace numbers under
    `architecture.`, with two underscores for a dot; `values` are any other keys.
    """
    numbers: dict[str, int | float] = {
        "block_count": config.n_layer,
        "embedding_length": config.n_embd,
        "wkv__head_size": config.head_size,
        "attention__decay_lora_rank": config.rank_w,
        "attention__layer_norm_epsilon": 1e-5,
    }
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in (numbers | keys).items():
        add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
        add(f"{architecture}.{key.replace('__', '.')}", value)
    _add_tokenizer(writer, tokenizer or {})
    for key, other in (values or {}).items():
        kind = gguf.GGUFValueType.UINT32 if isinstance(other, int) else gguf.GGUFValueType.STRING
        writer.add_key_value(key, other, kind)
    for name, (data, kind) in stored.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Mapping[str, Any]) -> None:
    if not tokenizer:
        return
    writer.add_tokenizer_model(tokenizer["model"])
    writer.add_token_list(tokenizer["tokens"])
    if "pre" in tokenizer:
        writer.add_tokenizer_pre(tokenizer["pre"])
    if "merges" in tokenizer:
        writer.add_token_merges(tokenizer["merges"])
    if "types" in tokenizer:
        writer.add_token_types(tokenizer["types"])
