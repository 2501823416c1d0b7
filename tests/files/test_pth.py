import io
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
from helpers.writers import (
    TINY,
    exact_in_half,
    pickled_int,
    pickled_tensor,
    pickled_text,
    random_weights,
    state_dict_pickle,
    write_pth,
    write_torch,
    write_torch_archive,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rwkv_cli.config import ModelConfig
from rwkv_cli.errors import CheckpointError, RwkvError
from rwkv_cli.files.checkpoints import open_checkpoint
from rwkv_cli.files.checkpoints.pth import read_state_dict

START, STOP = b"\x80\x02", b"."
ONE_BYTE_STORAGE = [b"\0\0\0\0"]


def entry(value: bytes) -> bytes:
    """A pickle of {"a": value}."""
    return START + b"}" + pickled_text("a") + value + b"s" + STOP


def refused(tmp_path, pickled: bytes, storages=ONE_BYTE_STORAGE) -> str:
    path = write_torch_archive(tmp_path / "x.pth", pickled, storages)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert len(message) < len(str(path)) + 200
    return message


@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32", "f64"])
def test_every_dtype_is_read(tmp_path, dtype):
    array = exact_in_half(np.random.default_rng(0).standard_normal((5, 3)))
    tensor = read_state_dict(write_torch(tmp_path / "x.pth", {"a": array}, dtype))["a"]
    assert (tensor.shape, tensor.dtype) == ((5, 3), dtype)
    np.testing.assert_array_equal(tensor.read(), array)
    assert tensor.read().dtype == np.float32


def test_views_share_a_storage(tmp_path):
    array = np.arange(12, dtype=np.float32)
    items = pickled_text("matrix") + pickled_tensor("0", (3, 4), numel=12)
    items += pickled_text("transposed") + pickled_tensor("0", (4, 3), strides=(1, 4), numel=12)
    items += pickled_text("tail") + pickled_tensor("0", (2,), numel=12, offset=10)
    path = write_torch_archive(tmp_path / "x.pth", START + b"}(" + items + b"u.", [array.tobytes()])
    tensors = read_state_dict(path)
    np.testing.assert_array_equal(tensors["matrix"].read(), array.reshape(3, 4))
    np.testing.assert_array_equal(tensors["transposed"].read(), array.reshape(3, 4).T)
    np.testing.assert_array_equal(tensors["tail"].read(), [10, 11])


def test_parameters_and_module_versions_are_understood(tmp_path):
    ordered_dict = b"ccollections\nOrderedDict\n)R"
    parameter = (
        b"ctorch._utils\n_rebuild_parameter\n(" + pickled_tensor("0", (1,)) + b"\x88" + ordered_dict + b"tR"
    )
    versions = b"}" + pickled_text("_metadata") + ordered_dict + b"s"
    pickled = START + ordered_dict + pickled_text("a") + parameter + b"s" + versions + b"b" + STOP
    path = write_torch_archive(tmp_path / "x.pth", pickled, [np.float32(7).tobytes()])
    np.testing.assert_array_equal(read_state_dict(path)["a"].read(), [7])


class Evil:
    def __reduce__(self):
        return os.system, ("echo evil > evil",)


@pytest.mark.parametrize("protocol", [0, 1, 2])
def test_a_pickle_that_runs_code_is_refused(tmp_path, monkeypatch, protocol):
    monkeypatch.chdir(tmp_path)
    message = refused(tmp_path, pickle.dumps({"a": Evil()}, protocol))
    if protocol == 2:
        assert f"contains a pickle that tries to run code ({os.name}.system)" in message
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("protocol", [4, 5])
def test_newer_protocols_are_refused_by_instruction(tmp_path, protocol):
    assert "instruction" in refused(tmp_path, pickle.dumps({"a": Evil()}, protocol))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"cbuiltins\neval\n" + pickled_text("1") + b"\x85R", r"run code (builtins.eval)"),
        (b"ctorch._utils\n_rebuild_tensor\n", "run code (torch._utils._rebuild_tensor)"),
        (b"ctorch\nLongStorage\n", "torch.LongStorage"),
        (
            b"ccollections\nOrderedDict\n" + pickled_text("1") + b"\x85R",
            "tries to call collections.OrderedDict",
        ),
        (pickled_text("f") + b")R", "tries to run code"),
        (pickled_tensor("0", (1,)) + b"}b", "tries to run code (BUILD)"),
        (b"ctorch\nFloatStorage\n)\x81", "instruction NEWOBJ"),
        (b"(ios\nsystem\n", "instruction INST"),
        (b"\x82\x01", "instruction EXT1"),
        (pickled_text("text"), "'a' is something else"),
        (b"}", "'a' is something else"),
        (b"\x85" * 3, "damaged pickle"),
        (b"(" * 1000, "damaged pickle"),
        (b"h\x09", "damaged pickle"),
        (b"Q", "damaged pickle"),
        (b"\x8b" + struct.pack("<i", 2**31 - 1), "damaged pickle"),
        (b"X" + struct.pack("<I", 2**32 - 1) + b"abc", "damaged pickle"),
        (b"\x8d" + struct.pack("<Q", 2**62), "damaged pickle"),
        (b"I" + b"9" * 10_000 + b"\n", "damaged pickle"),
        (b"\xff", "damaged pickle"),
        (b"NNs", "damaged pickle"),
        (pickled_tensor("0", (1,) * 9), "damaged pickle"),
        (pickled_tensor("0", (1,), strides=(1, 1)), "damaged pickle"),
    ],
)
def test_a_hostile_pickle_is_refused(tmp_path, value, message):
    assert message in refused(tmp_path, entry(value))


def test_a_memo_bomb_and_deep_nesting_end_at_once(tmp_path):
    doubling = b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(200))
    assert "something else" in refused(tmp_path, entry(b"}" + doubling))
    assert "something else" in refused(tmp_path, entry(b")" + b"\x85" * 300_000))


@pytest.mark.parametrize("pickled", [b"", START, START + b"}", b"garbage"])
def test_a_pickle_without_an_end_is_refused(tmp_path, pickled):
    assert "pickle" in refused(tmp_path, pickled)


def test_other_values_than_a_dict_of_tensors_are_refused(tmp_path):
    assert "not a dict of tensors" in refused(tmp_path, START + pickled_text("x") + STOP)
    assert "'1' is something else" in refused(tmp_path, START + b"}" + b"K\x01K\x02s" + STOP)
    assert "damaged" in refused(tmp_path, START + b"}" + b")K\x02s" + STOP)


def test_a_huge_pickle_is_refused(tmp_path):
    assert "more than any checkpoint needs" in refused(tmp_path, START + b"N0" * (3 << 20))


@pytest.mark.parametrize(
    "tensor",
    [
        pickled_tensor("0", (2,), numel=1),
        pickled_tensor("0", (1,), numel=1, offset=1),
        pickled_tensor("0", (2,), strides=(2**40,), numel=2),
        pickled_tensor(
            "0", (2**40, 2**40), strides=(0, 0), numel=1
        ),  # a broadcast view larger than the memory
        pickled_tensor("0", (0,), numel=1),
        pickled_tensor("0", (1,), numel=2),
        pickled_tensor("0", (1,), numel=2**62),
        pickled_tensor("1", (1,)),
        pickled_tensor("../data.pkl", (1,)),
    ],
)
def test_a_tensor_outside_its_storage_is_refused(tmp_path, tensor):
    refused(tmp_path, entry(tensor))


def test_negative_and_fractional_sizes_are_refused(tmp_path):
    good = pickled_tensor("0", (1,))
    for bad in (b"J" + struct.pack("<i", -1), b"G" + struct.pack(">d", 1.0), b"\x88"):
        refused(tmp_path, entry(good.replace(pickled_int(1), bad)))


def test_a_compressed_archive_is_refused(tmp_path):
    pickled = state_dict_pickle({"a": np.zeros(1000, np.float32)}, "f32")
    path = write_torch_archive(tmp_path / "x", pickled, [bytes(4000)], compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="is compressed"):
        open_checkpoint(path)


def test_a_big_endian_file_is_refused(tmp_path):
    path = write_torch_archive(tmp_path / "x", START + b"}" + STOP, byteorder=b"big")
    with pytest.raises(CheckpointError, match="is big-endian"):
        open_checkpoint(path)


def test_a_zip_archive_of_something_else_is_refused(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.zeros(3))
    with pytest.raises(CheckpointError, match="is a zip archive, but not a PyTorch checkpoint"):
        open_checkpoint(tmp_path / "x.npz")


@pytest.mark.parametrize("share", [0.001, 0.3, 0.9, 0.9999])
def test_a_truncated_file_says_so(tmp_path, share):
    content = write_pth(tmp_path / "whole.pth", random_weights()).read_bytes()
    path = tmp_path / "part.pth"
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match="is truncated: the download stopped early; get it again"):
        open_checkpoint(path)


def test_a_local_header_that_disagrees_is_refused(tmp_path):
    content = write_torch(tmp_path / "x.pth", {"a": np.ones(9, np.float32)}, "f32").read_bytes()
    (tmp_path / "x.pth").write_bytes(content.replace(b"archive/data/0", b"archive/data/9", 1))
    with pytest.raises(CheckpointError, match="damaged at the entry 'archive/data/0'"):
        open_checkpoint(tmp_path / "x.pth")


SMALL = ModelConfig(n_layer=1, n_embd=64, n_ffn=64, vocab_size=8, rank_w=4, rank_a=4, rank_v=0, rank_g=4)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused(tmp_path, data):
    content = bytearray(write_pth(tmp_path / "whole.pth", random_weights(SMALL)).read_bytes())
    pickle_end = content.index(b"PK", 4)  # where most of the meaning is, and at the end
    places = st.one_of(st.integers(0, pickle_end), st.integers(len(content) - 3000, len(content) - 1))
    for place in data.draw(st.lists(places, min_size=1, max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    (tmp_path / "damaged.pth").write_bytes(content)
    try:
        with open_checkpoint(tmp_path / "damaged.pth") as checkpoint:
            for name, shape in checkpoint.config.tensor_shapes().items():
                assert checkpoint.tensor(name).shape == shape
    except RwkvError:
        pass


def test_torch_agrees_in_both_directions(tmp_path):
    torch = pytest.importorskip("torch")
    weights = random_weights(TINY)
    loaded = torch.load(write_pth(tmp_path / "ours.pth", weights), weights_only=True)
    buffer = io.BytesIO()
    torch.save(loaded, buffer)
    (tmp_path / "theirs.pth").write_bytes(buffer.getvalue())
    checkpoint = open_checkpoint(tmp_path / "theirs.pth")
    for name, tensor in weights.items():
        np.testing.assert_array_equal(loaded[name].float().numpy().reshape(tensor.shape), tensor)
        np.testing.assert_array_equal(checkpoint.tensor(name), tensor)


@pytest.mark.parametrize("part", ["data.pkl", "data/0"])
def test_damaged_bytes_are_noticed(tmp_path, part):
    """By the CRC-32 that the archive has of each entry."""
    path = write_pth(tmp_path / "x.pth", random_weights())
    with zipfile.ZipFile(path) as archive:
        entry = next(each for each in archive.infolist() if each.filename.endswith(part))
    data = bytearray(path.read_bytes())
    begin = data.index(entry.filename.encode(), entry.header_offset) + len(entry.filename)
    data[begin + entry.file_size // 2 + len(entry.extra)] ^= 1
    path.write_bytes(data)

    def read():
        checkpoint = open_checkpoint(path)
        return [checkpoint.tensor(name) for name in checkpoint.config.tensor_shapes()]

    with pytest.raises(CheckpointError, match=rf"damaged at the entry '.*{part}': get it again"):
        read()


def test_an_archive_without_checksums_is_read(tmp_path, monkeypatch):
    """As torch writes it after `set_crc32_options(False)`: all of them are 0."""
    path = write_pth(tmp_path / "x.pth", random_weights())
    infolist = zipfile.ZipFile.infolist

    def without(archive):
        for entry in (entries := infolist(archive)):
            entry.CRC = 0
        return entries

    monkeypatch.setattr(zipfile.ZipFile, "infolist", without)
    np.testing.assert_array_equal(
        open_checkpoint(path).tensor("head.weight"), random_weights()["head.weight"]
    )
