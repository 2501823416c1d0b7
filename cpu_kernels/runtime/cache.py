"""Machine code on disk: one file for each entry point, in a folder for each version, in the cache folder of the user.

The name of a version's folder is a digest of all that machine code depends on: the sources, the chosen instruction,
LLVM, and the CPU, since machines may share a home folder. Numba's version is not part of it: the code does not contain
anything of Numba, and its releases go with those of llvmlite.

A file is a digest followed by the code. A damaged file counts as missing; an unfinished one has another name.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import shutil
from contextlib import suppress
from pathlib import Path

import llvmlite
import platformdirs

from cpu_kernels.runtime.host import this_cpu
from cpu_kernels.runtime.instructions import CHOSEN
from cpu_kernels.runtime.leftovers import temporary_beside

KEPT_VERSIONS = 8

_FAILURES = (OSError, RuntimeError)  # RuntimeError: a user without a home folder


def _sources() -> str:
    """The digest of the sources."""
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()


def _version() -> str:
    """The digest of all that machine code depends on."""
    cpu = this_cpu()
    parts = (SOURCES, CHOSEN, llvmlite.__version__, cpu.triple, cpu.name, cpu.flags)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


SOURCES = _sources()
VERSION = _version()
CACHE_DIR = os.environ.get("RWKV_CACHE_DIR")
"""The cache folder, if it is not that of the user: read once, so that it stays the same during a process."""


def _cache_folder() -> Path:
    """The folder of all versions. Raises RuntimeError if this user, or the one that is named, has no home folder."""
    named = (CACHE_DIR or "").strip()
    return (
        Path(CACHE_DIR or "").expanduser()
        if named
        else Path(platformdirs.user_cache_dir("rwkv", appauthor=False))
    )


def folder() -> Path:
    """The folder of this version. Raises RuntimeError if this user has no home folder."""
    return _cache_folder() / f"kernels-{VERSION}"


def read(name: str) -> bytes | None:
    """The machine code of an entry point, or None if there is no usable file."""
    try:
        content = (folder() / name).read_bytes()
    except _FAILURES:
        return None
    size = hashlib.sha256().digest_size
    return content[size:] if content[:size] == _digest(name, content[size:]) else None


def write(name: str, code: bytes) -> None:
    """Store the machine code of an entry point; logs a warning if that fails."""
    try:
        target = folder() / name
        if not target.parent.exists():
            target.parent.mkdir(parents=True, exist_ok=True)  # another process may do the same
            _delete_old_versions(target.parent.parent)
        unfinished = temporary_beside(target)
        try:
            unfinished.write_bytes(_digest(name, code) + code)
            unfinished.replace(target)
        finally:
            unfinished.unlink(missing_ok=True)
    except _FAILURES as error:
        _warn(_reason(error))


def _digest(name: str, code: bytes) -> bytes:
    return hashlib.sha256(name.encode() + code).digest()


def _reason(error: Exception) -> str:
    """The message of an error, to be continued within a sentence."""
    text = getattr(error, "strerror", None) or str(error)
    return text[:1].lower() + text[1:].rstrip(".")


@functools.cache
def _warn(reason: str) -> None:
    """Warn that machine code cannot be stored, once per process for all entry points."""
    try:
        failure = f"cannot write to the cache folder {_cache_folder()} ({reason})"
    except RuntimeError:
        failure = f"cannot find a cache folder ({reason})"
    logging.getLogger("rwkv_cli").warning(
        "%s: kernels will be compiled again on every run; set RWKV_CACHE_DIR", failure
    )


def _delete_old_versions(folder: Path) -> None:
    """Delete all but the newest versions; a program that still uses another one compiles again."""
    with suppress(FileNotFoundError):  # another process does the same
        versions = sorted(folder.glob("kernels-*"), key=lambda path: path.stat().st_mtime, reverse=True)
        for version in versions[KEPT_VERSIONS:]:
            shutil.rmtree(version, ignore_errors=True)
