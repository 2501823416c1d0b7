"""What every checkpoint reader returns: officially named tensors, read one at a time.

A reader (`pth`, `hf`, `gguf`) maps a file, renames its tensors and hands them to `Checkpoint`, which checks
that they make up a complete RWKV-7 model. Nothing is read until `Checkpoint.tensor` asks for it.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from rwkv_cli import tensors as table
from rwkv_cli.config import ModelConfig, Shape
from rwkv_cli.errors import CheckpointError, UnsupportedModelError
from rwkv_cli.files.checkpoints.beside import model_name, tokenizer_beside
from rwkv_cli.files.checkpoints.foreign import describe_foreign
from rwkv_cli.files.safetensors import release_pages
from rwkv_cli.tensors import Format
from rwkv_cli.text.tokenizer import TokenizerSpec


@dataclass(frozen=True)
class LazyTensor:
    """One tensor of a mapped file.

    `dtype` is its type in the file, in lower case ("bf16", "f32", "q4_0"); `read` returns it in the given shape
    as float32: a fresh array, or a read-only view where the file already holds float32.
    """

    shape: Shape
    dtype: str
    read: Callable[[], NDArray[np.float32]]

    def reshaped(self, *shape: int) -> LazyTensor:
        """The same values in another shape of the same size."""
        return replace(self, shape=shape, read=lambda: self.read().reshape(shape))

    def transposed(self) -> LazyTensor:
        """A matrix with its axes exchanged."""
        return replace(self, shape=self.shape[::-1], read=lambda: np.ascontiguousarray(self.read().T))

    def row(self, index: int) -> LazyTensor:
        """One entry along the first axis."""
        return replace(self, shape=self.shape[1:], read=lambda: self.read()[index])


def widened(view: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """A stored array as contiguous float32; bf16 comes as uint16 and is the upper half of a float32."""
    if dtype != "bf16":
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite and is refused as such
            array = np.ascontiguousarray(view, dtype=np.float32)
        if dtype != "f32":
            release_pages(view)
        return array
    wide = np.empty(view.shape, np.uint32)
    np.left_shift(view, np.uint32(16), out=wide)
    release_pages(view)
    return wide.view(np.float32)


def mapped_tensor(view: NDArray[Any], dtype: str) -> LazyTensor:
    """A tensor whose values are stored unchanged in a mapped file (bf16 as uint16)."""
    return LazyTensor(view.shape, dtype, lambda: widened(view, dtype))


class ChatTemplate(NamedTuple):
    """How a file wants conversations to be written: a Jinja template, and the file or key that it comes from."""

    text: str
    origin: str


class Checkpoint:
    """A published model, opened: its sizes are known, its tensors are read on demand.

    `name` is what the model is called, however its path is written; `chat_template` is what its file brings, unchecked.

    Usable as a context manager; `close` releases the mapped files.
    """

    def __init__(
        self,
        path: Path,
        format: Format,
        files: tuple[Path, ...],
        tensors: Mapping[str, LazyTensor],
        tokenizer: TokenizerSpec | None = None,
        chat_template: ChatTemplate | None = None,
        name: str | None = None,
        sampling: Mapping[str, Mapping[str, float]] | None = None,
    ) -> None:
        """Check officially named tensors and derive the sizes; the last four are the file's own, if it has any.

        `sampling` has fields of `SamplingSettings` by mode of thinking, "on" or "off".

        Raises UnsupportedModelError for a model of another kind, CheckpointError for tensors that are
        missing, unknown or of the wrong shape.
        """
        self.path = path
        self.format: Format = format
        self.files = files
        refuse_foreign(path, tensors)
        self._tensors = {
            title: _squeezed(title, tensor) for title, tensor in tensors.items() if not table.is_absent(title)
        }
        self.config = _config(path, self._tensors)
        self.dtype = _prevailing_dtype(self._tensors)
        folder = path if path.is_dir() else path.parent
        self.tokenizer = tokenizer or tokenizer_beside(folder, self.config.vocab_size)
        self.chat_template = chat_template
        self.name: str = name or model_name(files)
        self.sampling = sampling or {}

    def tensor(self, name: str) -> NDArray[np.float32]:
        """Read one tensor by its official name, in the shape of `ModelConfig.tensor_shapes`.

        Float32 files are not copied: the array may be a read-only view. Raises CheckpointError when it holds
        a NaN or an infinity.
        """
        array = self._tensors[name].read()
        # The extremes show both, without a temporary array as large as the tensor: NaN wins every comparison.
        if not (np.isfinite(array.min()) and np.isfinite(array.max())):
            raise CheckpointError(
                f"{self.path} holds a NaN or an infinity in the tensor {name}: get the file again"
            )
        return array

    def sha256(self) -> str:
        """The hexadecimal SHA-256 of the weight files, one after another."""
        digest = hashlib.sha256()
        for path in self.files:
            with path.open("rb") as file:
                hashlib.file_digest(file, lambda: digest)
        return digest.hexdigest()

    def close(self) -> None:
        """Release the mapped files, once no array that was read from them is in use."""
        self._tensors = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def refuse_foreign(path: Path, names: Mapping[str, object], model_type: str | None = None) -> None:
    """Raise UnsupportedModelError where the tensor names belong to another kind of model."""
    kind = describe_foreign(names, model_type)
    if kind is not None:
        raise UnsupportedModelError(f"{path} {kind}; rwkv runs RWKV-7 models only")


def renamed(
    path: Path, tensors: Mapping[str, LazyTensor], official: Callable[[str], str]
) -> dict[str, LazyTensor]:
    """The tensors under their official names. Raises CheckpointError when two would get the same name."""
    result: dict[str, LazyTensor] = {}
    for name, tensor in tensors.items():
        target = official(name)
        if target in result:
            raise CheckpointError(f"{path} has two tensors for {target[:80]!r}, one of them {name[:80]!r}")
        result[target] = tensor
    return result


def official_orientation(tensors: dict[str, LazyTensor]) -> None:
    """Transpose the tensors that GGUF and fla store the other way round; names are official ones already."""
    for name, tensor in tensors.items():
        if (row := table.find(name)) and row.is_transposed:
            tensors[name] = tensor.transposed()


def split_fused_shifts(path: Path, tensors: dict[str, LazyTensor]) -> None:
    """Replace the fused shifts of every layer ([6, C] or [6, 1, 1, C]) by x_r, x_w, x_k, x_v, x_a and x_g."""
    for name in [name for name in tensors if name.endswith(f".{table.FUSED_SHIFTS.name}")]:
        fused = tensors.pop(name)
        n_embd = math.prod(fused.shape[1:])
        if fused.shape not in ((6, n_embd), (6, 1, 1, n_embd)):
            raise CheckpointError(
                f"{path} has the shape {list(fused.shape)} for the six token shifts {name[:80]!r}"
            )
        block = name.removesuffix(table.FUSED_SHIFTS.name)
        for index, shift in enumerate(table.SHIFTS):
            tensors[block + shift] = fused.row(index).reshaped(n_embd)


def _squeezed(name: str, tensor: LazyTensor) -> LazyTensor:
    """Without the leading dimensions of one that a file has beyond the official ones: [1, 1, C] as [C]."""
    row, shape = table.find(name), tensor.shape
    while row and shape[:1] == (1,) and len(shape) > len(row.dims.split()):
        shape = shape[1:]
    return tensor if shape == tensor.shape else tensor.reshaped(*shape)


def _config(path: Path, tensors: Mapping[str, LazyTensor]) -> ModelConfig:
    for name in tensors:
        if table.find(name) is None:
            raise CheckpointError(f"{path} has the tensor {name[:80]!r}, which no RWKV-7 model has")
    try:
        config = ModelConfig.from_shapes({name: tensor.shape for name, tensor in tensors.items()})
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    expected = config.tensor_shapes()
    extra = next((name for name in tensors if name not in expected), None)
    if extra is not None:
        raise CheckpointError(f"{path} has the tensor {extra}, which does not belong in this model")
    return config


def _prevailing_dtype(tensors: Mapping[str, LazyTensor]) -> str:
    """The type that holds the most weights."""
    weights: Counter[str] = Counter()
    for tensor in tensors.values():
        weights[tensor.dtype] += math.prod(tensor.shape)
    return weights.most_common(1)[0][0]
