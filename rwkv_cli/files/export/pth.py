"""The official format: what `torch.save` makes of a flat dict of tensors, written without PyTorch.

An uncompressed zip archive: `data.pkl` is a pickle of names, shapes and keys, `data/KEY` the bytes of a tensor, which
start at a multiple of 64 so that they can be mapped. The pickle needs only a dozen instructions, written here one by
one; `torch.load(weights_only=True)` reads it.
"""

from __future__ import annotations

import math
import struct
import zipfile
from pathlib import Path

from rwkv_cli import tensors
from rwkv_cli.files.atomic import replacing
from rwkv_cli.files.export import ExportJob
from rwkv_cli.files.export.encoding import each_tensor, encoded
from rwkv_cli.tensors import Shape

_STORAGES = {"bf16": "BFloat16Storage", "fp16": "HalfStorage", "fp32": "FloatStorage"}
_ALIGNMENT = 64
_LOCAL_HEADER = 30  # bytes, before the name
_PADDING = b"FB"  # the extra field that PyTorch pads with
_FOLDER = "archive"


def write_pth(target: Path, job: ExportJob) -> None:
    """Write an official file. Raises StorageError, UnsupportedModelError."""
    config = job.source.config
    shapes = config.tensor_shapes()
    rows = dict(tensors.every(config.n_layer))
    official = {name: rows[name].shape_in("pth", shape) for name, shape in shapes.items()}
    keys = {name: str(key) for key, name in enumerate(shapes)}
    with replacing(target) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, "data.pkl", _pickle(official, keys, job.type))
        _add(archive, "byteorder", b"little")
        for name, _, tensor in each_tensor(job, "pth"):
            _add(archive, f"data/{keys[name]}", encoded(name, tensor, job.type).reshape(-1).view("u1").data)
        _add(archive, "version", b"3\n")


def _add(archive: zipfile.ZipFile, name: str, data: bytes | memoryview) -> None:
    """Add an entry whose bytes start at a multiple of 64."""
    entry = zipfile.ZipInfo(f"{_FOLDER}/{name}", date_time=(1980, 1, 1, 0, 0, 0))
    assert archive.fp is not None
    begin = archive.fp.tell() + _LOCAL_HEADER + len(entry.filename) + 4
    padding = -begin % _ALIGNMENT
    entry.extra = struct.pack("<2sH", _PADDING, padding) + b"Z" * padding
    entry.file_size = len(data)
    with archive.open(entry, "w") as file:
        file.write(data)


def _pickle(shapes: dict[str, Shape], keys: dict[str, str], kind: str) -> bytes:
    """PROTO 2, EMPTY_DICT, MARK, a name and a tensor each, SETITEMS, STOP."""
    items = b"".join(_text(name) + _tensor(keys[name], shape, kind) for name, shape in shapes.items())
    return b"\x80\x02}(" + items + b"u."


def _tensor(key: str, shape: Shape, kind: str) -> bytes:
    """_rebuild_tensor_v2(storage, offset 0, shape, strides, requires_grad False, OrderedDict())."""
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    storage = b"(" + _text("storage") + f"ctorch\n{_STORAGES[kind]}\n".encode()
    storage += _text(key) + _text("cpu") + _number(math.prod(shape)) + b"tQ"  # BINPERSID
    arguments = storage + _number(0) + _tuple(shape) + _tuple(strides) + b"\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"  # REDUCE


def _tuple(numbers: Shape | list[int]) -> bytes:
    return b"(" + b"".join(map(_number, numbers)) + b"t"


def _text(text: str) -> bytes:
    """BINUNICODE"""
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _number(value: int) -> bytes:
    """BININT, or LONG1 beyond 31 bits"""
    if value < 2**31:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes(8, "little") + b"\0"
    return b"\x8a" + bytes([len(data)]) + data
