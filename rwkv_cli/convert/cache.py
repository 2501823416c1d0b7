"""Converted checkpoints in the user's cache, so that each is quantized once."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from rwkv_cli import paths
from rwkv_cli.convert.conversion import convert_checkpoint
from rwkv_cli.files.atomic import remove_leftovers, storage_error
from rwkv_cli.files.checkpoints import Checkpoint
from rwkv_cli.files.model_file import is_usable
from rwkv_cli.reporting import Reporter


def cached_model_file(checkpoint: Checkpoint, reporter: Reporter) -> Path:
    """The int8 form of a checkpoint in the user's cache, converted now if it is missing.

    Raises StorageError, CheckpointError, TokenizerError.
    """
    identity = hashlib.sha256()
    for file in checkpoint.files:
        status = file.stat()
        # A path may have bytes that are not UTF-8.
        identity.update(os.fsencode(file.resolve()) + f" {status.st_size} {status.st_mtime_ns}\n".encode())
    # What is beside the weights may have been added or changed since.
    spec = checkpoint.tokenizer
    vocabulary = spec and (spec.kind, spec.data, spec.ends)
    identity.update(repr((vocabulary, checkpoint.chat_template, checkpoint.sampling)).encode())
    folder = paths.cache_folder() / "models"
    name = checkpoint.path.name if checkpoint.path.is_dir() else checkpoint.path.stem
    target = folder / f"{name}-int8-{identity.hexdigest()[:16]}.safetensors"
    remove_leftovers(folder)
    if not is_usable(target):
        reporter.note(f"quantizing {checkpoint.path.name} to int8, once, into {target}")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(target, error) from None
        convert_checkpoint(checkpoint, target, "int8", reporter)
    return target
