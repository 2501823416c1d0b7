"""The GGUF container: mapped, its header checked piece by piece.

The `gguf` package has a reader too, but on a damaged file it follows any count it finds, past the end of the
file and forever. Here nothing is allocated or looped over before it is known to be inside the file. The
block types and their decoding come from the package.
"""

from __future__ import annotations

import math
import mmap
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rwkv_cli.config import Shape
from rwkv_cli.errors import CheckpointError
from rwkv_cli.files.checkpoints.base import LazyTensor, mapped_tensor
from rwkv_cli.files.safetensors import release_pages

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

_VERSIONS = (2, 3)
_MAX_STRING = 1 << 24
_MAX_HEADER = 64 << 20  # bytes: large vocabularies take some 15 MB, and as many empty strings 4 seconds
_MAX_DIMENSIONS = 4
_MOST_ENTRIES = 20_000  # keys, or tensors: no model has a tenth of either
_DEFAULT_ALIGNMENT = 32

_STRING, _ARRAY = 8, 9
_SCALARS = {
    code: np.dtype(kind) for code, kind in enumerate(("u1", "i1", "<u2", "<i2", "<u4", "<i4", "<f4", "?"))
} | {10: np.dtype("<u8"), 11: np.dtype("<i8"), 12: np.dtype("<f8")}


class Gguf(NamedTuple):
    """A mapped file: its keys (numbers, bytes, arrays of numbers, lists of bytes) and its tensors."""

    keys: dict[str, object]
    tensors: dict[str, LazyTensor]

    def text(self, key: str) -> str | None:
        """The value of a key that holds a string, or None."""
        value = self.keys.get(key)
        return value.decode(errors="replace") if isinstance(value, bytes) else None


def map_gguf(path: Path) -> Gguf:
    """Map a GGUF file. Raises CheckpointError when it is damaged, truncated or of an unknown version."""
    with path.open("rb") as file:
        cursor = _Cursor(path, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    cursor.take(4)  # the magic number, which was checked before
    version, n_tensors, n_keys = cursor.number("<I"), cursor.number("<Q"), cursor.number("<Q")
    if version not in _VERSIONS:
        raise CheckpointError(f"{path} has an unknown version of GGUF ({version}): convert it again")
    if max(n_tensors, n_keys) > _MOST_ENTRIES:
        raise CheckpointError(f"{path} is damaged: it has more tensors or keys than any model")
    keys: dict[str, object] = {}
    for _ in range(n_keys):
        name = cursor.name()
        if name in keys:
            raise CheckpointError(f"{path} names the key {name[:80]!r} twice")
        keys[name] = cursor.value(cursor.number("<I"))
    infos: dict[str, _TensorInfo] = {}
    for _ in range(n_tensors):
        name = cursor.name()
        if name in infos:
            raise CheckpointError(f"{path} names the tensor {name[:80]!r} twice")
        infos[name] = cursor.tensor_info()
    alignment = keys.get("general.alignment", _DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise CheckpointError(f"{path} has an invalid alignment")
    start = -(-cursor.position // alignment) * alignment
    return Gguf(keys, {name: _map_tensor(cursor, name, info, start) for name, info in infos.items()})


class _TensorInfo(NamedTuple):
    shape: Shape
    type_code: int
    offset: int  # from the start of the data


class _Cursor:
    """Reads the header from front to back and never beyond the end of the file."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.data = data
        self.position = 0

    def require(self, size: int) -> None:
        if size > min(len(self.data), _MAX_HEADER) - self.position:
            raise truncated(self.path)

    def take(self, size: int) -> bytes:
        self.require(size)
        start = self.position
        self.position += size
        return self.data[start : start + size]

    def number(self, layout: str) -> int:
        number = struct.unpack(layout, self.take(struct.calcsize(layout)))[0]
        assert isinstance(number, int)
        return number

    def string(self) -> bytes:
        size = self.number("<Q")
        if size > _MAX_STRING:
            raise CheckpointError(f"{self.path} is damaged: it contains a name of {size} bytes")
        return self.take(size)

    def name(self) -> str:
        try:
            return self.string().decode()
        except UnicodeDecodeError:
            raise CheckpointError(f"{self.path} is damaged: it contains a name that is not text") from None

    def value(self, code: int) -> Any:
        if code == _STRING:
            return self.string()
        if code == _ARRAY:
            item, count = self.number("<I"), self.number("<Q")
            if item != _STRING:
                return self._numbers(item, count)
            self.require(8 * count)  # every string takes the eight bytes of its length
            return [self.string() for _ in range(count)]
        return self._numbers(code, 1)[0].item()

    def _numbers(self, code: int, count: int) -> NDArray[Any]:
        if code not in _SCALARS:
            raise CheckpointError(f"{self.path} is damaged: it contains a value of the unknown type {code}")
        return np.frombuffer(self.take(count * _SCALARS[code].itemsize), _SCALARS[code])

    def tensor_info(self) -> _TensorInfo:
        n_dims = self.number("<I")
        if not 1 <= n_dims <= _MAX_DIMENSIONS:
            raise CheckpointError(f"{self.path} is damaged: it contains a tensor of {n_dims} dimensions")
        dims = [self.number("<Q") for _ in range(n_dims)]
        return _TensorInfo(tuple(reversed(dims)), self.number("<I"), self.number("<Q"))


def truncated(path: Path) -> CheckpointError:
    """The refusal of a file that ends too early."""
    return CheckpointError(f"{path} is truncated: the download stopped early; get it again")


def _map_tensor(cursor: _Cursor, name: str, info: _TensorInfo, data_start: int) -> LazyTensor:
    """Check a tensor's size against the file and map it."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    path = cursor.path
    try:
        kind = GGMLQuantizationType(info.type_code)
        block, block_bytes = GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError):
        raise CheckpointError(
            f"{path} has the tensor {name[:80]!r} in the unknown type {info.type_code}"
        ) from None
    size = math.prod(info.shape)
    if size == 0 or info.shape[-1] % block:
        raise CheckpointError(f"{path} is damaged: the tensor {name[:80]!r} has an invalid shape")
    begin, n_bytes = data_start + info.offset, size // block * block_bytes
    if begin + n_bytes > len(cursor.data):
        raise truncated(path)
    plain = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F64": "<f8"}.get(kind.name)
    if plain is not None:
        view = np.frombuffer(cursor.data, plain, size, begin).reshape(info.shape)
        return mapped_tensor(view, kind.name.lower())
    _require_decoder(path, kind, block_bytes)
    rows = np.frombuffer(cursor.data, np.uint8, n_bytes, begin).reshape(*info.shape[:-1], -1)
    return LazyTensor(info.shape, kind.name.lower(), lambda: _dequantized(rows, kind))


def _require_decoder(path: Path, kind: GGMLQuantizationType, block_bytes: int) -> None:
    try:
        _dequantized(np.zeros((1, block_bytes), np.uint8), kind)
    except NotImplementedError:
        raise CheckpointError(
            f"{path} has {kind.name} tensors, which cannot be decoded: convert it as F16 or Q8_0"
        ) from None


def _dequantized(rows: NDArray[np.uint8], kind: GGMLQuantizationType) -> NDArray[np.float32]:
    from gguf import dequantize

    with np.errstate(all="ignore"):  # invalid scales give infinities, which are refused as such
        array = np.asarray(dequantize(rows, kind), dtype=np.float32)
    release_pages(rows)
    return array
