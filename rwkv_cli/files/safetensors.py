"""The safetensors container: mapped for reading, streamed for writing.

A file is eight bytes of header length, a JSON header (name -> dtype, shape, begin and end in the data) and
the data, without gaps. `map_safetensors` trusts nothing in it; `SafetensorsWriter` holds one tensor at a
time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import mmap
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, Self, TypeGuard

import numpy as np
from numpy.typing import NDArray

from cpu_kernels.runtime.leftovers import temporary_beside
from rwkv_cli.errors import StorageError
from rwkv_cli.files.atomic import create, storage_error
from rwkv_cli.tensors import Shape as Shape

# NumPy has no bf16: its bits are read and written as uint16.
DTYPES: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "F32": np.dtype("<f4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F64": np.dtype("<f8"),
}
ALIGNMENT = 64  # a cache line, and the widest vector load
MAX_HEADER = 10_000_000  # bytes; the official library allows ten times as much, real models have a thirtieth
MOST_TENSORS = 20_000
"""In one file: the largest published models have some two thousand."""

DIGEST = "digest"
"""The metadata entry that the writer fills if it is announced as `NO_DIGEST`: see `digest_of`."""

NO_DIGEST = json.dumps("0" * 64)


class MappedTensor(NamedTuple):
    """One tensor of a mapped file; `array` is a read-only view into it, uint16 for BF16."""

    dtype: str
    shape: Shape
    array: NDArray[Any]


@dataclass(frozen=True)
class Mapped:
    """A mapped file. The mapping lives as long as any of the arrays does."""

    metadata: dict[str, str]
    tensors: dict[str, MappedTensor]


class UnreadableTypeError(ValueError):
    """A tensor is of a type that this program does not read, such as FP8; the file may be sound."""


def map_safetensors(path: Path) -> Mapped:
    """Map a safetensors file and check its whole header; no tensor is read.

    Raises ValueError, with half a sentence about the file ("its header ..."), if it is damaged or not a
    safetensors file, and OSError if it cannot be opened.
    """
    status = path.stat()
    # Pipes and devices cannot be mapped, or would block.
    if stat.S_ISFIFO(status.st_mode) or stat.S_ISCHR(status.st_mode):
        raise ValueError("it is not a regular file")
    size = status.st_size
    if size < 8:
        raise ValueError("it is too short to be a safetensors file")
    with path.open("rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        if header_size > MAX_HEADER:
            raise ValueError("its header is longer than that of any model")
        if header_size > size - 8:
            raise ValueError("its header is longer than the file, which may be truncated")
        header = _parse_header(file.read(header_size))
        if len(header) > MOST_TENSORS:
            raise ValueError(f"it has more than {MOST_TENSORS:,} tensors, which no model has")
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            # Huge pages save TLB misses, a fifth of the time; there are kernels without them.
            with contextlib.suppress(OSError):
                pages.madvise(mmap.MADV_HUGEPAGE)
        mapping = memoryview(pages)[8 + header_size :]
    metadata = _check_metadata(header.pop("__metadata__", {}))
    entries = {name: _check_entry(name, fields) for name, fields in header.items()}
    _check_layout(entries, len(mapping))
    tensors = {}
    for name, entry in entries.items():
        flat = np.frombuffer(mapping[entry.begin : entry.end], DTYPES[entry.dtype])
        tensors[name] = MappedTensor(entry.dtype, entry.shape, flat.reshape(entry.shape))
    return Mapped(metadata, tensors)


class SafetensorsWriter:
    """Writes a safetensors file; its tensors are announced first, then written one at a time in any order.

        with SafetensorsWriter(path, {"a": ("F32", (2, 3))}, {"key": "value"}) as writer:
            writer.write("a", array)

    The file appears under its name only once it is complete and on the disk; after any failure nothing is
    left, not even the temporary file beside it. Every tensor whose size is a multiple of 64 bytes starts at a
    multiple of 64 in the file; the others come last, aligned to their own items. Raises StorageError if the
    file cannot be written, ValueError for a tensor that is missing or differs from what was announced.
    """

    def __init__(
        self,
        path: Path,
        tensors: Mapping[str, tuple[str, Shape]],
        metadata: Mapping[str, str] | None = None,
        durable: bool = True,
        private: bool = False,
    ) -> None:
        """`durable` flushes the file to the disk, so that it also survives a loss of power.

        `private` is for files with texts of the user, which only the owner may read; one that is replaced keeps its
        permissions.
        """
        if path.is_symlink():
            path = path.resolve()  # a link stays a link: what it points to is replaced
        self.path = path
        self._durable, self._private = durable, private
        self._header, self._entries = _layout(tensors, metadata or {})
        self._missing = set(tensors)
        self._digests: dict[str, str] | None = {} if (metadata or {}).get(DIGEST) == NO_DIGEST else None
        self.size = len(self._header) + max((entry.end for entry in self._entries.values()), default=0)
        self._temporary = temporary_beside(path)
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        if self.path.is_dir():
            raise StorageError(f"cannot write {self.path}: there is a folder of this name")
        try:
            self._file = create(self._temporary, self.path, self._private)
            self._file.write(self._header)
        except BaseException as error:
            self._discard()
            if isinstance(error, OSError):
                raise storage_error(self.path, error, self.size) from error
            raise
        return self

    def write(self, name: str, array: NDArray[Any]) -> None:
        """Write one tensor, of the dtype in `DTYPES` and the shape that were announced."""
        entry = self._entries[name]
        if array.dtype != DTYPES[entry.dtype] or array.shape != entry.shape:
            raise ValueError(f"{name} is {entry.dtype} {entry.shape}, not {array.dtype} {array.shape}")
        if self._file is None:
            raise ValueError("the writer is not open")
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        if self._digests is not None:
            self._digests[name] = _tensor_digest(name, entry.dtype, entry.shape, data)
        try:
            self._file.seek(len(self._header) + entry.begin)
            self._file.write(data)
        except OSError as error:
            raise storage_error(self.path, error, self.size) from error
        self._missing.discard(name)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._commit()
        except OSError as failure:
            raise storage_error(self.path, failure, self.size) from failure
        finally:
            self._discard()

    def _commit(self) -> None:
        if self._missing:
            raise ValueError(f"{min(self._missing)} was announced but not written")
        assert self._file is not None
        if self._digests is not None:
            texts = (NO_DIGEST, json.dumps(_joined(self._digests)))  # of one length
            announced, found = (f'"{DIGEST}":{json.dumps(text)}'.encode() for text in texts)
            self._file.seek(0)
            self._file.write(self._header.replace(announced, found, 1))
        self._file.flush()
        if self._durable:
            os.fsync(self._file.fileno())
        self._file.close()
        self._temporary.replace(self.path)

    def _discard(self) -> None:
        """Remove the temporary file, if it is still there."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # a full disk fails again when the buffer is flushed
                self._file.close()
            with contextlib.suppress(OSError):
                self._temporary.unlink(missing_ok=True)
            self._file = None


def release_pages(view: NDArray[Any]) -> None:
    """Let the system drop the pages of a mapped array that was read: a conversion needs each tensor once.

    They are read from the file again if they are needed again. Does nothing for other arrays.
    """
    base: object = view
    while base is not None and not isinstance(base, (mmap.mmap, memoryview)):
        base = getattr(base, "base", None)
    if isinstance(base, memoryview):
        base = base.obj
    if not isinstance(base, mmap.mmap) or not hasattr(mmap, "MADV_DONTNEED") or not view.flags.forc:
        return
    offset = view.ctypes.data - np.frombuffer(base, np.uint8).ctypes.data
    begin, end = -(-offset // mmap.PAGESIZE), (offset + view.nbytes) // mmap.PAGESIZE
    if begin < end:
        with contextlib.suppress(OSError):
            base.madvise(mmap.MADV_DONTNEED, begin * mmap.PAGESIZE, (end - begin) * mmap.PAGESIZE)


def digest_of(mapped: Mapped, progress: Callable[[int], None] | None = None) -> str:
    """A sha256 over the names, types, shapes and values of all tensors of a file, in any order of the file.

    `progress` is called with the bytes of each tensor that was read.
    """
    digests = {}
    for name, (dtype, shape, array) in mapped.tensors.items():
        digests[name] = _tensor_digest(name, dtype, shape, array.reshape(-1).view(np.uint8).data)
        release_pages(array)
        if progress:
            progress(array.nbytes)
    return _joined(digests)


def _tensor_digest(name: str, dtype: str, shape: Shape, data: memoryview) -> str:
    digest = hashlib.sha256(json.dumps([name, dtype, list(shape)]).encode())
    digest.update(data)
    return digest.hexdigest()


def _joined(digests: Mapping[str, str]) -> str:
    return hashlib.sha256("".join(digests[name] for name in sorted(digests)).encode()).hexdigest()


class _Entry(NamedTuple):
    dtype: str
    shape: Shape
    begin: int  # in the data
    end: int


def _layout(
    tensors: Mapping[str, tuple[str, Shape]], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, _Entry]]:
    """The header, padded so that the data starts at a multiple of 64, and every tensor's place.

    Tensors of the largest power of two go first: each then starts at a multiple of its own, at most 64.
    """
    sizes = {name: math.prod(shape) * DTYPES[dtype].itemsize for name, (dtype, shape) in tensors.items()}
    entries, position = {}, 0
    for name in sorted(tensors, key=lambda name: -math.gcd(sizes[name], ALIGNMENT)):
        dtype, shape = tensors[name]
        entries[name] = _Entry(dtype, tuple(shape), position, position + sizes[name])
        position += sizes[name]
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    for name, entry in entries.items():
        offsets = [entry.begin, entry.end]
        header[name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": offsets}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    if len(text) > MAX_HEADER:
        raise ValueError("the header would be longer than any safetensors header may be")
    return len(text).to_bytes(8, "little") + text, entries


def _parse_header(data: bytes) -> dict[str, object]:
    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        result = dict(pairs)
        if len(result) != len(pairs):
            raise KeyError("twice")
        return result

    try:
        text = data.decode()
        header = json.loads(text, object_pairs_hook=unique) if text.startswith("{") else None
    except KeyError:
        raise ValueError("its header names something twice") from None
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise ValueError("its header is not a JSON object: it is damaged or not a safetensors file")
    return header


def _check_metadata(metadata: object) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata is not a map of strings")
    return metadata


def _check_entry(name: str, fields: object) -> _Entry:
    if not isinstance(fields, dict) or set(fields) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"the tensor {name[:80]!r} has a malformed header entry")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise UnreadableTypeError(
            f"the tensor {name[:80]!r} has a type that cannot be read: {str(dtype)[:20]!r}"
        )
    if not _are_counts(shape) or not _are_counts(offsets) or len(shape) > 16 or len(offsets) != 2:
        raise ValueError(f"the tensor {name[:80]!r} has an invalid shape or offset")
    entry = _Entry(dtype, tuple(shape), *offsets)
    if entry.end - entry.begin != math.prod(shape) * DTYPES[dtype].itemsize:
        raise ValueError(f"the tensor {name[:80]!r} has a size that does not match its shape")
    return entry


def _are_counts(values: object) -> TypeGuard[list[int]]:
    # `type` and not `isinstance`: JSON's true is an int for Python.
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)


def _check_layout(entries: Mapping[str, _Entry], data_size: int) -> None:
    """The tensors must cover the data without gaps, overlaps or remainder."""
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != position:
            raise ValueError(f"the tensor {name[:80]!r} does not follow the one before it")
        position = entry.end
    if position > data_size:
        raise ValueError("it is truncated: its header announces more data than there is")
    if position < data_size:
        raise ValueError("there is data after its last tensor")
