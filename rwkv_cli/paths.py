"""The folders of the user, and the files inside the package."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import platformdirs

from rwkv_cli.errors import RwkvError, StorageError, UsageError

DATA = Path(__file__).parent / "data"
EMBEDDED_MODEL = DATA / "gosling.safetensors"


TASK_RESULTS = "eval"
"""Below the cache folder: the results of tasks that are kept, see `evaluation.harness`."""


def cache_folder() -> Path:
    """The folder of what can be recreated: RWKV_CACHE_DIR, or the user's cache folder of this platform.

    Raises StorageError for a user without a home.
    """
    return _folder(
        "RWKV_CACHE_DIR", "the cache", lambda: platformdirs.user_cache_dir("rwkv", appauthor=False)
    )


def data_folder() -> Path:
    """The folder of the user's models, states and histories: RWKV_DATA_DIR, or the user's data folder of this platform.

    Raises StorageError for a user without a home.
    """
    return _folder(
        "RWKV_DATA_DIR", "models and states", lambda: platformdirs.user_data_dir("rwkv", appauthor=False)
    )


def user_registry_file() -> Path:
    """The user's own models.toml, which may be missing. Raises StorageError for a user without a home."""
    return settings_folder() / "models.toml"


def settings_file() -> Path:
    """The user's config.toml, which may be missing. Raises StorageError for a user without a home."""
    return settings_folder() / "config.toml"


def settings_folder() -> Path:
    """The folder of what the user writes: RWKV_CONFIG_DIR, or the platform's folder for settings.

    Raises StorageError for a user without a home.
    """
    return _folder(
        "RWKV_CONFIG_DIR", "settings", lambda: platformdirs.user_config_dir("rwkv", appauthor=False)
    )


def _folder(variable: str, purpose: str, default: Callable[[], str]) -> Path:
    """The folder that a variable names, `~` included; an empty one counts as not set. Raises StorageError."""
    named = os.environ.get(variable, "")
    try:
        return Path(named).expanduser() if named.strip() else Path(default())
    except RuntimeError:
        if named:
            raise StorageError(
                f"{variable} is {named[:200]!r}, the home of a user who is not known here"
            ) from None
        raise StorageError(f"no home folder found for {purpose}: set {variable}") from None


def variable_of(path: Path) -> str | None:
    """The variable that moves the folder of this program, or of the hub, in which a path is; None for other paths."""
    for variable, folder in _MOVABLE.items():
        try:
            if path.absolute().is_relative_to(folder().absolute()):
                return variable
        except (RwkvError, RuntimeError, OSError):  # a user without a home, a current folder that is gone
            continue
    return None


def hint(path: Path) -> str:
    """To end a message about a path with: how to move the folder that it is in, or nothing for a path of the user's."""
    variable = variable_of(path)
    return f"; {variable} sets another folder" if variable else ""


def _hub_folder() -> Path:
    """Where huggingface_hub keeps its files, which takes long to import for a message."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("HF_HOME") or f"{cache}/huggingface").expanduser()


_MOVABLE: dict[str, Callable[[], Path]] = {
    "RWKV_CACHE_DIR": cache_folder,
    "RWKV_DATA_DIR": data_folder,
    "RWKV_CONFIG_DIR": lambda: user_registry_file().parent,
    "HF_HOME": _hub_folder,
}


def written_folders() -> list[Path]:
    """The program's own folders in which files are written all or nothing; none of them need exist.

    Raises StorageError for a user without a home.
    """
    cache, data = cache_folder(), data_folder()
    kernels = [path for path in cache.glob("kernels-*") if path.is_dir()]
    kept = [cache / name for name in ("models", "prompts", "turns", "responses")]
    return [*kept, data / "states", data / "chats", data / "models", *kernels]


def registry_file() -> Path:
    """models.toml: in the package when installed, at the top of a checkout."""
    packaged = Path(__file__).parent / "models.toml"
    return packaged if packaged.exists() else Path(__file__).parent.parent / "models.toml"


def user_path(text: str | Path) -> Path:
    """The path that a user typed, with ~ expanded. Raises UsageError for the home of nobody, or a null character."""
    try:
        path = Path(text).expanduser()
    except RuntimeError:
        raise UsageError(f"{text}: there is no home folder of that user") from None
    if "\0" in str(path):
        raise UsageError(f"{text} is not a path: it contains a null character")
    return path
