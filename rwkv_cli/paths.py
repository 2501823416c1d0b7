"""The folders of the user, and the files inside the package."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

from rwkv_cli.errors import StorageError, UsageError

DATA = Path(__file__).parent / "data"
EMBEDDED_MODEL = DATA / "gosling.safetensors"


def cache_folder() -> Path:
    """The folder of what can be recreated: RWKV_CACHE_DIR, or the user's cache folder of this platform.

    Raises StorageError for a user without a home.
    """
    try:
        return Path(os.environ.get("RWKV_CACHE_DIR") or platformdirs.user_cache_dir("rwkv"))
    except RuntimeError:
        raise StorageError("no home folder found for the cache: set RWKV_CACHE_DIR") from None


def data_folder() -> Path:
    """The folder of the user's models, states and histories: RWKV_DATA_DIR, or the user's data folder of this platform.

    Raises StorageError for a user without a home.
    """
    try:
        return Path(os.environ.get("RWKV_DATA_DIR") or platformdirs.user_data_dir("rwkv", appauthor=False))
    except RuntimeError:
        raise StorageError("no home folder found for models and states: set RWKV_DATA_DIR") from None


def user_registry_file() -> Path:
    """The user's own models.toml, which may be missing: in RWKV_CONFIG_DIR, or the platform's folder for settings.

    Raises StorageError for a user without a home.
    """
    try:
        folder = os.environ.get("RWKV_CONFIG_DIR") or platformdirs.user_config_dir("rwkv", appauthor=False)
    except RuntimeError:
        raise StorageError("no home folder found for settings: set RWKV_CONFIG_DIR") from None
    return Path(folder) / "models.toml"


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
