"""LoRA adapters: small matrices that were trained beside a model, merged into its weights.

A file has pairs A [r, in] and B [out, r] for some of the matrices W [out, in]; merged, W becomes

    W + (alpha / r) B A

where alpha is what the adapter was trained with: adapter_config.json beside the file says it, and perhaps another
scale, see `adapter_config`. A file may also have whole tensors, which replace those of the model: RWKV-PEFT trains
norms and token shifts that way. Names that are recognised, where X is the name of a tensor without `.weight`, in any
layout that `files.checkpoints.layouts` knows:

    X.lora_A, X.lora_B                        RWKV-PEFT, .pth
    X.lora_A.weight, X.lora_A.default.weight  the package `peft`, .pth, .bin or .safetensors; perhaps with the prefix
                                              base_model.model.
    X.lora_embedding_A, X.lora_embedding_B    the same for the embedding, where A is [r, V] and B [C, r]

Everything in the file has to match a tensor of the model: nothing is ignored silently.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rwkv_cli import tensors
from rwkv_cli.config import ModelConfig, Shape
from rwkv_cli.convert.adapter_config import FILE, MOST_ALPHA, AdapterConfig, read_adapter_config
from rwkv_cli.errors import CheckpointError, UsageError
from rwkv_cli.files.checkpoints.base import LazyTensor, mapped_tensor, split_fused_shifts
from rwkv_cli.files.checkpoints.layouts import official_name
from rwkv_cli.files.checkpoints.pth import read_state_dict
from rwkv_cli.files.safetensors import map_safetensors
from rwkv_cli.files.weight_source import WeightSource

Array = NDArray[np.float32]

_PAIR = re.compile(r"(?P<name>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(\.default)?(\.weight)?")
_PREFIX = "base_model.model."
_WRAPPER = re.compile(r"\.(base_layer|modules_to_save(\.default)?|original_module)(?=\.)")
_MAGNITUDE = ".lora_magnitude_vector"
_ZIP = b"PK\x03\x04"
_FILES = ("adapter_model.safetensors", "adapter_model.bin", "adapter_model.pth")
_ENDINGS = (".safetensors", ".bin", ".pth")


@dataclass(frozen=True)
class _Pair:
    A: LazyTensor  # [r, in]
    B: LazyTensor  # [out, r]
    module: str  # as the file calls it


class Merged:
    """A model with an adapter merged into it: a source of weights like the model itself."""

    def __init__(self, base: WeightSource, path: Path, alpha: float | None = None) -> None:
        """`path` is a file or the folder of one; `alpha` is not needed where adapter_config.json says it.

        Raises CheckpointError for a file that does not fit the model, UsageError for an invalid or missing alpha.
        """
        if alpha is not None and not (math.isfinite(alpha) and 0 < abs(alpha) <= MOST_ALPHA):
            raise UsageError(
                f"{{lora_alpha}} is {alpha}: it must be the number that the adapter was trained with"
            )
        self.config: ModelConfig = base.config
        self._base, self.path = base, _file(path)
        beside = self.path.parent / FILE
        self.settings = read_adapter_config(beside) if beside.is_file() else None
        self._pairs, self._whole = _read(self.path, base.config.tensor_shapes(), self.settings)
        recorded = self.settings.alpha if self.settings else None
        chosen = recorded if alpha is None else alpha
        if chosen is None:
            raise UsageError(
                f"{{lora_alpha}} is missing: {self.path} does not record the number that the adapter was trained with, "
                f"and there is no {FILE} with it beside the file"
            )
        self.alpha = chosen
        self.remark = (
            f"{beside} says that the adapter was trained with alpha {recorded:g}; merging with {chosen:g}, as you said"
            if recorded is not None and recorded != chosen
            else None
        )

    @property
    def merged(self) -> int:
        """The number of tensors that the adapter changes."""
        return len(self._pairs) + len(self._whole)

    def sha256(self) -> str:
        """The hexadecimal SHA-256 of the adapter's file."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def tensor(self, name: str) -> Array:
        """One tensor, with the adapter applied. Raises CheckpointError for NaN or infinity."""
        if name in self._whole:
            shape = self.config.tensor_shapes()[name]
            return self._finite(name, self._whole[name].read().reshape(shape))
        tensor = self._base.tensor(name)
        if name not in self._pairs:
            return tensor
        pair = self._pairs[name]
        A, B = self._finite(name, pair.A.read()), self._finite(name, pair.B.read())
        delta = B @ (A * np.float32(self._scale(pair)))
        is_transposed = tensors.row_of(name).is_transposed  # an adapter is [out, in] for every matrix
        delta += tensor.T if is_transposed else tensor
        return self._finite(name, np.ascontiguousarray(delta.T) if is_transposed else delta)

    def _scale(self, pair: _Pair) -> float:
        rank = pair.A.shape[0]
        if self.settings is None:
            return self.alpha / rank
        alpha = self.settings.alpha_of(pair.module, self.alpha)
        return alpha / (math.sqrt(rank) if self.settings.is_rank_stabilized else rank)

    def _finite(self, name: str, array: Array) -> Array:
        if not (np.isfinite(array.min()) and np.isfinite(array.max())):
            raise CheckpointError(
                f"{self.path} leads to a NaN or an infinity in the tensor {name}: get it again"
            )
        return array


def _file(path: Path) -> Path:
    """The file of an adapter, which may be given as its folder."""
    if not path.is_dir():
        return path
    if named := next((path / name for name in _FILES if (path / name).is_file()), None):
        return named
    found = sorted(file for file in path.iterdir() if file.suffix in _ENDINGS and file.is_file())
    if len(found) != 1:
        what = "no adapter" if not found else f"{len(found)} files that could be the adapter"
        raise CheckpointError(
            f"the folder {path} has {what}: name the .safetensors, .bin or .pth file itself"
        )
    return found[0]


def _read(
    path: Path, shapes: Mapping[str, Shape], settings: AdapterConfig | None
) -> tuple[dict[str, _Pair], dict[str, LazyTensor]]:
    """The pairs and the whole tensors of a file, by official names, checked against the model and the settings."""
    sides: dict[str, dict[str, LazyTensor]] = {}
    modules: dict[str, str] = {}
    rest: dict[str, LazyTensor] = {}
    for raw, tensor in _open(path).items():
        bare = raw.removeprefix(_PREFIX)
        if _MAGNITUDE in bare:
            raise CheckpointError(f"{path} is a DoRA adapter: merge it with the package peft")
        found = _PAIR.fullmatch(bare)
        if found is None:
            rest[_WRAPPER.sub("", bare)] = tensor
            continue
        module = _WRAPPER.sub("", f"{found['name']}.").removesuffix(".")
        matrix = _matrix(module, shapes)
        if matrix is None or (found["embedding"] and matrix != "emb.weight"):
            raise CheckpointError(
                f"{path} contains weights for {_shown(module)}, a matrix that this model does not have "
                "(different base model?)"
            )
        side = found["side"]
        if found[
            "embedding"
        ]:  # a table is looked up by row: there A is [r, V] and B [C, r], so W changes by (B A)^T
            side, tensor = "BA"["AB".index(side)], tensor.transposed() if len(tensor.shape) == 2 else tensor
        if side in sides.setdefault(matrix, {}):
            raise CheckpointError(f"{path} adapts {matrix} twice")
        sides[matrix][side] = tensor
        modules[matrix] = module
    if not sides:
        raise CheckpointError(f"{path} is not a LoRA adapter: it has no lora_A and lora_B")
    whole = _whole(path, rest, shapes)
    if twice := next((name for name in sides if name in whole), None):
        raise CheckpointError(f"{path} both adapts and replaces {twice}")
    pairs = {name: _pair(path, name, pair, shapes[name], modules[name]) for name, pair in sides.items()}
    if settings:
        for pair in pairs.values():
            settings.check_pair(pair.module, pair.A.shape[0])
        settings.check_complete(modules.values(), rest, _modules(shapes))
    return pairs, whole


def _whole(path: Path, raw: Mapping[str, LazyTensor], shapes: Mapping[str, Shape]) -> dict[str, LazyTensor]:
    """Tensors that replace the model's, by official name and the right way round."""
    named: dict[str, LazyTensor] = {}
    origin: dict[str, str] = {}
    for title, tensor in raw.items():
        name = official_name(title)
        if name in named:
            raise CheckpointError(f"{path} has two tensors for {_shown(name)}")
        named[name], origin[name] = tensor, title
    split_fused_shifts(path, named)
    for name, tensor in named.items():
        shape = shapes.get(name)
        row = tensors.find(name)
        if shape and row and row.is_transposed and _is_turned(origin[name], tensor.shape, shape):
            named[name] = tensor = tensor.transposed()
        is_vector = row is not None and row.role == "vector"
        if shape is None or not (
            math.prod(tensor.shape) == math.prod(shape) if is_vector else tensor.shape == shape
        ):
            raise CheckpointError(
                f"{path} contains {_shown(origin.get(name, name))} of {list(tensor.shape)}, which this model "
                "does not have (different base model?)"
            )
    return named


def _modules(shapes: Mapping[str, Shape]) -> set[str]:
    """The names of the modules of a model that can be adapted or replaced, official and of flash-linear-attention."""
    names = {name for official in shapes for name in (official, tensors.hf_name(official))}
    return {name.removesuffix(".weight").removesuffix(".bias") for name in names}


def _open(path: Path) -> dict[str, LazyTensor]:
    """All tensors of a .pth or safetensors file."""
    try:
        with path.open("rb") as file:
            is_zip = file.read(4) == _ZIP
        if is_zip:
            return read_state_dict(path)
        mapped = map_safetensors(path)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from None
    except ValueError:
        raise CheckpointError(
            f"{path} is not a LoRA adapter: neither a .pth or .bin nor a .safetensors file"
        ) from None
    floats = {"BF16", "F16", "F32", "F64"}
    if strange := next((name for name, found in mapped.tensors.items() if found.dtype not in floats), None):
        raise CheckpointError(f"{path} has {_shown(strange)} in a type that is not a type of weights")
    return {name: mapped_tensor(found.array, found.dtype.lower()) for name, found in mapped.tensors.items()}


def _matrix(module: str, shapes: Mapping[str, Shape]) -> str | None:
    """The official name of a matrix that is named with or without `.weight`; None if the model has none."""
    for candidate in (module, f"{module}.weight"):
        official = official_name(candidate)
        if official in shapes and tensors.row_of(official).takes_lora:
            return official
    return None


def _is_turned(raw: str, found: Shape, official: Shape) -> bool:
    """Whether a low-rank matrix is stored as the transpose, as the weight of a linear layer is: square ones too."""
    return found == official[::-1] and (found != official or raw.endswith(".weight"))


def _pair(path: Path, name: str, sides: Mapping[str, LazyTensor], shape: Shape, module: str) -> _Pair:
    if set(sides) != {"A", "B"}:
        raise CheckpointError(f"{path} has only one of lora_A and lora_B for {name}: it is incomplete")
    A, B = sides["A"], sides["B"]
    n_out, n_in = shape[::-1] if tensors.row_of(name).is_transposed else shape
    fits = len(A.shape) == len(B.shape) == 2 and A.shape[0] == B.shape[1]
    if not fits or (B.shape[0], A.shape[1]) != (n_out, n_in) or A.shape[0] == 0:
        raise CheckpointError(
            f"{path} does not fit the model: it adapts {name} of {list(shape)} with lora_A of {list(A.shape)} "
            f"and lora_B of {list(B.shape)}"
        )
    return _Pair(A, B, module)


def _shown(name: str) -> str:
    return repr("".join(character for character in name[:80] if character.isprintable()))
