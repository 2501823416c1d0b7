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

import hashlib
import os
import tempfile
from pathlib import Path

import platformdirs
from numba.core import config as numba_config

from cpu_kernels.dot import CHOSEN


def _cache_folder() -> Path:
    digest = hashlib.sha256(CHOSEN.encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    folder = Path(os.environ.get("RWKV_CACHE_DIR") or platformdirs.user_cache_dir("rwkv"))
    place = folder / f"kernels-{digest.hexdigest()[:16]}"
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError:  # a home that cannot be written: compile once a process
        return Path(tempfile.mkdtemp(prefix="rwkv-kernels-"))
    return place if os.access(place, os.W_OK) else Path(tempfile.mkdtemp(prefix="rwkv-kernels-"))


CACHE = _cache_folder()
# Before the modules with kernels are imported, which is when Numba looks.
numba_config.CACHE_DIR = str(CACHE)


def is_compiled(module: str) -> bool:
    """Whether the cache holds compiled code of a module, such as "forward", so that its first call comes at once."""
    return any(CACHE.rglob(f"{module}.*.nbc"))
