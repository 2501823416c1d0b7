"""Model files with int4 and int8 matrices: made of two files, and seen as one of a single type."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkv_cli.files.model_file import ModelFile, writing
from rwkv_cli.files.weight_layouts import MIXED, SCALE, restore, widened

_KEPT = 4  # more than a device takes together: receptance, key and value


class _View(ModelFile):
    """A model file whose arrays are not those of one file."""

    @property
    def weight_bytes(self) -> int:
        """See `ModelFile.weight_bytes`."""
        return sum(self.stored(name).nbytes for name in self.names)

    def tensor(self, name: str) -> NDArray[np.float32]:
        """See `ModelFile.tensor`."""
        parts = {part: self.stored(part) for part in (name, name + SCALE) if part in self._tensors}
        return restore(name, self.config.tensor_shapes()[name], parts)


class Mix(_View):
    """An int8 file with some matrices of an int4 file of the same model."""

    def __init__(self, int8: ModelFile, int4: ModelFile, narrow: Iterable[str]) -> None:
        """`narrow` are the names of those matrices."""
        self.path, self._mapped, self._tensors = int8.path, int8._mapped, int8._tensors
        self.info = replace(int8.info, weight_type=MIXED, narrow=frozenset(narrow))
        self._int8, self._int4 = int8, int4

    def stored(self, name: str) -> NDArray[Any]:
        """See `ModelFile.stored`."""
        is_narrow = name.removesuffix(SCALE) in self.info.narrow
        return (self._int4 if is_narrow else self._int8).stored(name)

    def write(self, path: Path) -> None:
        """Write it as one file; all or nothing. Raises StorageError."""
        with writing(path, self.info) as writer:
            for name in self.names:
                writer.write(name, self.stored(name))


class Widened(_View):
    """A mixed file as an int8 one, weight by weight the same: for a device that computes with one type, and copies."""

    def __init__(self, model: ModelFile) -> None:
        self.path, self._mapped, self._tensors = model.path, model._mapped, model._tensors
        self.info = replace(model.info, weight_type="int8", narrow=frozenset())
        self._narrow = model.info.narrow
        self._model = model
        # Not freed at once: a device may still be copying them.
        self._recent: deque[tuple[str, NDArray[Any]]] = deque(maxlen=_KEPT)

    @property
    def weight_bytes(self) -> int:
        """See `ModelFile.weight_bytes`; nothing is unpacked for it."""
        stored = ((name, self._model.stored(name).nbytes) for name in self.names)
        return sum(2 * nbytes if name in self._narrow else nbytes for name, nbytes in stored)

    def stored(self, name: str) -> NDArray[Any]:
        """See `ModelFile.stored`; an int4 matrix is unpacked, and kept for a while."""
        if name not in self._narrow:
            return self._model.stored(name)
        array = next((array for known, array in self._recent if known == name), None)
        if array is None:
            array = widened(name, self._model.stored(name))
            self._recent.append((name, array))
        return array
