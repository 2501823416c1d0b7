"""The model file: what is written is read back, nothing is read early, and nothing wrong is accepted."""

import contextlib
import json
import os
import re
import struct
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from helpers.models import SHAPES, Weights, fine_weights, write_and_open, write_file
from helpers.writers import TINY, write_hf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from rwkv_cli.config import ModelConfig
from rwkv_cli.errors import (
    CheckpointError,
    ModelFileError,
    RwkvError,
    StorageError,
    UnsupportedModelError,
)
from rwkv_cli.files import model_file, weight_layouts
from rwkv_cli.files.model_file import ModelFile, ModelInfo, is_model_file, write_model
from rwkv_cli.files.weight_layouts import WEIGHT_TYPES
from rwkv_cli.text.templates import get_template
from rwkv_cli.text.tokenizer import TokenizerSpec

INT8 = {"type": "int8", "symmetric": True, "group": 64, "scale": "bf16"}
WEIGHTS = fine_weights(TINY)
INFO = ModelInfo(TINY, "int8", None, get_template("raw"))


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """An int8 file with a tokenizer, not to be changed."""
    path = tmp_path_factory.mktemp("model") / "good.safetensors"
    return write_file(path, WEIGHTS, tokenizer=TokenizerSpec("tokenizer.json", b'{"any": "bytes"}'))


def split(path):
    """The header and the data of a safetensors file."""
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def join(path, header, data):
    text = json.dumps(header, separators=(",", ":")).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def with_metadata(good, folder, key, value):
    """A copy with another metadata entry, none where the value is None; bytes are no JSON."""
    header, data = split(good)
    header["__metadata__"][key] = value.decode() if isinstance(value, bytes) else json.dumps(value)
    if value is None:
        del header["__metadata__"][key]
    return join(folder / "damaged", header, data)


def refused(path) -> str:
    """The message, which has to be one sentence that names the file."""
    with pytest.raises(ModelFileError) as caught:
        ModelFile(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert len(message) < len(str(path)) + 350
    return message


@pytest.mark.parametrize("weight_type", WEIGHT_TYPES)
def test_the_official_library_reads_the_same_values(tmp_path, weight_type):
    path = write_file(tmp_path / "x", WEIGHTS, weight_type)
    model = ModelFile(path)
    expected = {}
    for name, tensor in WEIGHTS.items():
        expected |= weight_layouts.store(name, tensor, weight_type)
    with safe_open(path, "numpy") as official:
        assert set(official.keys()) == set(expected)
        for name, array in expected.items():
            np.testing.assert_array_equal(model.stored(name), array)
            if not name.endswith(weight_layouts.SCALE):  # the official library has no bf16 for NumPy
                np.testing.assert_array_equal(official.get_tensor(name), array)
    assert model.weight_bytes == sum(array.nbytes for array in expected.values())


@pytest.mark.parametrize("weight_type", WEIGHT_TYPES)
def test_every_tensor_comes_back_in_its_published_shape(tmp_path, weight_type):
    weights = fine_weights(SHAPES["odd-ranks"])
    model = write_and_open(tmp_path / "x", weights, weight_type)
    assert model.config == SHAPES["odd-ranks"]
    for name, tensor in weights.items():
        expected = weight_layouts.restore(name, tensor.shape, weight_layouts.store(name, tensor, weight_type))
        np.testing.assert_array_equal(model.tensor(name), expected)
        assert model.tensor(name).dtype == np.float32


def test_weights_are_mapped_read_only_and_aligned_for_the_kernels(good):
    model = ModelFile(good)
    for name in WEIGHTS:
        array = model.stored(name)
        assert not array.flags.writeable
        if array.nbytes % 64 == 0:
            assert array.ctypes.data % 64 == 0, name


def test_metadata(good):
    metadata = split(good)[0]["__metadata__"]
    assert next(iter(metadata)) == "rwkv"
    assert {key: json.loads(text) for key, text in metadata.items()} == {
        "rwkv": 1,
        "config": TINY.as_dict(),
        "quantization": {"type": "int8", "symmetric": True, "group": 64, "scale": "bf16"},
        "tokenizer": {"kind": "tokenizer.json"},
        "template": "raw",
        "sampling": {"temperature": 0.5},
        "source": {"name": "random"},
        "digest": json.loads(metadata["digest"]),
    }
    assert re.fullmatch("[0-9a-f]{64}", json.loads(metadata["digest"]))


def test_a_changed_weight_shows_in_the_digest(good, tmp_path):
    assert ModelFile(good).is_intact() is True
    header, data = split(good)
    begin = header["blocks.1.att.key.weight"]["data_offsets"][0]
    changed = data[:begin] + bytes([data[begin] ^ 1]) + data[begin + 1 :]
    assert ModelFile(join(tmp_path / "changed", header, changed)).is_intact() is False
    del header["__metadata__"]["digest"]
    assert ModelFile(join(tmp_path / "without", header, data)).is_intact() is None


@pytest.mark.parametrize(
    "tokenizer",
    [
        None,
        TokenizerSpec("world"),
        TokenizerSpec("world", "1 'ä' 2\n".encode()),
        TokenizerSpec("tokenizer.json", bytes(range(256))),
    ],
)
@pytest.mark.parametrize("weight_type", WEIGHT_TYPES)
def test_what_the_file_says_of_itself(tmp_path, tokenizer, weight_type):
    template = replace(get_template("world"), name="mine", stop=("ü",))
    info = ModelInfo(TINY, weight_type, tokenizer, template, {"top_p": 0.3}, {"name": "ü"}, "--template")
    write_model(tmp_path / "x", Weights(WEIGHTS), info)
    assert ModelFile(tmp_path / "x").info == info
    assert is_model_file(tmp_path / "x")


def test_progress_counts_weights(tmp_path):
    heard: list[tuple[int, int]] = []
    write_model(tmp_path / "x", Weights(WEIGHTS), INFO, lambda done, total: heard.append((done, total)))
    done = [d for d, _ in heard]
    assert done == sorted(done)
    assert heard[-1] == (TINY.n_params, TINY.n_params)
    assert TINY.n_params == sum(tensor.size for tensor in WEIGHTS.values())


def test_opening_reads_no_weights(tmp_path):
    """A file whose weights are a hole of 3 GB opens at once."""
    config = ModelConfig(
        n_layer=12, n_embd=4096, n_ffn=16384, vocab_size=65536, rank_w=64, rank_a=64, rank_v=32, rank_g=128
    )
    header, position = (
        {"__metadata__": model_file._metadata(ModelInfo(config, "int8", None, get_template("raw")))},
        0,
    )
    for name, shape in config.tensor_shapes().items():
        for part, (dtype, stored) in weight_layouts.stored_form(name, shape, "int8").items():
            size = int(np.prod(stored)) * {"I8": 1, "BF16": 2, "F16": 2, "F32": 4}[dtype]
            header[part] = {"dtype": dtype, "shape": stored, "data_offsets": [position, position + size]}
            position += size
    assert position > 3e9
    path = join(tmp_path / "x", header, b"")
    os.truncate(path, path.stat().st_size + position)
    tracemalloc.start()
    try:
        assert ModelFile(path).config == config
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        path.unlink()
    assert peak < 5e6


def test_a_published_safetensors_file_is_no_model_file(tmp_path, good):
    folder = write_hf(tmp_path / "hf", WEIGHTS)
    assert not is_model_file(folder / "model.safetensors")
    assert not is_model_file(tmp_path)
    assert not is_model_file(tmp_path / "missing")
    assert is_model_file(good)
    assert "another program" in refused(folder / "model.safetensors")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("rwkv", None, "another program"),
        ("rwkv", 2, "version 2 of the format and this program supports 1; update rwkv-cli"),
        ("rwkv", "1", "has no valid 'rwkv'"),
        ("rwkv", True, "has no valid 'rwkv'"),
        ("rwkv", b"1e", "has no valid 'rwkv'"),
        ("config", None, "has no valid 'config'"),
        ("config", [], "has no valid 'config'"),
        ("config", b"[" * 100_000, "has no valid 'config'"),
        ("config", {}, "config is invalid"),
        ("config", TINY.as_dict() | {"n_layer": 10**9}, "fewer tensors than layers"),
        ("config", TINY.as_dict() | {"n_layer": 10**30}, "n_layer is"),
        ("config", TINY.as_dict() | {"n_layer": 0}, "n_layer is 0"),
        ("config", TINY.as_dict() | {"n_layer": 2.0}, "n_layer is 2.0"),
        ("config", TINY.as_dict() | {"n_layer": True}, "n_layer is True"),
        ("config", TINY.as_dict() | {"n_embd": -128}, "n_embd is -128"),
        ("config", TINY.as_dict() | {"n_embd": 100}, "not a multiple of head_size"),
        ("config", TINY.as_dict() | {"head_size": 32}, "blocks.0.att.r_k shows heads of 32"),
        ("config", TINY.as_dict() | {"n_layer": 4}, "blocks.3.ln1.weight is missing"),
        ("config", TINY.as_dict() | {"n_layer": 2}, "does not account for the tensor blocks.2"),
        ("config", TINY.as_dict() | {"n_embd": 2**30}, "missing or has the wrong type or shape"),
        (
            "config",
            TINY.as_dict() | {"n_ffn": 100},
            "ffn.key.weight is missing or has the wrong type or shape",
        ),
        (
            "config",
            TINY.as_dict() | {"vocab_size": 299},
            "emb.weight is missing or has the wrong type or shape",
        ),
        ("config", TINY.as_dict() | {"rank_g": 8}, "g1 is missing or has the wrong type or shape"),
        ("config", TINY.as_dict() | {"rank_v": 0}, "v1 is missing or has the wrong type or shape"),
        (
            "config",
            TINY.as_dict() | {"more": 1},
            "config is invalid: this version does not know its field 'more'; update rwkv-cli",
        ),
        ("quantization", None, "has no valid 'quantization'"),
        ("quantization", {}, "unknown type None"),
        ("quantization", {"type": "int3"}, "unknown type 'int3'"),
        ("quantization", {"type": ["int8"]}, "unknown type"),
        (
            "quantization",
            INT8 | {"group": 128},
            "'group' '128', and this program computes int8 with '64' only",
        ),
        ("quantization", INT8 | {"group": True}, "has 'group' 'True'"),
        ("quantization", INT8 | {"symmetric": False}, "has 'symmetric' 'False'"),
        ("quantization", INT8 | {"scale": "f16"}, "has 'scale' 'f16'"),
        ("quantization", INT8 | {"zero_points": "u8"}, "has 'zero_points' 'u8'"),
        ("quantization", {"type": "int8"}, "has 'symmetric' 'None'"),
        ("quantization", {"type": "fp32"}, "missing or has the wrong type or shape"),
        ("tokenizer", None, "has no valid 'tokenizer'"),
        ("tokenizer", {"kind": "sentencepiece"}, "unknown kind, 'sentencepiece'"),
        ("tokenizer", {"kind": ["world"]}, "unknown kind"),
        ("template", None, "has no valid 'template'"),
        ("template", 7, "has no valid 'template'"),
        ("template", "later", "the template 'later', which this program does not have; update rwkv-cli"),
        ("sampling", None, "has no valid 'sampling'"),
        ("sampling", [0.5], "has no valid 'sampling'"),
        ("sampling", {"temperature": "hot"}, "sampling defaults are invalid"),
        ("sampling", {"temperature": -1}, "sampling defaults are invalid: temperature is -1"),
        ("sampling", {"temperature": 10**400}, "sampling defaults are invalid"),
        ("sampling", b'{"temperature": NaN}', "sampling defaults are invalid"),
        ("sampling", {"warmth": 1}, "sampling defaults are invalid"),
        ("sampling", {"logit_bias": 1}, "sampling defaults are invalid"),
        ("sampling", {"banned": 1}, "sampling defaults are invalid"),
        ("source", None, "has no valid 'source'"),
        ("source", 1, "has no valid 'source'"),
    ],
    ids=str,
)
def test_metadata_that_cannot_be_right_are_refused(good, tmp_path, key, value, message):
    path = with_metadata(good, tmp_path, key, value)
    assert message in refused(path)


def test_fields_of_a_later_version_that_ask_for_nothing_are_ignored(good, tmp_path):
    path = with_metadata(good, tmp_path, "config", TINY.as_dict() | {"more": 0, "parts": []})
    assert ModelFile(path).info == ModelFile(good).info


def test_a_tokenizer_that_is_announced_and_not_there_is_refused(tmp_path):
    path = write_file(tmp_path / "x", WEIGHTS)
    assert "missing" in refused(with_metadata(path, tmp_path, "tokenizer", {"kind": "tokenizer.json"}))


def test_every_tensor_is_needed(good, tmp_path):
    header, data = split(good)
    tensors = {name: entry for name, entry in header.items() if name not in ("__metadata__", "tokenizer")}
    for name in tensors:
        without = {key: entry for key, entry in header.items() if key != name}
        # In its place lies another tensor of the same size, so that the file as a whole stays sound.
        message = refused(join(tmp_path / "damaged", without | {"another": header[name]}, data))
        assert f"the tensor {name} is missing or has the wrong type or shape" in message


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("head.weight", {"dtype": "U8"}),
        ("head.weight.scale", {"dtype": "F16"}),
        ("blocks.1.att.w0", {"dtype": "I32"}),
        ("blocks.1.att.w1", {"dtype": "U8"}),
        ("blocks.1.att.w0", {"shape": [1, 128]}),
        ("blocks.1.att.r_k", {"shape": [128]}),
        ("emb.weight", {"shape": [128, 300]}),
    ],
)
def test_a_tensor_of_another_type_or_shape_is_refused(good, tmp_path, name, change):
    header, data = split(good)
    header[name] |= change
    assert f"the tensor {name} is missing or has the wrong type or shape" in refused(
        join(tmp_path / "damaged", header, data)
    )


def test_a_truncated_file_is_refused(good, tmp_path):
    content, path = good.read_bytes(), tmp_path / "damaged"
    for length in (0, 7, 8, 100, 5000, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        refused(path)
    path.write_bytes(content + b"\0")
    assert "after its last tensor" in refused(path)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_header_is_read_or_refused(good, tmp_path, data):
    content = bytearray(good.read_bytes())
    end = 8 + int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "damaged").write_bytes(content)
    with contextlib.suppress(ModelFileError):
        ModelFile(tmp_path / "damaged")


def test_a_path_without_a_file(tmp_path):
    assert "there is no file" in refused(tmp_path / "missing")
    assert "cannot read" in refused(tmp_path)


class Failing(Weights):
    """A checkpoint whose last tensor cannot be read."""

    error: BaseException = CheckpointError("it ends early")

    def tensor(self, name):
        if name == "head.weight":
            raise self.error
        return super().tensor(name)


@pytest.mark.parametrize("error", [CheckpointError("it ends early"), KeyboardInterrupt(), MemoryError()])
@pytest.mark.parametrize("before", [None, b"the old one"])
def test_a_failure_in_the_middle_leaves_everything_as_it_was(tmp_path, error, before):
    path = tmp_path / "x"
    if before:
        path.write_bytes(before)
    source = Failing(WEIGHTS)
    source.error = error
    with pytest.raises(type(error)):
        write_model(path, source, INFO)
    assert [p.name for p in tmp_path.iterdir()] == (["x"] if before else [])
    assert not before or path.read_bytes() == before


def test_values_that_do_not_fit_leave_nothing(tmp_path):
    weights = WEIGHTS | {"head.weight": WEIGHTS["head.weight"] * np.float32(1e30)}
    with pytest.raises(UnsupportedModelError, match="too large for fp16"):
        write_file(tmp_path / "x", weights, "fp16")
    assert not list(tmp_path.iterdir())


def test_a_source_whose_tensor_is_not_as_announced_leaves_nothing(tmp_path):
    class Lying(Weights):
        def tensor(self, name):
            return np.zeros((7, 64), np.float32) if name == "head.weight" else super().tensor(name)

    with pytest.raises(ValueError, match=r"head\.weight is I8"):
        write_model(tmp_path / "x", Lying(WEIGHTS), INFO)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("change", [{"head_size": 32}, {"n_ffn": 96}], ids=str)
def test_sizes_without_a_kernel_are_refused_and_leave_nothing(tmp_path, change):
    config = ModelConfig(**TINY.as_dict() | change)
    with pytest.raises(UnsupportedModelError, match="should be"):
        write_file(tmp_path / "x", fine_weights(config))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(StorageError, match="does not exist") as caught:
        write_file(tmp_path / "missing" / "x", WEIGHTS)
    assert isinstance(caught.value, RwkvError)


def test_one_tensor_at_a_time_is_in_memory(tmp_path):
    config = ModelConfig(
        n_layer=8, n_embd=256, n_ffn=1024, vocab_size=500, rank_w=16, rank_a=16, rank_v=16, rank_g=16
    )

    class Zeros(Weights):
        def __init__(self):
            self.config = config

        def tensor(self, name):
            return np.zeros(config.tensor_shapes()[name], np.float32)

    tracemalloc.start()
    try:
        write_model(tmp_path / "x", Zeros(), ModelInfo(config, "int8", None, get_template("raw")))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    largest = 4 * config.n_ffn * config.n_embd
    assert (
        peak < 5 * largest < 4 * config.n_params / 4
    )  # the tensor, its quotient, its rounding and what is stored
