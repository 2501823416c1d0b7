"""Machine code on disk: one file for each entry point, in a folder of this user for each version of it.

The folder's name stands for all that machine code depends on: the sources, the instruction that was chosen, LLVM, and
the CPU, since machines may share a home folder. Numba's version says nothing more: nothing of Numba's is left in the
code, and its releases go with those of llvmlite.

A file holds a digest and the code. One that is damaged counts as missing; one that is being written has another name.
"""

import functools
import hashlib
import logging
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import llvmlite
import llvmlite.binding as llvm
import platformdirs

from cpu_kernels.instructions import CHOSEN

KEPT = 8
"""Versions."""

_FAILURES = (OSError, RuntimeError)  # RuntimeError: a user without a home


def _version() -> str:
    """The digest of all that the machine code depends on."""
    features = llvm.get_host_cpu_features().flatten()
    parts = (CHOSEN, llvmlite.__version__, llvm.get_process_triple(), llvm.get_host_cpu_name(), features)
    digest = hashlib.sha256("\n".join(parts).encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


VERSION = _version()
PLACE = os.environ.get("RWKV_CACHE_DIR")
"""Where versions are kept, if not in the cache folder of this user: as it was when this process began to compute."""


def _folder() -> Path:
    """The folder of this version. Raises RuntimeError where this user has no home."""
    return Path(PLACE or platformdirs.user_cache_dir("rwkv")) / f"kernels-{VERSION}"


def read(name: str) -> bytes | None:
    """The machine code that was kept under a name, or None."""
    try:
        content = (_folder() / name).read_bytes()
    except _FAILURES:
        return None
    size = hashlib.sha256().digest_size
    return content[size:] if content[:size] == _digest(name, content[size:]) else None


def write(name: str, code: bytes) -> None:
    """Keep machine code under a name; where that cannot be, say so."""
    try:
        folder = _folder()
        if not folder.exists():
            folder.mkdir(parents=True, exist_ok=True)  # somebody else may do the same
            _forget_old_versions(folder.parent)
        with tempfile.TemporaryDirectory(dir=folder) as unfinished:
            path = Path(unfinished) / name
            path.write_bytes(_digest(name, code) + code)
            path.replace(folder / name)
    except _FAILURES as error:
        _warn(getattr(error, "strerror", None) or str(error))


def _digest(name: str, code: bytes) -> bytes:
    return hashlib.sha256(name.encode() + code).digest()


@functools.cache
def _warn(reason: str) -> None:
    """Once for all entry points."""
    place = PLACE or "the cache folder"
    logging.getLogger("rwkv_cli").warning(
        "kernels are compiled for this run only, since %s: %s", place, reason
    )


def _forget_old_versions(folder: Path) -> None:
    """Keep the newest versions of the cache; whoever still uses another one compiles again."""
    with suppress(FileNotFoundError):  # somebody else does the same
        versions = sorted(folder.glob("kernels-*"), key=lambda path: path.stat().st_mtime, reverse=True)
        for version in versions[KEPT:]:
            shutil.rmtree(version, ignore_errors=True)
