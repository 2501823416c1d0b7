"""Where things live on this machine."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

from rwkv_cli.errors import StorageError

DATA = Path(__file__).parent / "data"
EMBEDDED_MODEL = DATA / "gosling.safetensors"


def cache_folder() -> Path:
    """Where quantized checkpoints are kept: RWKV_CACHE_DIR, or the user's cache folder of this platform.

    Raises StorageError for a user without a home.
    """
    try:
        return Path(os.environ.get("RWKV_CACHE_DIR") or platformdirs.user_cache_dir("rwkv"))
    except RuntimeError:
        raise StorageError(
            "there is no home folder for the cache: set RWKV_CACHE_DIR to a folder for it"
        ) from None


def registry_file() -> Path:
    """models.toml: in the package when installed, at the top of a checkout."""
    packaged = Path(__file__).parent / "models.toml"
    return packaged if packaged.exists() else Path(__file__).parent.parent / "models.toml"
