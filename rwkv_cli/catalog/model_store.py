"""The models that were pulled: one model file each, in the folder `models` of the user's data.

A file is called NAME-TYPE.safetensors. Its metadata say where it came from, and have a digest of its tensors. When a
model was used last is the time of an empty file in the folder `.used` beside them.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

from rwkv_cli import paths
from rwkv_cli.catalog.entries import is_name
from rwkv_cli.errors import StorageError, UsageError
from rwkv_cli.files.weight_layouts import WEIGHT_TYPES

SUFFIX = ".safetensors"
_USED = ".used"


@dataclass(frozen=True)
class Stored:
    """A model file of the store."""

    name: str
    path: Path

    @property
    def bytes(self) -> int:
        """Its size on the disk."""
        return self.path.stat().st_size

    @property
    def last_used(self) -> float | None:
        """When it was run last, in seconds since 1970; None for never."""
        try:
            return _mark(self.path).stat().st_mtime
        except OSError:
            return None


def folder() -> Path:
    """Where the models lie; need not exist. Raises StorageError for a user without a home."""
    return paths.data_folder() / "models"


def path_of(name: str) -> Path:
    """The file of a model of this name, which need not exist. Raises UsageError for a name that may be none."""
    if not is_name(name):
        raise UsageError(f"{name[:80]!r} is no name of a model: names have only a-z, 0-9, '.', '_' and '-'")
    return folder() / f"{name}{SUFFIX}"


def listed() -> list[Stored]:
    """All models, by name. Raises StorageError where the folder cannot be read."""
    try:
        files = sorted(folder().glob(f"*{SUFFIX}"))
    except OSError as error:
        raise StorageError(f"cannot read {folder()}: {(error.strerror or str(error)).lower()}") from None
    return [Stored(file.stem, file) for file in files if is_name(file.stem) and file.is_file()]


def find(name: str) -> Stored | None:
    """The model of exactly this name, if it is there; None for a name that no model can have."""
    path = path_of(name) if is_name(name) else None
    return Stored(name, path) if path and path.is_file() else None


def find_pulled(name: str) -> Stored | None:
    """The file that was pulled under this name, of whichever type: int8 if it is there, otherwise the newest."""
    there = [stored for kind in WEIGHT_TYPES if (stored := find(f"{name}-{kind}"))]
    if there and not there[0].name.endswith("-int8"):
        there.sort(key=lambda stored: -stored.path.stat().st_mtime)
    return there[0] if there else None


def get(name: str) -> Stored:
    """The model of this name. Raises UsageError, which lists what is there."""
    if stored := find(name):
        return stored
    path_of(name)
    names = ", ".join(stored.name for stored in listed())
    raise UsageError(
        f"there is no model {name[:80]} in the store" + (f": it has {names}" if names else ", it is empty")
    )


def remove(stored: Stored) -> None:
    """Delete a model. Raises StorageError."""
    try:
        stored.path.unlink()
    except OSError as error:
        raise StorageError(f"cannot remove {stored.path}: {(error.strerror or str(error)).lower()}") from None
    with contextlib.suppress(OSError):
        _mark(stored.path).unlink()


def note_use(path: Path) -> None:
    """Remember that a model was run now, if it is one of the store; never fails."""
    with contextlib.suppress(OSError, StorageError):
        if path.parent == folder():
            mark = _mark(path)
            mark.parent.mkdir(exist_ok=True)
            mark.touch()
            now = time.time()
            os.utime(mark, (now, now))


def _mark(path: Path) -> Path:
    return path.parent / _USED / path.stem
