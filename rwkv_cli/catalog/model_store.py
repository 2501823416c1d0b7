"""The models that were pulled: one model file each, in the folder `models` of the user's data.

A file is called NAME-TYPE.safetensors. Its metadata records its origin and a digest of its tensors. The last use of a
model is the modification time of an empty file in the folder `.used`.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

from rwkv_cli import paths
from rwkv_cli.catalog.names import is_name, without_secrets
from rwkv_cli.errors import StorageError, UsageError
from rwkv_cli.files.weight_layouts import WEIGHT_TYPES
from rwkv_cli.reporting import did_you_mean

SUFFIX = ".safetensors"
_USED = ".used"


@dataclass(frozen=True)
class Stored:
    """A model file in the store."""

    name: str
    path: Path

    @property
    def bytes(self) -> int:
        """Its size on disk."""
        return self.path.stat().st_size

    @property
    def last_used(self) -> float | None:
        """When it was last run, in seconds since 1970; None for never."""
        try:
            return _mark(self.path).stat().st_mtime
        except OSError:
            return None


def folder() -> Path:
    """The model folder, which need not exist. Raises StorageError for a user without a home."""
    return paths.data_folder() / "models"


def path_of(name: str) -> Path:
    """The file of a model of this name, which need not exist. Raises UsageError for an invalid name."""
    if not is_name(name):
        raise UsageError(
            f"{without_secrets(name)[:80]!r} is not a valid model name: use a-z, 0-9, '.', '_' and '-'"
        )
    return folder() / f"{name}{SUFFIX}"


def listed() -> list[Stored]:
    """All models, sorted by name. Raises StorageError if the folder cannot be read."""
    try:
        files = sorted(folder().glob(f"*{SUFFIX}"))
    except OSError as error:
        raise StorageError(
            f"cannot read {folder()}: {(error.strerror or str(error)).lower()}{paths.hint(folder())}"
        ) from None
    return [Stored(file.stem, file) for file in files if is_name(file.stem) and file.is_file()]


def find(name: str) -> Stored | None:
    """The model of exactly this name, if it is here; None also for an invalid name."""
    path = path_of(name) if is_name(name) else None
    return Stored(name, path) if path and path.is_file() else None


def find_pulled(name: str) -> Stored | None:
    """The file that was pulled as this name, of any type: int8 if it is here, otherwise the newest."""
    there = [stored for kind in WEIGHT_TYPES if (stored := find(f"{name}-{kind}"))]
    if there and not there[0].name.endswith("-int8"):
        there.sort(key=lambda stored: -stored.path.stat().st_mtime)
    return there[0] if there else None


def get(name: str) -> Stored:
    """The model of this name. Raises UsageError with the names that are near, or all of a few."""
    if stored := find(name):
        return stored
    path_of(name)
    names = [stored.name for stored in listed()]
    hint = did_you_mean(name, names) or (f": it has {', '.join(names[:3])}" if names else ", which is empty")
    if len(names) > 3 and hint.startswith(":"):
        hint += f" and {len(names) - 3} more"
    raise UsageError(f"{name[:80]} is not in the model store{hint}")


def remove(stored: Stored) -> None:
    """Delete a model. Raises StorageError."""
    try:
        stored.path.unlink()
    except OSError as error:
        raise StorageError(f"cannot remove {stored.path}: {(error.strerror or str(error)).lower()}") from None
    with contextlib.suppress(OSError):
        _mark(stored.path).unlink()


def note_use(path: Path) -> None:
    """Record that a model is run now, if it is in the store; never fails."""
    with contextlib.suppress(OSError, StorageError):
        if path.parent == folder():
            mark = _mark(path)
            mark.parent.mkdir(exist_ok=True)
            mark.touch()
            now = time.time()
            os.utime(mark, (now, now))


def _mark(path: Path) -> Path:
    return path.parent / _USED / path.stem
