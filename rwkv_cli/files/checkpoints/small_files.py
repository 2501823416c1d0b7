"""The small files beside a checkpoint, read within limits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rwkv_cli.errors import CheckpointError

MAX_JSON = 64 << 20
"""Bytes."""

_POINTER = b"version https://git-lfs.github.com/spec/"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises CheckpointError."""
    try:
        data = path.read_bytes() if path.stat().st_size <= MAX_JSON else b""
        content = json.loads(data)
    except (ValueError, RecursionError):
        refuse_pointer(path)
        content = None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a JSON object: get it again")
    return content


def read_limited(path: Path, limit: int, what: str) -> bytes:
    """The bytes of a small file. Raises CheckpointError for a larger one."""
    size = path.stat().st_size
    if size > limit:
        raise CheckpointError(f"{path} has {size:,} bytes, more than any {what}: remove it or get it again")
    refuse_pointer(path)
    return path.read_bytes()


def refuse_pointer(path: Path) -> None:
    """Raise CheckpointError for what git leaves in place of a large file where Git LFS is not installed."""
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise CheckpointError(
                f"{path} is only a pointer of Git LFS: get the file itself with `git lfs pull`, or download it"
            )
