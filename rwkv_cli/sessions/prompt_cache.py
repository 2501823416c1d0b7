"""Long prompts are read once: states after their beginnings are kept on disk, and found again by tokens and model.

A state is kept at the end of a prompt and, before it, at multiples of `STRIDE` whose distances from the end double. A
prompt that begins alike and ends otherwise, as when many questions follow one document, then finds a state from which
at most about twice its own ending is left to read; and a prompt of T tokens costs log T states, not T. Only the CPU
backend takes part: it computes the same to the bit, in whatever parts it reads a text.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rwkv_cli import __version__, paths
from rwkv_cli.engine.backends.base import Backend
from rwkv_cli.engine.state import Position, State
from rwkv_cli.errors import RwkvError, StateError, UsageError
from rwkv_cli.files.atomic import remove_leftovers
from rwkv_cli.reporting import Progress
from rwkv_cli.sessions import state_file
from rwkv_cli.sessions.state_file import ModelIdentity, SavedState

if TYPE_CHECKING:
    from rwkv_cli.model import Model

LEAST = 512
"""Tokens of a prompt that are worth a file: fewer are read about as fast as the file is."""

STRIDE = 256
"""Tokens between the places where a state may be kept; a multiple of the chunk that the CPU backend reads at once."""

DEFAULT_SIZE = 512_000_000
"""Bytes of all files together, unless RWKV_CACHE_SIZE says otherwise."""

Array = NDArray[np.float32]

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


class CachedBackend:
    """A backend that looks for the beginning of a long prompt in the cache, and keeps it there.

    Used in the place of `model.backend`. Results are the same to the bit. What cannot be read or written is done
    without; nothing is raised for it.
    """

    def __init__(self, model: Model) -> None:
        """Raises UsageError where RWKV_CACHE_SIZE is no size."""
        self.inner: Backend = model.backend
        self.name, self.config = self.inner.name, self.inner.config
        self.reused = 0  # tokens of the last prompt that came from the cache
        self._model = model
        self._limit = size_limit()

    @property
    def description(self) -> str:
        """What does the arithmetic."""
        return self.inner.description

    def forward(self, tokens: Sequence[int], state: State, progress: Progress | None = None) -> Array:
        """The logits [V] after the last token; advances `state`."""
        self.reused = self.reused if len(tokens) == 1 else 0  # a single token is one that was generated
        if len(tokens) < LEAST or not self._limit or not _is_beginning(state):
            return self.inner.forward(tokens, state, progress)
        entries = _Entries(self._model, self.inner, tokens)
        logits: Array | None = None
        if found := entries.longest():
            _assign(state, found.state)
            logits, self.reused = found.logits, found.tokens
            if progress:
                progress(self.reused)
        stops = [self.reused, *(place for place in _places(len(tokens)) if place > self.reused)]
        for begin, end in pairwise(stops):
            logits = self.inner.forward(tokens[begin:end], state, progress)
            entries.keep(Position(state, logits, end), self._limit)
        assert logits is not None
        return logits

    def forward_all(self, tokens: Sequence[int], state: State) -> Array:
        """The logits [T, V] after each token; advances `state`. These are not kept."""
        return self.inner.forward_all(tokens, state)


def with_cache(model: Model) -> Backend:
    """The model's backend, with the cache where that can help.

    Other backends read a prompt in one go differently than in parts, and choose tokens with nothing in between.
    Raises UsageError where RWKV_CACHE_SIZE is no size.
    """
    return CachedBackend(model) if model.backend.name == "cpu" else model.backend


def _is_beginning(state: State) -> bool:
    return not (state.wkv.any() or state.shift_att.any() or state.shift_ffn.any())


def _assign(state: State, other: State) -> None:
    """Overwrite a state in place, in the order in which it lies in memory."""
    for name in State.PARTS:
        getattr(state, name)[...] = getattr(other, name)


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

    def __init__(self, model: Model, backend: Backend, tokens: Sequence[int]) -> None:
        self._identity: ModelIdentity = state_file.identify(model)
        self._model = model
        self._keys = dict(self._digests(backend, tokens))

    def _digests(self, backend: Backend, tokens: Sequence[int]) -> Iterator[tuple[int, str]]:
        """Length and key of every beginning that may have been kept."""
        identity = self._identity
        arithmetic = getattr(backend, "kernel", backend.description)
        about = (identity.weights, identity.weight_type, identity.tokenizer, arithmetic, __version__)
        digest = hashlib.sha256("\n".join(about).encode())
        data = np.asarray(tokens, np.int32)
        for begin in range(0, len(data), STRIDE):
            part = data[begin : begin + STRIDE]
            digest.update(part.tobytes())
            yield begin + len(part), digest.hexdigest()[:40]

    def longest(self) -> Position | None:
        """The position after the longest beginning that is there. A file that is damaged goes."""
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
                    os.utime(path)  # the latest to be used is the last to go
                return saved.position
            with contextlib.suppress(OSError):
                path.unlink()
        return None

    def keep(self, position: Position, limit: int) -> None:
        """Write a position; make room for it by removing those that were not used for longest."""
        path = self._path(position.tokens)
        about = position.state.nbytes + (position.logits.nbytes if position.logits is not None else 0)
        if about > limit:
            return
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _make_room(limit - about)
            state_file.save(path, SavedState(position, self._identity), durable=False)
        except (OSError, RwkvError):  # a full disk, no permission: the next run reads the prompt again
            return

    def _is_right(self, saved: SavedState, length: int) -> bool:
        position = saved.position
        return (
            saved.model == self._identity
            and position.tokens == length
            and position.logits is not None
            and state_file.has_shape_of(position, self._model.config)
        )

    def _path(self, length: int) -> Path:
        return folder() / f"{self._keys[length]}.safetensors"


def _make_room(limit: int) -> None:
    """Remove the states that were not used for longest until the others take no more than this."""
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
