"""What the program keeps on the disk and can make again, by its kinds."""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from cpu_kernels.runtime.leftovers import leftovers
from rwkv_cli import paths
from rwkv_cli.errors import StorageError
from rwkv_cli.files.lock import HeldError, locked
from rwkv_cli.sessions import prompt_cache


@dataclass
class Kind:
    """Files and folders of one kind, and what they take, in bytes."""

    name: str
    paths: list[Path] = field(default_factory=list)
    files: int = 0
    size: int = 0


def kinds() -> list[Kind]:
    """All kinds, also those of which there is nothing. Raises StorageError for a user without a home."""
    cache = paths.cache_folder()
    folders = paths.written_folders()
    kernels = [folder for folder in folders if folder.parent == cache and folder.name.startswith("kernels-")]
    compiled = [path for folder in kernels for path in _whole(folder)] + _entries(cache / "cuda")
    left = [path for folder in folders for path in leftovers(folder)]
    return [
        _measured("compiled kernels", compiled),
        _measured("converted checkpoints", _whole(cache / "models")),
        _measured("prompt cache", _whole(prompt_cache.folder())),
        _measured("conversations of the server", _whole(cache / "turns") + _whole(cache / "responses")),
        _measured("results of tasks", _whole(cache / paths.TASK_RESULTS)),
        _measured("downloads in progress", _unfinished(cache)),
        _measured("left-overs", left),
    ]


def clear() -> list[Kind]:
    """Remove all of it, but nothing that a program is writing now: what there was.

    Raises StorageError for what cannot be removed.
    """
    found = kinds()
    for kind in found:
        for path in kind.paths:
            try:
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
            except FileNotFoundError:  # another process was faster
                continue
            except OSError as error:
                raise StorageError(
                    f"cannot remove {path}: {(error.strerror or str(error)).lower()}"
                ) from None
    return found


def _whole(folder: Path) -> list[Path]:
    """The files of a folder that are complete: the others are hidden."""
    return [path for path in _entries(folder) if not path.name.startswith(".") and path.is_file()]


def _unfinished(cache: Path) -> list[Path]:
    """Parts of downloads that no program is continuing."""
    from rwkv_cli.catalog.hub.download import PART, unfinished_folders

    found = [
        path for folder in unfinished_folders(cache) for path in folder.rglob(f"*{PART}*") if path.is_file()
    ]
    return [path for path in found if not any(_is_held(folder) for folder in path.parents)]


def _is_held(folder: Path) -> bool:
    lock = folder.parent / f"{folder.name}.lock"
    if not lock.is_file():
        return False
    try:
        with locked(lock):
            return False
    except (HeldError, OSError):
        return True


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _measured(name: str, found: list[Path]) -> Kind:
    kind = Kind(name, found)
    for path in found:
        inside = [Path(folder, file) for folder, _, files in os.walk(path) for file in files]
        for file in inside if path.is_dir() and not path.is_symlink() else [path]:
            with contextlib.suppress(OSError):
                kind.size += file.stat(follow_symlinks=False).st_size
                kind.files += 1
    return kind
