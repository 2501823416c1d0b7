"""What the host reads from the CUDA sources, and that it agrees with what the host says of the same things."""

import numpy as np
import pytest

from rwkv_cli.config import HEAD_SIZE
from rwkv_cli.engine import sampling
from rwkv_cli.engine.gpu import kernel_sources, weights
from rwkv_cli.engine.gpu.launch_plan import Launch
from rwkv_cli.errors import DeviceError
from rwkv_cli.files import weight_layouts

GATHER = {"from": 1, "ends": 2, "to": 3, "C": 64}


def test_a_launch_orders_its_arguments():
    launch = Launch("gather", (1,), 32, dict(reversed(GATHER.items())))
    assert launch.values == (1, 2, 3, 64)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({**GATHER, "T": 5}, "the kernel gather: missing arguments: none; unknown: T"),
        ({"from": 1, "ends": 2, "to": 3}, "the kernel gather: missing arguments: C; unknown: none"),
        ({"from": 1, "end": 2, "to": 3, "C": 64}, "the kernel gather: missing arguments: ends; unknown: end"),
    ],
)
def test_a_wrong_argument_fails_at_once(arguments, said):
    with pytest.raises(TypeError, match=said):
        Launch("gather", (1,), 32, arguments)


def test_an_unknown_kernel_fails_at_once():
    with pytest.raises(TypeError, match="unknown kernel scatter: there are activate_low, "):
        Launch("scatter", (1,), 32, GATHER)


def test_parameters_have_types_and_names():
    assert kernel_sources.kernels()["gather"] == kernel_sources.Kernel(
        "gather", "gather.cu", {"from": "const float*", "ends": "const int*", "to": "float*", "C": "int"}
    )
    assert kernel_sources.kernels()["wkv7"].parameters["state_size"] == "long long"


def test_every_kernel_is_found():
    for name in kernel_sources.operations():
        declared = kernel_sources.source(name).count("__global__ void")
        assert declared == sum(kernel.file == name for kernel in kernel_sources.kernels().values()) > 0


@pytest.mark.parametrize(
    ("weight_type", "channels", "together", "bytes_of_a_group"),
    [("fp16", 256, 1, 388), ("int8", 256, 4, 900), ("int4", 512, 4, 1412)],
)
def test_constants_depend_on_the_type_of_the_weights(weight_type, channels, together, bytes_of_a_group):
    found = kernel_sources.constants("value.cu", weight_type)
    names = "CHANNELS", "TOGETHER", "GROUP_BYTES", "THREADS"
    assert [found[name] for name in names] == [channels, together, bytes_of_a_group, 512]


def test_constants_are_whole_numbers():
    found = kernel_sources.constants("heads.cu")
    assert found["THREADS"] == 512
    assert found["ALL_LANES"] == 0xFFFFFFFF
    assert not {"DECAY_SCALE", "INFINITE", "GROUP_NORM_EPSILON"} & found.keys()


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("0xff", 255),
        ("0xffu", 255),
        ("(A == 3 ? 7 : 8 * B)", 7),
        ("(1 + (A == 2 ? 7 : 8 * B))", 17),
        ("(A * 16 / 5)", 9),
        ("2.5f", None),
        ("64e-5f", None),
        ("f(A)", None),
    ],
)
def test_constant_expressions(expression, value):
    assert kernel_sources._evaluated(expression, {"A": 3, "B": 2}) == value


def test_structs_have_the_layout_of_the_compiler():
    request = kernel_sources.structure("sampling.cuh", "Request")
    assert request.itemsize == 56
    assert {name: (str(kind), offset) for name, (kind, offset) in request.fields.items()} == {
        "token": ("int32", 0),
        "n": ("int32", 4),
        "changes": ("uint64", 8),
        "mask": ("uint64", 16),
        "random": ("float64", 24),
        "log_min_p": ("float64", 32),
        "temperature": ("float32", 40),
        "top_p": ("float32", 44),
        "top_k": ("int32", 48),
        "row": ("int32", 52),
    }
    assert kernel_sources.structure("sampling.cuh", "Choice") == np.dtype(
        [("token", np.int32), ("logprob", np.float32)], align=True
    )


def test_host_and_kernels_agree():
    common, sample = kernel_sources.constants("common.cuh"), kernel_sources.constants("sample.cu")
    assert (common["HEAD"], common["GROUP"]) == (HEAD_SIZE, weight_layouts.GROUP)
    assert kernel_sources.constants("weights.cu")["TILE_ROWS"] == weight_layouts.TILE_ROWS
    reasons = sampling.NOT_A_NUMBER, sampling.NOTHING_LEFT
    assert (sample["NOT_A_NUMBER"], sample["NOTHING_LEFT"]) == reasons
    assert sample["PARTS"] == common["LANES"]
    assert kernel_sources.constants("mix.cu")["MOST_CHANNELS"] == 4096


def test_another_order_of_vectors_is_noticed(monkeypatch):
    weights._check_vectors()
    monkeypatch.setattr(weights, "VECTORS", weights.VECTORS[::-1])
    with pytest.raises(AssertionError, match=r"cuda/vectors\.cuh has the order"):
        weights._check_vectors()


def test_other_types_have_no_kernels():
    with pytest.raises(DeviceError, match="the GPU has no kernels for fp32 weights"):
        kernel_sources.constants("value.cu", "fp32")


def test_kernels_that_overlap_with_the_previous_one_restrict_no_pointer():
    """See cuda/common.cuh: their reads would move across the wait."""
    for name in kernel_sources.operations():
        text = (kernel_sources.folder() / name).read_text()
        assert ("__restrict__" in text) != ("wait_for_previous();" in text), name
