"""Machine code that is part of the installation: built beforehand, for the kinds of CPUs in `targets`.

A folder for each target has a file for each entry point: a digest, then the code. The digest is also of the sources, so
that code of other sources, such as those of a checkout that have changed since, counts as missing.

    python -m cpu_kernels.runtime.prebuilt native   for the CPU of this machine
    python -m cpu_kernels.runtime.prebuilt all      for all targets

`hatch_build.py` calls it when a wheel is built, or a checkout is installed.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from cpu_kernels.runtime import host, isolated
from cpu_kernels.runtime.cache import SOURCES
from cpu_kernels.runtime.compiler import ENTRY_POINTS, CompilationError
from cpu_kernels.runtime.instructions import CHOSEN
from cpu_kernels.runtime.leftovers import temporary_beside
from cpu_kernels.runtime.targets import TARGETS

FOLDER = Path(__file__).parents[1] / "prebuilt"


def target() -> str | None:
    """The target whose code runs on this CPU with the chosen instruction, or None if there is none."""
    wanted, this = TARGETS.get(CHOSEN), host.cpu()
    if wanted is None or wanted.triple.split("-")[::2] != this.triple.split("-")[::2]:
        return None
    return CHOSEN if this.has(*wanted.features) else None


def read(name: str) -> bytes | None:
    """The machine code of an entry point for this CPU, or None if it was not built, or for other sources."""
    found = target()
    return _read(found, name) if found else None


def _read(target: str, name: str) -> bytes | None:
    try:
        content = (FOLDER / target / name).read_bytes()
    except OSError:
        return None
    size = hashlib.sha256().digest_size
    return content[size:] if content[:size] == _digest(target, name, content[size:]) else None


def build(targets: Iterable[str]) -> None:
    """Build what is missing for targets, and remove what is of other sources.

    Raises CompilationError if that is impossible, OSError if the folder cannot be written.
    """
    stale = [path for path in FOLDER.glob("*") if not _is_built(path.name)]
    for path in stale:
        shutil.rmtree(path)
    jobs = [isolated.Job(tuple(ENTRY_POINTS), TARGETS[name], name) for name in targets if not _is_built(name)]
    for job, codes in zip(jobs, isolated.compiled(jobs), strict=True):
        if not codes:
            raise CompilationError(f"the kernels for {job.instruction} cannot be compiled")
        (FOLDER / job.instruction).mkdir(parents=True, exist_ok=True)
        for entry, code in codes.items():
            path = FOLDER / job.instruction / entry
            unfinished = temporary_beside(path)
            unfinished.write_bytes(_digest(job.instruction, entry, code) + code)
            unfinished.replace(path)


def _is_built(target: str) -> bool:
    return all(_read(target, name) for name in ENTRY_POINTS)


def _digest(target: str, name: str, code: bytes) -> bytes:
    return hashlib.sha256(f"{SOURCES} {target} {name}\n".encode() + code).digest()


if __name__ == "__main__":
    build(TARGETS if sys.argv[1:] == ["all"] else filter(None, [target()]))
