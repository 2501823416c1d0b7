import errno
import json
import mmap
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from rwkv_cli.errors import StorageError
from rwkv_cli.files import safetensors
from rwkv_cli.files.atomic import storage_error
from rwkv_cli.files.safetensors import DTYPES, MOST_TENSORS, SafetensorsWriter, map_safetensors, release_pages
from rwkv_cli.reporting import format_size

SPECS = {
    "odd": ("U8", (7,)),
    "matrix": ("BF16", (4, 64)),
    "empty": ("F32", (0, 3)),
    "scalar": ("F32", ()),
    "vector": ("F32", (32,)),
    "packed": ("I8", (5, 64)),
    "ids": ("I64", (3,)),
    "counts": ("U32", (2, 2)),
    "half": ("F16", (33,)),
}


def values(specs=SPECS):
    rng = np.random.default_rng(0)
    return {
        name: np.asarray(rng.integers(0, 100, shape)).astype(DTYPES[dtype])
        for name, (dtype, shape) in specs.items()
    }


def write(path: Path, specs=SPECS, metadata=None):
    arrays = values(specs)
    with SafetensorsWriter(path, specs, metadata) as writer:
        for name in reversed(list(specs)):
            writer.write(name, arrays[name])
    return arrays


def raw_file(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def test_everything_written_is_read_back(tmp_path):
    path = tmp_path / "x.safetensors"
    arrays = write(path, metadata={"key": "wörd"})
    mapped = map_safetensors(path)
    assert mapped.metadata == {"key": "wörd"}
    assert {name: tensor[:2] for name, tensor in mapped.tensors.items()} == SPECS
    for name, array in arrays.items():
        np.testing.assert_array_equal(mapped.tensors[name].array, array)
        assert not mapped.tensors[name].array.flags.writeable


def test_the_official_library_reads_our_files(tmp_path):
    path = tmp_path / "x.safetensors"
    arrays = write(path, metadata={"key": "value"})
    with safe_open(path, "numpy") as official:
        assert official.metadata() == {"key": "value"}
        assert set(official.keys()) == set(SPECS)
        for name in set(SPECS) - {"matrix"}:  # NumPy has no bf16 of its own
            np.testing.assert_array_equal(official.get_tensor(name), arrays[name])


def test_tensors_are_aligned_in_the_file(tmp_path):
    path = tmp_path / "x.safetensors"
    write(path)
    mapped = map_safetensors(path)
    for name, (dtype, _, array) in mapped.tensors.items():
        alignment = 64 if array.nbytes % 64 == 0 else DTYPES[dtype].itemsize
        assert array.__array_interface__["data"][0] % alignment == 0, name


def test_a_writer_without_metadata_and_without_tensors(tmp_path):
    write(tmp_path / "x", specs={})
    assert map_safetensors(tmp_path / "x") == safetensors.Mapped({}, {})


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (b"[]", b"", "not a JSON object"),
        (b'{"a"', b"", "not a JSON object"),
        (b'{"a":' * 50_000, b"", "not a JSON object"),
        (b'{"a":' + b"9" * 5000 + b"}", b"", "not a JSON object"),
        (b"\xff\xfe{}", b"", "not a JSON object"),
        (b'{"a":1,"a":2}', b"", "twice"),
        ({"__metadata__": {"a": 1}}, b"", "metadata"),
        ({"__metadata__": 3}, b"", "metadata"),
        ({"a": 3}, b"", "malformed header entry"),
        (
            {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], "x": 1}},
            b"1234",
            "malformed header entry",
        ),
        ({"a": {"dtype": "F9", "shape": [1], "data_offsets": [0, 4]}}, b"1234", "type that cannot be read"),
        (
            {"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}},
            b"1234",
            "type that cannot be read",
        ),
        ({"a": {"dtype": "U8", "shape": [True], "data_offsets": [0, 1]}}, b"1", "invalid shape or offset"),
        ({"a": {"dtype": "U8", "shape": [-1], "data_offsets": [0, 1]}}, b"1", "invalid shape or offset"),
        ({"a": {"dtype": "U8", "shape": [1.0], "data_offsets": [0, 1]}}, b"1", "invalid shape or offset"),
        ({"a": {"dtype": "U8", "shape": 1, "data_offsets": [0, 1]}}, b"1", "invalid shape or offset"),
        ({"a": {"dtype": "U8", "shape": [1] * 20, "data_offsets": [0, 1]}}, b"1", "invalid shape or offset"),
        ({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0]}}, b"1", "invalid shape or offset"),
        ({"a": {"dtype": "U8", "shape": [1], "data_offsets": [1, 0]}}, b"1", "a size that does not match"),
        (
            {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}},
            b"1234",
            "a size that does not match",
        ),
        ({"a": {"dtype": "U8", "shape": [9], "data_offsets": [0, 9]}}, b"1234", "truncated"),
        ({"a": {"dtype": "U8", "shape": [2**62], "data_offsets": [0, 2**62]}}, b"1234", "truncated"),
        ({"a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]}}, b"1234", "after its last tensor"),
        ({"a": {"dtype": "U8", "shape": [3], "data_offsets": [1, 4]}}, b"1234", "does not follow"),
        (
            {n: {"dtype": "U8", "shape": [3], "data_offsets": [b, b + 3]} for n, b in (("a", 0), ("b", 1))},
            b"1234",
            "does not follow",
        ),
    ],
)
def test_a_hostile_header_is_refused(tmp_path, header, data, message):
    with pytest.raises(ValueError, match=message):
        map_safetensors(raw_file(tmp_path / "x", header, data))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "too short"),
        (b"1234567", "too short"),
        (struct.pack("<Q", 2**63), "longer than that of any"),
        (struct.pack("<Q", 10_000_001), "longer than that of any"),
        (struct.pack("<Q", 99) + b"{}", "longer than the file"),
    ],
)
def test_a_hostile_header_length_is_refused(tmp_path, content, message):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        map_safetensors(tmp_path / "x")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused(tmp_path, data):
    write(tmp_path / "whole", metadata={"key": "value"})
    content = bytearray((tmp_path / "whole").read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "damaged").write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        mapped = map_safetensors(tmp_path / "damaged")
    except ValueError:
        return
    assert all(tensor.array.shape == tensor.shape for tensor in mapped.tensors.values())


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "x.safetensors"
    write(path)
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt), SafetensorsWriter(path, SPECS):
        raise KeyboardInterrupt
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_tensor_that_was_not_written_is_refused(tmp_path):
    with pytest.raises(ValueError, match="b was announced but not written"):  # noqa: SIM117
        with SafetensorsWriter(tmp_path / "x", {"a": ("U8", (1,)), "b": ("U8", (1,))}) as writer:
            writer.write("a", np.zeros(1, np.uint8))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "array", [np.zeros(2, np.float64), np.zeros(3, np.float32), np.zeros((1, 2), np.float32)]
)
def test_a_tensor_other_than_announced_is_refused(tmp_path, array):
    with (
        pytest.raises(ValueError, match="a is F32"),
        SafetensorsWriter(tmp_path / "x", {"a": ("F32", (2,))}) as w,
    ):
        w.write("a", array)
    assert not list(tmp_path.iterdir())


def test_a_strided_array_is_written_in_its_own_order(tmp_path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    with SafetensorsWriter(tmp_path / "x", {"a": ("F32", (3, 2))}) as writer:
        writer.write("a", array)
    np.testing.assert_array_equal(map_safetensors(tmp_path / "x").tensors["a"].array, array)


def test_a_file_size_limit_is_a_storage_error(tmp_path):
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(StorageError, match=r"larger than .* allows \(needs 1.0 MB\)"):  # noqa: SIM117
            with SafetensorsWriter(tmp_path / "x", {"a": ("U8", (1_000_000,))}) as writer:
                writer.write("a", np.zeros(1_000_000, np.uint8))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_a_storage_error(tmp_path, monkeypatch, code):
    def full(_descriptor):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(safetensors.os, "fsync", full)
    with pytest.raises(
        StorageError, match=r"cannot write .*x: no space left on the disk \(needs \d+ bytes\)"
    ):
        write(tmp_path / "x", specs={"a": ("U8", (9,))})
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_and_a_folder_in_the_way_are_storage_errors(tmp_path):
    with pytest.raises(StorageError, match=r"the folder .*missing does not exist"):
        write(tmp_path / "missing" / "x")
    with pytest.raises(StorageError, match="there is a folder of this name"):
        write(tmp_path)


def test_other_failures_name_their_reason():
    path = Path("/x/y")
    assert "no permission to write in /x" in str(storage_error(path, PermissionError(errno.EACCES, "denied")))
    assert "read-only file system" in str(storage_error(path, OSError(errno.EROFS, "Read-only file system")))


@pytest.mark.parametrize(
    ("size", "text"),
    [(999, "999 bytes"), (31_200_000, "31.2 MB"), (999_990_000, "1.0 GB"), (5 * 10**13, "50.0 TB")],
)
def test_sizes_for_people(size, text):
    assert format_size(size) == text


@pytest.mark.skipif(not hasattr(mmap, "MADV_DONTNEED"), reason="the system cannot give pages back")
def test_what_was_let_go_is_not_in_memory_and_can_be_read_again(tmp_path):
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[2]) * mmap.PAGESIZE  # of files

    if not Path("/proc/self/statm").exists():
        pytest.skip("needs /proc")
    array = np.arange(1 << 24, dtype=np.float32)  # 64 MB
    with SafetensorsWriter(tmp_path / "x", {"a": ("F32", array.shape)}) as writer:
        writer.write("a", array)
    mapped = map_safetensors(tmp_path / "x").tensors["a"].array
    before = resident()
    assert mapped.sum() > 0
    assert resident() > before + 60e6
    release_pages(mapped)
    assert resident() < before + 5e6
    np.testing.assert_array_equal(mapped, array)
    release_pages(array)
    release_pages(mapped[::2])
    np.testing.assert_array_equal(mapped, array)


def test_more_tensors_than_any_model_are_refused(tmp_path):
    entry = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({str(i): entry for i in range(MOST_TENSORS + 1)}).encode()
    (tmp_path / "x").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(ValueError, match="more than 20,000 tensors"):
        map_safetensors(tmp_path / "x")


@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")
@pytest.mark.parametrize(("private", "expected"), [(False, 0o644), (True, 0o600)])
def test_permissions_of_files(tmp_path, private, expected):
    """A new file: the owner's only if it is private; one that is replaced keeps what it has."""
    path, before = tmp_path / "x", os.umask(0o022)
    try:
        for given in (None, 0o600, 0o640, 0o664):
            if given is not None:
                path.chmod(given)
            with SafetensorsWriter(path, {"a": ("U8", (1,))}, private=private) as writer:
                writer.write("a", np.zeros(1, np.uint8))
            assert path.stat().st_mode & 0o777 == (expected if given is None else given)
    finally:
        os.umask(before)
