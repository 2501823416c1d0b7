"""LoRA adapters: small matrices that were trained beside a model, merged into its weights.

A file has pairs A [r, in] and B [out, r] for some of the matrices W [out, in]; merged, W becomes

    W + (alpha / r) B A

where alpha is what the adapter was trained with: adapter_config.json beside it says so, and may say more (see
`adapter_config`). A file may also have whole tensors, which replace those of the model:
RWKV-PEFT trains norms and token shifts that way. Names that are recognised, where X is the name of a tensor without
`.weight`, official or of flash-linear-attention:

    X.lora_A, X.lora_B                        RWKV-PEFT, .pth
    X.lora_A.weight, X.lora_A.default.weight  the package `peft`, .pth or .safetensors; perhaps with the prefix
                                              base_model.model.

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
from rwkv_cli.convert.adapter_config import NAME, AdapterConfig, read_config
from rwkv_cli.errors import CheckpointError, UsageError
from rwkv_cli.files.checkpoints.base import LazyTensor, mapped_tensor
from rwkv_cli.files.checkpoints.pth import read_state_dict
from rwkv_cli.files.safetensors import map_safetensors
from rwkv_cli.files.weight_source import WeightSource
from rwkv_cli.tensors import from_hf

Array = NDArray[np.float32]

_PAIR = re.compile(r"(?P<name>.+)\.lora_(?P<side>[AB])(\.default)?(\.weight)?")
_PREFIX = "base_model.model."
_ZIP = b"PK\x03\x04"
_MOST_ALPHA = 1e6


@dataclass(frozen=True)
class _Pair:
    A: LazyTensor  # [r, in]
    B: LazyTensor  # [out, r]
    module: str  # as the file names it


_FILES = ("adapter_model.safetensors", "adapter_model.bin", "adapter_model.pth")


def adapter_file(path: Path) -> Path:
    """The file of an adapter, which may be in a folder. Raises CheckpointError."""
    if not path.is_dir():
        return path
    found = [path / name for name in _FILES if (path / name).is_file()]
    if not found:
        raise CheckpointError(
            f"{path} is not the folder of an adapter: it has no {_FILES[0]}; name the file itself"
        )
    return found[0]


class Merged:
    """A model with an adapter merged into it: a source of weights like the model itself."""

    def __init__(self, base: WeightSource, path: Path, alpha: float | None = None) -> None:
        """`path` may be a folder; `alpha` is needed where no adapter_config.json says it.

        Raises CheckpointError for a file that does not fit the model, UsageError for a missing or invalid alpha, and
        for one that contradicts adapter_config.json.
        """
        if alpha is not None and not (math.isfinite(alpha) and 0 < abs(alpha) <= _MOST_ALPHA):
            raise UsageError(
                f"{{lora_alpha}} is {alpha}: it must be the number that the adapter was trained with"
            )
        self.config: ModelConfig = base.config
        self._base, self.path = base, adapter_file(path)
        self._settings = read_config(self.path)
        self.alpha = _alpha(self._settings, alpha)
        self._pairs, self._whole = _read(self.path, base.config.tensor_shapes())
        if self._settings:
            whole = (name.removesuffix(".weight").removesuffix(".bias") for name in self._whole_names())
            self._settings.check_modules({pair.module for pair in self._pairs.values()}, set(whole))
        self._scales = {name: self._scale(pair) for name, pair in self._pairs.items()}

    def _whole_names(self) -> list[str]:
        """The names of whole tensors, as the file has them."""
        return [
            raw.removeprefix(_PREFIX)
            for raw in _open(self.path)
            if not _PAIR.fullmatch(raw.removeprefix(_PREFIX))
        ]

    def _scale(self, pair: _Pair) -> float:
        """The factor of B A."""
        rank = pair.A.shape[0]
        return self._settings.scale(pair.module, rank) if self._settings else self.alpha / rank

    @property
    def merged(self) -> int:
        """The number of tensors that the adapter changes."""
        return len(self._pairs) + len(self._whole)

    def sha256(self) -> str:
        """The hexadecimal SHA-256 of the adapter's file, with its adapter_config.json if there is one."""
        with self.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
        if self._settings:
            digest.update(self._settings.data)
        return digest.hexdigest()

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
        delta = B @ (A * np.float32(self._scales[name]))
        is_transposed = tensors.row_of(name).is_transposed  # an adapter is [out, in] for every matrix
        delta += tensor.T if is_transposed else tensor
        return self._finite(name, np.ascontiguousarray(delta.T) if is_transposed else delta)

    def _finite(self, name: str, array: Array) -> Array:
        if not (np.isfinite(array.min()) and np.isfinite(array.max())):
            raise CheckpointError(
                f"{self.path} leads to a NaN or an infinity in the tensor {name}: get it again"
            )
        return array


def _read(path: Path, shapes: Mapping[str, Shape]) -> tuple[dict[str, _Pair], dict[str, LazyTensor]]:
    """The pairs and the whole tensors of a file, by official names, checked against the model's shapes."""
    sides: dict[str, dict[str, LazyTensor]] = {}
    modules: dict[str, str] = {}
    whole: dict[str, LazyTensor] = {}
    for raw, tensor in _open(path).items():
        found = _PAIR.fullmatch(raw.removeprefix(_PREFIX))
        if found is None:
            name = from_hf(raw.removeprefix(_PREFIX))
            if name not in shapes or math.prod(tensor.shape) != math.prod(shapes[name]):
                raise CheckpointError(
                    f"{path} contains {_shown(raw)} of {list(tensor.shape)}, which this model does not have "
                    "(different base model?)"
                )
            whole[name] = tensor.transposed() if _is_turned(raw, name) else tensor
            continue
        matrix = _matrix(found["name"], shapes)
        if matrix is None:
            raise CheckpointError(
                f"{path} contains weights for {_shown(found['name'])}, a matrix that this model does not have "
                "(different base model?)"
            )
        if found["side"] in sides.setdefault(matrix, {}):
            raise CheckpointError(f"{path} adapts {matrix} twice")
        sides[matrix][found["side"]] = tensor
        modules[matrix] = found["name"]
    if not sides:
        raise CheckpointError(f"{path} is not a LoRA adapter: it has no lora_A and lora_B")
    if twice := next((name for name in sides if name in whole), None):
        raise CheckpointError(f"{path} both adapts and replaces {twice}")
    pairs = {name: _pair(path, name, pair, shapes[name], modules[name]) for name, pair in sides.items()}
    return pairs, whole


def _alpha(settings: AdapterConfig | None, chosen: float | None) -> float:
    """What adapter_config.json says, or what the user does. Raises UsageError for neither, and for two numbers."""
    if settings is None:
        if chosen is None:
            raise UsageError(
                f"{{lora_alpha}} is missing: no {NAME} beside the adapter says what it was trained with"
            )
        return chosen
    if chosen is not None and chosen != settings.alpha:
        raise UsageError(
            f"{{lora_alpha}} is {chosen:g}, but {settings.path} says {settings.alpha:g}: leave it out, or correct that"
        )
    return settings.alpha


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
            f"{path} is not a LoRA adapter: neither a .pth nor a .safetensors file"
        ) from None
    floats = {"BF16", "F16", "F32", "F64"}
    if strange := next((name for name, found in mapped.tensors.items() if found.dtype not in floats), None):
        raise CheckpointError(f"{path} has {_shown(strange)} in a type that is not a type of weights")
    return {name: mapped_tensor(found.array, found.dtype.lower()) for name, found in mapped.tensors.items()}


def _matrix(name: str, shapes: Mapping[str, Shape]) -> str | None:
    """The official name of a matrix that is named with or without `.weight`; None if the model has none."""
    for candidate in (name, f"{name}.weight"):
        official = from_hf(candidate)
        if official in shapes and tensors.row_of(official).takes_lora:
            return official
    return None


def _is_turned(raw: str, name: str) -> bool:
    """Whether this is the transpose: fla's own name of a tensor that it stores the other way round."""
    return tensors.row_of(name).is_transposed and raw.removeprefix(_PREFIX) != name


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
