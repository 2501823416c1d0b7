"""Converted checkpoints in the user's cache, so that each is quantized once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from rwkv_cli import paths
from rwkv_cli.convert.conversion import convert, convert_checkpoint, open_source
from rwkv_cli.files.atomic import remove_leftovers, storage_error
from rwkv_cli.files.checkpoints import Checkpoint
from rwkv_cli.files.model_file import is_usable
from rwkv_cli.files.weight_layouts import WeightType
from rwkv_cli.reporting import Reporter


def cached_model_file(checkpoint: Checkpoint, reporter: Reporter) -> Path:
    """The int8 form of a checkpoint in the user's cache, converted now if it is missing.

    Raises StorageError, CheckpointError, TokenizerError.
    """
    # What is beside the weights may have been added or changed since.
    spec = checkpoint.tokenizer
    vocabulary = spec and (spec.kind, spec.data, spec.ends)
    beside = repr((vocabulary, checkpoint.chat_template, checkpoint.sampling))
    name = checkpoint.path.name if checkpoint.path.is_dir() else checkpoint.path.stem
    target = _target(name, "int8", checkpoint.files, beside)
    if not is_usable(target):
        reporter.note(f"quantizing {checkpoint.path.name} to int8, once, into {target}")
        _make_folder(target)
        convert_checkpoint(checkpoint, target, "int8", reporter)
    return target


def cached_draft(model: Path, reporter: Reporter) -> Path:
    """The int4 form of a model file in the user's cache, for speculation; converted now if it is missing.

    Raises StorageError, ModelFileError.
    """
    target = _target(model.stem, "int4", (model,), "")
    if not is_usable(target):
        reporter.note(f"quantizing {model.name} to int4, once, into {target}")
        _make_folder(target)
        convert(open_source(model), target, "int4", reporter)
    return target


def _target(name: str, weight_type: WeightType, files: Iterable[Path], beside: str) -> Path:
    """Where the form of a model is kept, by its files and by what else it is made of."""
    identity = hashlib.sha256()
    for file in files:
        status = file.stat()
        # A path may have bytes that are not UTF-8.
        identity.update(os.fsencode(file.resolve()) + f" {status.st_size} {status.st_mtime_ns}\n".encode())
    identity.update(beside.encode())
    folder = paths.cache_folder() / "models"
    remove_leftovers(folder)
    return folder / f"{name}-{weight_type}-{identity.hexdigest()[:16]}.safetensors"


def _make_folder(target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(target, error) from None
