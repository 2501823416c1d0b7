"""Numba kernels for the CPU. Nothing here knows of files, tokens or commands; it imports nothing from rwkv_cli.

    simd         vectors as Numba values
    dot          the integer dot product, by each CPU's own instruction
    team         threads, tickets and barriers
    elementwise  norms, token shift, activation functions, rounding to int8
    integer      dot products of int8 and int4 weights
    floating     dot products of float weights
    matrix       a matrix times the activations of some tokens
    hidden       ffn.value times the hidden units, most of which are zero
    wkv7         the recurrence of one head
    layers       what a layer computes, one item of work at a time
    forward      the sequence of all of them: a chunk of tokens, from embedding to logits
    bandwidth    how fast memory is read, the limit of decoding
    trie         greedy longest match over bytes, for the World tokenizer

Compiled code is cached on disk, in a folder of this user. Numba decides by the file of the outermost function whether
a cached version is still good, so the folder's name carries a digest of all sources and of the chosen instruction.
"""

import atexit
import hashlib
import logging
import os
import shutil
import tempfile
from pathlib import Path

import platformdirs
from numba.core import config as numba_config

from cpu_kernels.dot import CHOSEN

ROOM = 16_000_000  # bytes; compiled kernels take about one million
KEPT = 8  # versions of the cache


def _cache_folder() -> Path:
    """The cache folder of these sources, made now if need be; a temporary one where that cannot be."""
    digest = hashlib.sha256(CHOSEN.encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    try:
        folder = Path(os.environ.get("RWKV_CACHE_DIR") or platformdirs.user_cache_dir("rwkv"))
        place = folder / f"kernels-{digest.hexdigest()[:16]}"
        if not place.exists():
            place.mkdir(parents=True)
            _forget_old_versions(folder)
        if not os.access(place, os.W_OK):
            raise PermissionError(f"{place} cannot be written")
        if not any(place.iterdir()) and shutil.disk_usage(place).free < ROOM:
            raise OSError(f"no space left in {place}")
    except (OSError, RuntimeError) as error:  # RuntimeError: a user without a home
        logging.getLogger("rwkv_cli").warning("kernels are compiled for this run only, since %s", error)
        place = Path(tempfile.mkdtemp(prefix="rwkv-kernels-"))
        atexit.register(shutil.rmtree, place, ignore_errors=True)
    return place


def _forget_old_versions(folder: Path) -> None:
    """Keep the newest versions of the cache; whoever still uses another one compiles again."""
    versions = sorted(folder.glob("kernels-*"), key=lambda path: path.stat().st_mtime, reverse=True)
    for version in versions[KEPT:]:
        shutil.rmtree(version, ignore_errors=True)


CACHE = _cache_folder()
# Before the modules with kernels are imported, which is when Numba looks.
numba_config.CACHE_DIR = str(CACHE)


def is_compiled(module: str) -> bool:
    """Whether the cache holds compiled code of a module, such as "forward", so that its first call comes at once."""
    return any(CACHE.rglob(f"{module}.*.nbc"))
