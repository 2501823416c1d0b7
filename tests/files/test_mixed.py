"""Files with int4 and int8 matrices: each has the type that it has alone, on every backend."""

import json

import numpy as np
import pytest
from helpers.emulated_gpu import COMPILER, EmulatedGpu, build, few_threads
from helpers.models import SHAPES, difference, fine_weights, some_tokens, write_and_open
from helpers.naive import Int8Reference
from helpers.writers import TINY

from rwkv_cli.engine.backends.cpu import CpuBackend
from rwkv_cli.engine.backends.cuda import CudaBackend
from rwkv_cli.engine.state import State
from rwkv_cli.errors import ModelFileError
from rwkv_cli.files import weight_layouts
from rwkv_cli.files.mixed import Mix, Widened
from rwkv_cli.files.model_file import ModelFile

INT8 = 0.06
"""Of the scale: see engine/test_cpu.py."""

HALF = 2e-3
"""Of the scale: tensor cores take their inputs in float16."""


def files(folder, config=TINY):
    """The same model in int8 and in int4."""
    weights = fine_weights(config)
    return tuple(write_and_open(folder / kind, weights, kind) for kind in ("int8", "int4"))


def some_narrow(config):
    """Of the three matrices that are read together, of the channel mix, and of everything else, some."""
    names = [name for name in config.tensor_shapes() if weight_layouts.can_be_narrow(name)]
    return names[1::2]


@pytest.fixture
def mixed(tmp_path):
    int8, int4 = files(tmp_path)
    Mix(int8, int4, some_narrow(TINY)).write(tmp_path / "mixed")
    return ModelFile(tmp_path / "mixed"), int8, int4


def test_what_is_written_is_read(mixed):
    model, int8, int4 = mixed
    assert model.info.weight_type == "mixed"
    assert model.info.narrow == {*some_narrow(TINY)}
    assert model.is_intact()
    for name in TINY.tensor_shapes():
        source = int4 if name in model.info.narrow else int8
        np.testing.assert_array_equal(model.tensor(name), source.tensor(name), err_msg=name)
    assert int4.weight_bytes < model.weight_bytes < int8.weight_bytes
    sizes = weight_layouts.stored_bytes(TINY, "mixed", model.info.narrow)
    assert sum(sizes.values()) == model.weight_bytes


def test_each_mix_has_a_label_of_its_own(mixed):
    model, int8, int4 = mixed
    assert model.info.label.startswith("mixed-")
    assert Mix(int8, int4, some_narrow(TINY)[:1]).info.label != model.info.label
    assert int8.info.label == "int8"


@pytest.mark.parametrize("name", ["tiny", "odd-ranks", "narrow-ffn"])
def test_the_cpu_computes_each_matrix_in_its_type(tmp_path, name):
    int8, int4 = files(tmp_path, SHAPES[name])
    Mix(int8, int4, some_narrow(SHAPES[name])).write(tmp_path / "mixed")
    model = ModelFile(tmp_path / "mixed")
    tokens = some_tokens(model.config, 80)
    found = CpuBackend(model).forward_all(tokens, State.zeros(model.config))
    expected = Int8Reference(model).forward_all(tokens, State.zeros(model.config))
    assert difference(found, expected) <= INT8
    view = CpuBackend(Mix(int8, int4, model.info.narrow))  # of two files: the same model
    np.testing.assert_array_equal(view.forward_all(tokens, State.zeros(model.config)), found)
    assert CpuBackend(model).bytes_per_token < CpuBackend(int8).bytes_per_token


def test_in_int8_not_a_weight_changes(mixed):
    model, int8, _ = mixed
    wide = Widened(model)
    assert wide.weight_bytes == int8.weight_bytes
    for name in TINY.tensor_shapes():
        np.testing.assert_array_equal(wide.tensor(name), model.tensor(name), err_msg=name)


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler is here to emulate a GPU with")
def test_a_gpu_runs_it_in_int8(mixed):
    with few_threads():
        backend = CudaBackend(Widened(mixed[0]), EmulatedGpu(build("int8")))
        tokens = some_tokens(TINY, 9)
        found = backend.forward_all(tokens, State.zeros(TINY))
    expected = CpuBackend(mixed[0]).forward_all(tokens, State.zeros(TINY))
    assert difference(found, expected) <= INT8


def test_other_programs_are_told_the_type(mixed, monkeypatch):
    """A program that does not know mixed files names the type, and does not take it for another."""
    monkeypatch.setattr(weight_layouts, "MIXED", "unknown")
    with pytest.raises(ModelFileError, match="unknown type 'mixed'"):
        ModelFile(mixed[0].path)


def test_only_matrices_may_be_int4(mixed):
    path = mixed[0].path
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["emb.weight"]["dtype"] = "U8"
    changed = json.dumps(header, separators=(",", ":")).encode().ljust(length)
    assert len(changed) == length
    path.write_bytes(data[:8] + changed + data[8 + length :])
    with pytest.raises(ModelFileError, match=r"the tensor emb.weight is missing or has the wrong type"):
        ModelFile(path)
