"""Long prompts are read once: states after their beginnings are kept on disk, and found again by tokens and model.

A state is kept at the end of a prompt and, before it, at multiples of `STRIDE` whose distances from the end double. A
prompt that begins alike and ends otherwise, as when many questions follow one document, then finds a state from which
at most about twice its own ending is left to read; and a prompt of T tokens costs log T states, not T. Only backends
take part that give the same bits however a text is split.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from rwkv_cli import __version__, paths
from rwkv_cli.engine.generate import PromptReader, read_directly
from rwkv_cli.engine.scheduler.request import Beginnings
from rwkv_cli.engine.session import Session, Snapshot
from rwkv_cli.errors import RwkvError, StateError, UsageError
from rwkv_cli.files.atomic import remove_leftovers
from rwkv_cli.model import Model
from rwkv_cli.reporting import Progress
from rwkv_cli.sessions import state_file
from rwkv_cli.sessions.state_file import ModelIdentity, SavedState
from rwkv_cli.text import templates

LEAST = 512
"""Tokens of a prompt that are worth a file: fewer are read about as fast as the file is."""

STRIDE = 256
"""Tokens between the places where a state may be kept; a multiple of the chunk that the CPU backend reads at once."""

DEFAULT_SIZE = 512_000_000
"""Bytes of all files together, unless RWKV_CACHE_SIZE says otherwise."""

_SIZE = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,3})?) ?([kmgt]?)i?b?", re.IGNORECASE)
_UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}


def folder() -> Path:
    """Where the states are kept."""
    return paths.cache_folder() / "prompts"


def size_limit() -> int:
    """Bytes that all states together may take: RWKV_CACHE_SIZE, such as "2GB"; 0 keeps none. Raises UsageError."""
    text = os.environ.get("RWKV_CACHE_SIZE", "").strip()
    if not text:
        return DEFAULT_SIZE
    if not (match := _SIZE.fullmatch(text)):
        raise UsageError(f"RWKV_CACHE_SIZE is {text[:40]!r}: it must be a size such as 500MB or 2GB, or 0")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def usage() -> tuple[int, int]:
    """How many states there are, and their bytes."""
    files = _files()
    return len(files), sum(size for _, size, _ in files)


def clear() -> int:
    """Remove all states: their bytes. Raises StateError for one that cannot be removed."""
    total = 0
    remove_leftovers(folder())
    for _, size, file in _files():
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            raise StateError(f"cannot remove {file}: {(error.strerror or str(error)).lower()}") from None
        total += size
    return total


class PromptCache:
    """Reads long prompts from the longest beginning that is kept, and keeps theirs.

    `read` is a `PromptReader`, with the results of reading directly, to the bit. What cannot be read from disk or
    written is done without; nothing is raised for it.
    """

    def __init__(self, model: Model) -> None:
        """Raises UsageError for an invalid RWKV_CACHE_SIZE."""
        self._model = model
        self._limit = size_limit()

    def beginnings(self, tokens: Sequence[int]) -> Beginnings | None:
        """What is kept of a prompt that nothing was read before; None for one that is not worth it."""
        return _Entries(self._model, tokens, self._limit) if self._is_worth(tokens) else None

    def _is_worth(self, tokens: Sequence[int]) -> bool:
        return len(tokens) >= LEAST and self._limit > 0 and self._model.backend.is_split_invariant

    def read(self, session: Session, tokens: Sequence[int], progress: Progress | None = None) -> int:
        """Read a prompt: the number of its tokens that came from the cache."""
        is_fresh = not session.has_read and session.state.is_empty
        if not is_fresh or not self._is_worth(tokens):
            session.feed(tokens, progress)
            return 0
        entries, reused = _Entries(self._model, tokens, self._limit), 0
        if found := entries.longest():
            session.rewind(found)
            reused = found.n_tokens
            if progress:
                progress(reused)
        stops = [reused, *(place for place in entries.places if place > reused)]
        for begin, end in pairwise(stops):
            session.feed(tokens[begin:end], progress)
            entries.keep(Snapshot(session.state, session.logits, end))
        return reused


def reader_for(model: Model) -> PromptReader:
    """What reads prompts for a model: from the cache, where reading a text in parts gives the same bits.

    Raises UsageError for an invalid RWKV_CACHE_SIZE.
    """
    return PromptCache(model).read if model.backend.is_split_invariant else read_directly


def _places(length: int) -> list[int]:
    """Where to keep a state of a prompt of this length, ascending; the last one is its end."""
    places = {length}
    distance = 1
    while distance < length:
        places.add((length - distance) // STRIDE * STRIDE)
        distance = STRIDE if distance == 1 else 2 * distance
    return sorted(places - {0})


class _Entries:
    """The files of one prompt: each is named after the model and the tokens that it has read."""

    def __init__(self, model: Model, tokens: Sequence[int], limit: int) -> None:
        """`limit` is for the bytes of all files together."""
        self._identity: ModelIdentity = state_file.identify(model)
        self._model, self._limit = model, limit
        self.places: Sequence[int] = _places(len(tokens))
        self._keys = dict(self._digests(tokens))

    def _digests(self, tokens: Sequence[int]) -> Iterator[tuple[int, str]]:
        """Length and key of every beginning that may have been kept."""
        identity = self._identity
        kernel = self._model.backend.kernel
        template = json.dumps(templates.to_json(self._model.template), sort_keys=True)
        about = (identity.weights, identity.weight_type, identity.tokenizer, template, kernel, __version__)
        digest = hashlib.sha256("\n".join(about).encode("utf-8", "surrogatepass"))
        data = np.asarray(tokens, np.int32)
        for begin in range(0, len(data), STRIDE):
            part = data[begin : begin + STRIDE]
            digest.update(part.tobytes())
            yield begin + len(part), digest.hexdigest()[:40]

    def longest(self) -> Snapshot | None:
        """The snapshot after the longest beginning that is kept. A damaged file is removed."""
        for length in sorted(self._keys, reverse=True):
            path = self._path(length)
            if not path.exists():
                continue
            try:
                saved = state_file.load(path)
            except StateError:
                saved = None
            if saved and self._is_right(saved, length):
                with contextlib.suppress(OSError):
                    os.utime(path)  # the last one to be used is the last to be removed
                return saved.snapshot
            with contextlib.suppress(OSError):
                path.unlink()
        return None

    def keep(self, snapshot: Snapshot) -> None:
        """Write a snapshot; make room for it by removing the least recently used ones."""
        path = self._path(snapshot.n_tokens)
        if snapshot.nbytes > self._limit:
            return
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _make_room(self._limit - snapshot.nbytes)
            state_file.save(path, SavedState(snapshot, self._identity), durable=False)
        except (OSError, RwkvError):  # a full disk, no permission: the next run reads the prompt again
            return

    def _is_right(self, saved: SavedState, length: int) -> bool:
        snapshot = saved.snapshot
        return (
            saved.model == self._identity
            and snapshot.n_tokens == length
            and snapshot.logits is not None
            and snapshot.fits(self._model.config)
        )

    def _path(self, length: int) -> Path:
        return folder() / f"{self._keys[length]}.safetensors"


def _make_room(limit: int) -> None:
    """Remove the least recently used states until the others take at most `limit` bytes."""
    files = _files()
    total = sum(size for _, size, _ in files)
    for _, size, file in files:
        if total <= limit:
            break
        with contextlib.suppress(OSError):  # on Windows, another process may be reading it
            file.unlink(missing_ok=True)
            total -= size


def _files() -> list[tuple[float, int, Path]]:
    """When last used, size and path of every state, the oldest first."""
    found = []
    with contextlib.suppress(OSError):
        for file in folder().glob("*.safetensors"):
            with contextlib.suppress(OSError):
                status = file.stat()
                found.append((status.st_mtime, status.st_size, file))
    return sorted(found)
