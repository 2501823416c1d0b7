"""Which model it is: what has to be the same for a state to mean something."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rwkv_cli import paths
from rwkv_cli.catalog import registry
from rwkv_cli.files.checkpoints import open_checkpoint
from rwkv_cli.files.model_file import ModelFile, ModelInfo, is_model_file

if TYPE_CHECKING:
    from rwkv_cli.config import ModelConfig
    from rwkv_cli.model import Model
    from rwkv_cli.text.tokenizer import TokenizerSpec


@dataclass(frozen=True)
class ModelIdentity:
    """Which model made a state."""

    name: str  # of the source checkpoint, such as "gosling.pth"
    weights: str  # the sha256 of the source checkpoint: the same for all quantizations of it
    weight_type: str  # such as "int8"; empty where it did not matter, as for a state that was trained
    tokenizer: str  # "world", the sha256 of its bytes, or "none"
    location: str = field(default="", compare=False)  # what --model was: a path, or the name of a known model


def identify(model: Model) -> ModelIdentity:
    """The identity of a loaded model. Reads the whole checkpoint for its sha256 where no model file has noted it."""
    return _identity(model.info, model.path, model.info.label)


def identify_file(path: Path) -> tuple[ModelIdentity, ModelConfig]:
    """The identity and the sizes of a model that is not loaded, whatever type its weights are to have.

    Raises what reading the file raises.
    """
    from rwkv_cli.convert.conversion import describe

    info = ModelFile(path).info if is_model_file(path) else describe(open_checkpoint(path), "fp32")
    return _identity(info, path, ""), info.config


def _identity(info: ModelInfo, path: Path, weight_type: str) -> ModelIdentity:
    return ModelIdentity(
        name=info.source.get("name") or path.name,
        weights=info.source.get("sha256") or _digest(path, _version(path)),
        weight_type=weight_type,
        tokenizer=_tokenizer(info.tokenizer),
        location=registry.DEFAULT if path == paths.EMBEDDED_MODEL else str(path.absolute()),
    )


def _tokenizer(spec: TokenizerSpec | None) -> str:
    if spec is None:
        return "none"
    return "world" if spec.data is None else hashlib.sha256(spec.data).hexdigest()


def _version(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@functools.lru_cache(maxsize=8)
def _digest(path: Path, _version: tuple[int, int]) -> str:
    """The sha256 of a published checkpoint, or of a model file that does not know its own."""
    if not is_model_file(path):
        with open_checkpoint(path) as checkpoint:
            return checkpoint.sha256()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
