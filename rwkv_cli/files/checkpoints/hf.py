"""Safetensors files, with or without a Hugging Face directory around them: `config.json` and one or more files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rwkv_cli import tensors as table
from rwkv_cli.config import HEAD_SIZE, LAYER_NORM_EPS, ModelConfig
from rwkv_cli.errors import CheckpointError, UnsupportedModelError
from rwkv_cli.files.checkpoints.base import Checkpoint, LazyTensor, mapped_tensor, refuse_foreign
from rwkv_cli.files.checkpoints.beside import CONFIG, model_name
from rwkv_cli.files.checkpoints.chat_templates import template_of_folder
from rwkv_cli.files.checkpoints.generation_settings import settings_of_folder
from rwkv_cli.files.checkpoints.layouts import official_tensors
from rwkv_cli.files.checkpoints.pth import read_state_dict
from rwkv_cli.files.checkpoints.small_files import read_json, refuse_pointer
from rwkv_cli.files.safetensors import UnreadableTypeError, map_safetensors
from rwkv_cli.tensors import Format

# One file or an index of several, in safetensors or in the older PyTorch pickles.
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_INDEX = ".index.json"

_FLOATS = ("bf16", "f16", "f32", "f64")

# Settings that a checkpoint cannot show in its tensors, with the only values that RWKV-7 has, the usual one first.
_FIXED_SETTINGS: Mapping[str, tuple[object, ...]] = {
    "norm_eps": (LAYER_NORM_EPS,),
    "layer_norm_epsilon": (LAYER_NORM_EPS,),
    "group_norm_epsilon": (64e-5,),
    "hidden_act": ("sqrelu", "relu2"),
    "norm_first": (True,),
}
# Settings that repeat the sizes of the tensors, and their names in ModelConfig.
_SIZES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "vocab_size": "vocab_size",
    "head_dim": "head_size",
    "head_size": "head_size",
    "intermediate_size": "n_ffn",
}


def open_hf(path: Path) -> Checkpoint:
    """Open a directory, or one safetensors file with the `config.json` beside it, if there is one.

    Raises CheckpointError, or UnsupportedModelError for another kind of model.
    """
    folder = path if path.is_dir() else path.parent
    settings = _read_settings(folder / CONFIG)
    files = weight_files(path) if path.is_dir() else (path,)
    raw: dict[str, LazyTensor] = {}
    for file in files:
        for name, tensor in _map_weights(file).items():
            if name in raw:
                raise CheckpointError(f"{file} repeats the tensor {name[:80]!r} of another file")
            raw[name] = tensor
    refuse_foreign(path, raw, settings.get("model_type"))
    for name, tensor in raw.items():
        if tensor.dtype not in _FLOATS:
            raise CheckpointError(
                f"{path} has the tensor {name[:80]!r} in the type {tensor.dtype}, which is not a type of weights"
            )
    tensors = official_tensors(path, raw, _head_size(settings))
    if settings.get("embedding_layer_norm_fused") is True and "emb.weight" in tensors:
        raise UnsupportedModelError(
            f"{path} has its first normalization folded into the embedding, which cannot be undone: use the .pth or "
            "convert that without folding"
        )
    if (
        settings.get("tie_word_embeddings") is True
        and "head.weight" not in tensors
        and "emb.weight" in tensors
    ):
        tensors["head.weight"] = tensors["emb.weight"]
    is_folder = (folder / CONFIG).is_file()
    checkpoint = Checkpoint(
        path,
        _format(raw),
        files,
        tensors,
        chat_template=template_of_folder(folder) if is_folder else None,
        name=model_name(files, is_folder),
        sampling=settings_of_folder(folder) if is_folder else {},
    )
    _check_settings(folder / CONFIG, settings, checkpoint.config)
    return checkpoint


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The weight files of a directory, in the order of their names; empty if it has no model.

    Raises CheckpointError if a shard is missing or the choice is ambiguous.
    """
    for name in WEIGHTS:
        if (folder / name).is_file():
            return (folder / name,)
        if (folder / (name + _INDEX)).is_file():
            return _shards(folder / (name + _INDEX))
    others = sorted(folder.glob("*.safetensors"))
    if len(others) > 1:
        raise CheckpointError(
            f"{folder} has {len(others)} safetensors files but no {WEIGHTS[0]}{_INDEX} that joins them"
        )
    return tuple(others)


def _map_weights(file: Path) -> dict[str, LazyTensor]:
    refuse_pointer(file)
    if file.suffix == ".bin":
        return read_state_dict(file)
    try:
        mapped = map_safetensors(file)
    except UnreadableTypeError as error:
        raise CheckpointError(f"{file} cannot be read: {error}; convert it to bf16 first") from None
    except ValueError as error:
        raise CheckpointError(f"{file} cannot be read: {error}; get it again") from None
    tensors = {}
    for name, (dtype, _, array) in mapped.tensors.items():
        tensors[name] = mapped_tensor(array, dtype.lower())
    return tensors


def _shards(index: Path) -> tuple[Path, ...]:
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise CheckpointError(f"{index} lists no weight files: get it again")
    files = []
    for name in sorted(set(names.values())):
        # A downloaded index must not lead out of its own folder.
        if not name or Path(name).name != name or "\\" in name:
            raise CheckpointError(f"{index} names a file outside its folder: {name[:80]!r}")
        if not (index.parent / name).is_file():
            raise CheckpointError(f"the file {name} is missing in {index.parent}: get it too")
        files.append(index.parent / name)
    return tuple(files)


def _read_settings(path: Path) -> dict[str, Any]:
    """`config.json`, or an empty dictionary if it is missing: the sizes come from the tensors."""
    return read_json(path) if path.is_file() else {}


def _head_size(settings: Mapping[str, object]) -> int:
    """The size of heads that r_k is split into where it is stored flat."""
    value = settings.get("head_dim") or settings.get("head_size")
    return value if type(value) is int and value > 0 else HEAD_SIZE


def _format(names: Mapping[str, object]) -> Format:
    """`st` for official names without a prefix, `hf` for those of any port to transformers."""
    return "st" if all(table.find(name) for name in names) else "hf"


def _check_settings(path: Path, settings: Mapping[str, object], config: ModelConfig) -> None:
    """Refuse a `config.json` that describes another model than the tensors."""
    for name, values in _FIXED_SETTINGS.items():
        if name in settings and settings[name] not in values:
            shown = str(settings[name])[:20]
            raise UnsupportedModelError(f"{path} sets {name} to {shown}; RWKV-7 models have {values[0]}")
    sizes = config.as_dict()
    for name, field in _SIZES.items():
        value = settings.get(name)
        if value is not None and value != sizes[field]:
            raise CheckpointError(
                f"{path} sets {name} to {str(value)[:20]}, but the tensors say {sizes[field]}"
            )
