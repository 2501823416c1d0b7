"""Official `.pth` files, read without torch: a zip archive of raw storages and a pickle that describes them.

The pickle is never executed. `pickletools.genops` only splits it into opcodes; the small machine below knows
those that torch writes for a dict of tensors, and builds plain Python values from them. There is no
`find_class`, no `__reduce__` and no import, so a hostile file has nothing to call: safer than a
restricted `pickle.Unpickler`, which runs the full machine and filters it. Storages stay in the mapped file.
"""

from __future__ import annotations

import io
import mmap
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkv_cli.errors import CheckpointError
from rwkv_cli.files.checkpoints.base import Checkpoint, LazyTensor, mapped_tensor, refuse_foreign
from rwkv_cli.files.checkpoints.layouts import official_tensors

# The pickle of the largest published model (13.3B, about 2,000 tensors) has some 220 KB.
_MAX_PICKLE = 4 << 20
_MAX_DIMENSIONS = 8
_ENCRYPTED, _UTF8 = 1 << 0, 1 << 11  # general purpose bits of a zip entry
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, ..., length of the name, length of the extra field

_STORAGES: Mapping[str, tuple[str, np.dtype[Any]]] = {
    "torch.BFloat16Storage": ("bf16", np.dtype("<u2")),
    "torch.HalfStorage": ("f16", np.dtype("<f2")),
    "torch.FloatStorage": ("f32", np.dtype("<f4")),
    "torch.DoubleStorage": ("f64", np.dtype("<f8")),
}
_ORDERED_DICT = "collections.OrderedDict"
_TENSOR = "torch._utils._rebuild_tensor_v2"
_TENSOR_OF_OTHER_TYPE = "torch._utils._rebuild_tensor_v3"
_PARAMETER = "torch._utils._rebuild_parameter"
# Entries of a trainer's checkpoint that hold the weights.
_NESTED = ("state_dict", "model")
_GLOBALS = frozenset({*_STORAGES, _ORDERED_DICT, _TENSOR, _PARAMETER})


def open_pth(path: Path) -> Checkpoint:
    """Open an official RWKV-7 file. Raises CheckpointError or UnsupportedModelError."""
    raw = read_state_dict(path)
    refuse_foreign(path, raw)
    return Checkpoint(path, "pth", (path,), official_tensors(path, raw, is_transposed=False))


def read_state_dict(path: Path) -> dict[str, LazyTensor]:
    """Map the tensors of any `torch.save` file that holds one flat dict of floating-point tensors.

    The dict may be the entry "state_dict" or "model" of another one, as trainers write it beside their own values.
    Raises CheckpointError, in one sentence, for anything else.
    """
    archive = _Archive(path)
    pickled = archive.read_pickle()
    try:
        state = _PickleMachine().run(pickled)
    except _RefusedPickleError as error:
        raise CheckpointError(f"{path} {error}") from None
    except Exception:  # genops and the machine raise many kinds on malformed input, and all mean the same
        raise CheckpointError(f"{path} contains a damaged pickle: get the file again") from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} is a PyTorch file, but not a dict of tensors")
    state = next((state[key] for key in _NESTED if isinstance(state.get(key), dict)), state)
    tensors = {}
    for name, value in state.items():
        if not isinstance(value, _Tensor) or not isinstance(name, str):
            raise CheckpointError(
                f"{path} is not a flat dict of tensors: {str(name)[:80]!r} is something else"
            )
        tensors[name] = archive.tensor(name, value)
    return tensors


class _Archive:
    """The zip archive of a `.pth`, mapped. Entries must be uncompressed and inside the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._verified: set[str] = set()
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        try:
            with zipfile.ZipFile(path) as archive:
                self._entries = {entry.filename: entry for entry in archive.infolist()}
        except Exception:  # zipfile raises many kinds on a hostile directory, which all mean the same
            raise CheckpointError(f"{path} is truncated: the download stopped early; get it again") from None
        pickles = [name for name in self._entries if name == "data.pkl" or name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise CheckpointError(f"{path} is a zip archive, but not a PyTorch checkpoint")
        self._prefix = pickles[0].removesuffix("data.pkl")
        if f"{self._prefix}byteorder" in self._entries and self._bytes("byteorder", 16) != b"little":
            raise CheckpointError(f"{path} is big-endian: save it again on a little-endian machine")

    def read_pickle(self) -> bytes:
        return self._bytes("data.pkl", _MAX_PICKLE)

    def tensor(self, name: str, tensor: _Tensor) -> LazyTensor:
        """Check a tensor's place in its storage and map it."""
        storage = tensor.storage
        start, size = self._locate(f"data/{storage.key}")
        if size != storage.numel * storage.dtype.itemsize:
            raise CheckpointError(f"{self.path} has a storage of the wrong size for the tensor {name[:80]!r}")
        if not tensor.fits():
            raise CheckpointError(
                f"{self.path} has the tensor {name[:80]!r}, which extends beyond its storage"
            )
        flat = np.frombuffer(self._map, storage.dtype, storage.numel, start)
        strides = tuple(stride * storage.dtype.itemsize for stride in tensor.strides)
        view = np.lib.stride_tricks.as_strided(flat[tensor.offset :], tensor.shape, strides, writeable=False)
        mapped = mapped_tensor(view, storage.label)

        def read() -> NDArray[np.float32]:
            self._verify(f"data/{storage.key}")
            return mapped.read()

        return replace(mapped, read=read)

    def _bytes(self, name: str, limit: int) -> bytes:
        start, size = self._locate(name)
        if size > limit:
            raise CheckpointError(f"{self.path} has {size} bytes in {name}, more than any checkpoint needs")
        self._verify(name)
        return self._map[start : start + size]

    def _verify(self, name: str) -> None:
        """Compare an entry with its CRC-32, once. Raises CheckpointError where they differ."""
        if name in self._verified:
            return
        start, size = self._locate(name)
        expected = self._entries[self._prefix + name].CRC
        with memoryview(self._map) as whole, whole[start : start + size] as data:
            # 0 stands for none, as torch writes it where it is told to compute none.
            if expected and zlib.crc32(data) != expected:
                raise self._damaged(self._prefix + name)
        self._verified.add(name)

    def _locate(self, name: str) -> tuple[int, int]:
        """Offset and size of an entry's bytes in the file, as directory and local header agree on them."""
        full_name = self._prefix + name
        entry = self._entries.get(full_name)
        if entry is None:
            raise CheckpointError(f"{self.path} lacks the entry {full_name[:80]!r}: get the file again")
        stored = entry.compress_type == zipfile.ZIP_STORED and entry.compress_size == entry.file_size
        if not stored or entry.flag_bits & _ENCRYPTED:
            raise CheckpointError(
                f"{self.path} is compressed or encrypted inside: save it again with torch.save"
            )
        header_end = entry.header_offset + _LOCAL_HEADER.size
        if entry.header_offset < 0 or header_end > len(self._map):
            raise self._damaged(full_name)
        signature, name_length, extra_length = _LOCAL_HEADER.unpack_from(self._map, entry.header_offset)
        start = header_end + name_length + extra_length
        stored_name = self._map[header_end : header_end + name_length]
        encoding = "utf-8" if entry.flag_bits & _UTF8 else "cp437"
        if signature != b"PK\3\4" or stored_name != entry.orig_filename.encode(encoding):
            raise self._damaged(full_name)
        if start + entry.file_size > len(self._map):
            raise self._damaged(full_name)
        return start, entry.file_size

    def _damaged(self, name: str) -> CheckpointError:
        return CheckpointError(f"{self.path} is damaged at the entry {name[:80]!r}: get it again")


@dataclass(frozen=True)
class _Storage:
    key: str
    numel: int
    label: str
    dtype: np.dtype[Any]


@dataclass(frozen=True)
class _Tensor:
    """A tensor as the pickle describes it: offset, shape and strides count elements of the storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def fits(self) -> bool:
        """Whether it is inside its storage and not larger, so that a broadcast view cannot fill the memory."""
        size, last = 1, self.offset
        for extent, stride in zip(self.shape, self.strides, strict=True):
            size *= extent
            last += (extent - 1) * stride
        return 0 < size <= self.storage.numel and last < self.storage.numel


@dataclass(frozen=True)
class _Global:
    name: str


class _RefusedPickleError(Exception):
    """A pickle of something else than a dict of tensors; the message continues the file's name."""


_MARK = object()

_CONSTANTS: Mapping[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = frozenset({"BINUNICODE", "SHORT_BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"})
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _PickleMachine:
    """Follows a pickle of a state dict; a value is a number, str, tuple, list, dict or one of the records above."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        """The pickled value. Raises _RefusedPickleError for anything but tensors, anything for nonsense."""
        argument: Any
        for opcode, argument, _ in pickletools.genops(io.BytesIO(data)):
            name = opcode.name
            if name == "STOP":
                return self._stack.pop()
            if name in _LITERALS:
                self._stack.append(argument)
            elif name in _CONSTANTS:
                self._stack.append(_CONSTANTS[name])
            elif name in _TUPLES:
                self._stack.append(tuple(self._pop_many(_TUPLES[name])))
            elif name in ("BINPUT", "LONG_BINPUT"):
                self._memo[argument] = self._stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                self._stack.append(self._memo[argument])
            else:
                self._step(name, argument)
        raise _RefusedPickleError("contains a pickle without an end")

    def _step(self, name: str, argument: Any) -> None:
        match name:
            case "PROTO":
                pass
            case "MARK":
                self._stack.append(_MARK)
            case "EMPTY_TUPLE":
                self._stack.append(())
            case "EMPTY_DICT":
                self._stack.append({})
            case "EMPTY_LIST":
                self._stack.append([])
            case "APPEND":
                self._append(self._pop_many(1))
            case "APPENDS":
                self._append(self._pop_to_mark())
            case "TUPLE":
                self._stack.append(tuple(self._pop_to_mark()))
            case "SETITEM":
                self._set_items(self._pop_many(2))
            case "SETITEMS":
                self._set_items(self._pop_to_mark())
            case "GLOBAL":
                self._stack.append(self._global(argument))
            case "BINPERSID":
                self._stack.append(self._storage(self._stack.pop()))
            case "REDUCE":
                function, arguments = self._pop_many(2)
                self._stack.append(self._call(function, arguments))
            case "BUILD":
                self._build()
            case _:
                raise _RefusedPickleError(
                    f"contains a pickle with the instruction {name}: no checkpoint needs it"
                )

    def _pop_many(self, count: int) -> list[Any]:
        values = self._stack[-count:]
        if len(values) != count or _MARK in values:
            raise ValueError("stack underflow")
        del self._stack[-count:]
        return values

    def _pop_to_mark(self) -> list[Any]:
        values = []
        while (value := self._stack.pop()) is not _MARK:
            values.append(value)
        return values[::-1]

    def _set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not dict:
            raise ValueError("items for something that is not a dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in (str, int):  # optimizers number their entries
                raise ValueError("a key that is neither a string nor a number")
            target[key] = value

    def _append(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not list:
            raise ValueError("items for something that is not a list")
        target.extend(items)

    def _global(self, argument: str) -> _Global:
        name = ".".join(argument.split(" ", 1))
        if name not in _GLOBALS:
            if name.startswith("torch.float8") or name == _TENSOR_OF_OTHER_TYPE:
                raise _RefusedPickleError(
                    "has FP8 tensors or others of a rare type: convert it to bf16 first"
                )
            if name.startswith("torch.") and name.endswith("Storage"):
                raise _RefusedPickleError(f"has tensors of the type {name}, which is not a type of weights")
            shown = "".join(character for character in name[:80] if character.isprintable())
            raise _RefusedPickleError(f"contains a pickle that tries to run code ({shown})")
        return _Global(name)

    def _storage(self, identity: Any) -> _Storage:
        kind, storage_type, key, _location, numel = identity
        label, dtype = _STORAGES[storage_type.name]
        if kind != "storage" or type(key) is not str:
            raise ValueError("not a storage")
        return _Storage(key, _count(numel), label, dtype)

    def _call(self, function: Any, arguments: Any) -> Any:
        if type(function) is not _Global or type(arguments) is not tuple:
            raise _RefusedPickleError("contains a pickle that tries to run code")
        if function.name == _ORDERED_DICT and arguments == ():
            return {}
        if function.name == _PARAMETER:
            tensor, _requires_grad, _hooks = arguments
            return tensor
        if function.name != _TENSOR:
            raise _RefusedPickleError(f"contains a pickle that tries to call {function.name}")
        storage, offset, shape, strides = arguments[:4]
        if type(storage) is not _Storage or len(shape) != len(strides) or len(shape) > _MAX_DIMENSIONS:
            raise ValueError("not a tensor")
        return _Tensor(storage, _count(offset), tuple(map(_count, shape)), tuple(map(_count, strides)))

    def _build(self) -> None:
        """Drop the attributes of a dict (torch keeps module versions in `_metadata`), refuse all others."""
        target, attributes = self._pop_many(2)
        if type(target) is not dict or type(attributes) is not dict:
            raise _RefusedPickleError("contains a pickle that tries to run code (BUILD)")
        self._stack.append(target)


def _count(value: object) -> int:
    """A non-negative int that fits into 63 bits."""
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError("not a count")
    return value
