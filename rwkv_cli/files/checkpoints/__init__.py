"""Readers of published checkpoints: `open_checkpoint` detects the format of a file.

    pth    the official files, a zip archive of PyTorch storages
    hf     safetensors: Hugging Face directories of every port of RWKV-7, and single files under official names
    gguf   files of llama.cpp

All of them return a `Checkpoint`: the same tensors under the same official names, read one at a time. `layouts` knows
the names and orientations that files use, `beside` finds the vocabulary and the name of a model, `chat_templates` how
it wants conversations to be written.
"""

from __future__ import annotations

from pathlib import Path

from rwkv_cli.errors import CheckpointError
from rwkv_cli.files.checkpoints.base import ChatTemplate, Checkpoint
from rwkv_cli.files.checkpoints.beside import CONFIG
from rwkv_cli.files.checkpoints.foreign import NOT_RECOGNISED
from rwkv_cli.files.checkpoints.small_files import refuse_pointer

__all__ = ["ChatTemplate", "Checkpoint", "open_checkpoint"]

_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
_GGUF = b"GGUF"
# How `rwkv_cli.sessions.state_file` begins, after the length of its header.
_STATE = b'{"__metadata__":{"rwkv_state":'
# torch < 1.6 wrote bare pickles (protocol 2), which begin with its magic number.
_LEGACY_TORCH = b"\x80\x02"


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a published model: a `.pth`, `.gguf`, `.st` or `.safetensors` file, or a directory that holds one.

    The content decides, not the name. Raises CheckpointError, in one sentence, for anything that cannot be
    read, and UnsupportedModelError for a model of another kind than RWKV-7.
    """
    try:
        return _open_directory(path) if path.is_dir() else _open_file(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no file {error.filename or path}") from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise CheckpointError(f"cannot read {error.filename or path}: {reason}") from None


def _open_file(path: Path) -> Checkpoint:
    with path.open("rb") as file:
        magic = file.read(9)
        is_state = (magic[8:] + file.read(32)).startswith(_STATE)
    refuse_pointer(path)
    if is_state:
        raise CheckpointError(f"{path} is a saved state and not a model: use it as {{state}}")
    if not magic:
        raise CheckpointError(f"{path} is empty: get it again")
    if magic.startswith(_ZIP):
        from rwkv_cli.files.checkpoints.pth import open_pth

        return open_pth(path)
    if magic.startswith(_GGUF):
        from rwkv_cli.files.checkpoints.gguf import open_gguf

        return open_gguf(path)
    # The first byte of the header, after its length.
    if path.suffix in (".safetensors", ".st") or magic[8:] == b"{":
        from rwkv_cli.files.checkpoints.hf import open_hf

        return open_hf(path)
    if magic.startswith(_LEGACY_TORCH):
        raise CheckpointError(
            f"{path} is in the format of PyTorch before 1.6: save it again with torch >= 1.6"
        )
    raise CheckpointError(f"{path} {NOT_RECOGNISED}")


def _open_directory(path: Path) -> Checkpoint:
    from rwkv_cli.files.checkpoints.hf import open_hf, weight_files

    if weight_files(path):
        return open_hf(path)
    singles = sorted(file for suffix in ("*.pth", "*.gguf", "*.st") for file in path.glob(suffix))
    if len(singles) == 1:
        return _open_file(singles[0])
    if singles:
        raise CheckpointError(f"{path} contains {len(singles)} models: name one of its files")
    if (path / CONFIG).is_file():
        raise CheckpointError(f"{path} has a {CONFIG} but no weights: get its model.safetensors too")
    raise CheckpointError(
        f"{path} does not contain a model: name a .pth, .gguf, .st or .safetensors file or its folder"
    )
