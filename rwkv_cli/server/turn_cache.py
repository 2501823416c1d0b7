"""Where conversations stood after their turns, found again by the tokens that a client's history has.

A client sends the whole history with every message, and a runner would have to read it again. Here the place after
every turn is kept, in memory and on disk, under a digest of the tokens of the history that lead to it. What a client
sends back is not always what the model has read: it leaves out thoughts, and white space around an answer. So the
digest is that of the history as a client sends it, and the snapshot that of what the model has read.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from rwkv_cli import paths
from rwkv_cli.engine.session import Snapshot
from rwkv_cli.errors import RwkvError, StateError
from rwkv_cli.model import Model
from rwkv_cli.sessions import state_file
from rwkv_cli.sessions.state_file import SavedState

SUFFIX = ".safetensors"
LEAST = 16
"""Tokens that are worth a snapshot."""


def folder() -> Path:
    """Where snapshots are kept, which need not exist."""
    return paths.cache_folder() / "turns"


class TurnCache:
    """Snapshots of one model by the tokens that lead to them. All methods may be called by any thread.

    What cannot be read from disk or written is done without; nothing is raised for it.
    """

    def __init__(self, model: Model, memory_bytes: int, disk_bytes: int) -> None:
        """`memory_bytes` are for snapshots in memory, `disk_bytes` for the files of all models; 0 keeps none."""
        self._model, self._identity = model, state_file.identify(model)
        self._memory_bytes, self._disk_bytes = memory_bytes, disk_bytes
        self._lock = threading.Lock()
        self._memory = OrderedDict[str, Snapshot]()  # the least recently used first
        self._lengths = Counter[int]()  # of the token lists of those in memory and on disk
        self._lengths_of_memory = dict[str, int]()  # by key
        self._on_disk = dict[str, int]()  # the length of each, by key
        about = (self._identity.weights, self._identity.weight_type, self._identity.tokenizer)
        self._about = hashlib.sha256("\n".join(about).encode("utf-8", "surrogatepass"))
        self.nbytes = 0  # in memory
        self._find_files()

    def longest(self, tokens: Sequence[int]) -> tuple[int, Snapshot] | None:
        """The longest beginning of `tokens` that is known, by its length, and where the model stands after it."""
        with self._lock:
            lengths = sorted(length for length in self._lengths if length <= len(tokens))
        for length, key in reversed([*self._keys(tokens, lengths)]):
            if snapshot := self._get(key):
                return length, snapshot
        return None

    def keep(self, tokens: Sequence[int], snapshot: Snapshot, *, on_disk: bool = True) -> None:
        """Keep where the model stands after `tokens`, in place of what was known of them."""
        if len(tokens) < LEAST or snapshot.logits is None:
            return
        snapshot = replace(snapshot, memory=None)
        ((_, key),) = self._keys(tokens, [len(tokens)])
        with self._lock:
            if key in self._memory:
                self._drop(key, len(tokens))
            self._memory[key] = snapshot
            self._lengths_of_memory[key] = len(tokens)
            self._lengths[len(tokens)] += 1
            self.nbytes += snapshot.nbytes
            while self.nbytes > self._memory_bytes and len(self._memory) > 1:
                oldest = next(iter(self._memory))
                self._drop(oldest, self._lengths_of_memory[oldest])
        if on_disk and snapshot.nbytes <= self._disk_bytes:
            self._write(key, len(tokens), snapshot)

    def forget_memory(self) -> None:
        """Drop what is in memory; what is on disk stays."""
        with self._lock:
            for key in [*self._memory]:
                self._drop(key, self._lengths_of_memory[key])

    def _drop(self, key: str, length: int) -> None:
        self.nbytes -= self._memory.pop(key).nbytes
        del self._lengths_of_memory[key]
        self._subtract(length)

    def _subtract(self, length: int) -> None:
        self._lengths[length] -= 1
        if not self._lengths[length]:
            del self._lengths[length]

    def _keys(self, tokens: Sequence[int], lengths: Sequence[int]) -> Iterator[tuple[int, str]]:
        """The keys of beginnings of some lengths, ascending."""
        data, digest, begin = np.asarray(tokens, np.int32), self._about.copy(), 0
        for length in lengths:
            digest.update(data[begin:length].tobytes())
            begin = length
            yield length, digest.hexdigest()[:40]

    def _get(self, key: str) -> Snapshot | None:
        with self._lock:
            if snapshot := self._memory.get(key):
                self._memory.move_to_end(key)
                return snapshot
            length = self._on_disk.get(key)
        return None if length is None else self._read(key, length)

    # --- on disk ----------------------------------------------------------------------------------------------------

    def _find_files(self) -> None:
        if not self._disk_bytes:
            return
        for _, _, path in files():
            key, _, length = path.name.removesuffix(SUFFIX).partition("-")
            if length.isdecimal() and len(length) < 12:
                self._on_disk[key] = int(length)
                self._lengths[int(length)] += 1

    def _read(self, key: str, length: int) -> Snapshot | None:
        path = _path(key, length)
        with contextlib.suppress(StateError):
            saved = state_file.load(path)
            snapshot = saved.snapshot
            if (
                saved.model == self._identity
                and snapshot.fits(self._model.config)
                and snapshot.logits is not None
            ):
                with contextlib.suppress(OSError):
                    os.utime(path)  # the last one to be used is the last to be removed
                return snapshot
        with self._lock:
            if self._on_disk.pop(key, None) is not None:
                self._subtract(length)
        return None

    def _write(self, key: str, length: int, snapshot: Snapshot) -> None:
        path = _path(key, length)
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            make_room(self._disk_bytes - snapshot.nbytes)
            state_file.save(path, SavedState(snapshot, self._identity), durable=False)
        except (OSError, RwkvError):  # a full disk, no permission: the history is read again after a restart
            return
        with self._lock:
            if key not in self._on_disk:
                self._on_disk[key] = length
                self._lengths[length] += 1


def _path(key: str, length: int) -> Path:
    return folder() / f"{key}-{length}{SUFFIX}"


def files() -> list[tuple[float, int, Path]]:
    """When last used, size and path of every snapshot on disk, the oldest first."""
    found = []
    with contextlib.suppress(OSError):
        for file in folder().glob(f"*{SUFFIX}"):
            with contextlib.suppress(OSError):
                status = file.stat()
                found.append((status.st_mtime, status.st_size, file))
    return sorted(found)


def make_room(limit: int) -> None:
    """Remove the least recently used snapshots until the others take at most `limit` bytes."""
    found = files()
    total = sum(size for _, size, _ in found)
    for _, size, file in found:
        if total <= limit:
            break
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)
            total -= size
