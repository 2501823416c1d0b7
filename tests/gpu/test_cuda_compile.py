"""The CUDA sources compile for every architecture and type of weights, without a GPU, and what was compiled is kept."""

import pytest

from rwkv_cli.engine.gpu import kernel_sources, nvrtc
from rwkv_cli.errors import DeviceError

pytest.importorskip("cuda.core", reason="the CUDA backend is not installed")

ARCHITECTURES = ("75", "80", "86", "89", "90", "100", "120")


@pytest.mark.parametrize("weight_type", kernel_sources.KINDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_operation_compiles(architecture, weight_type):
    codes = {
        name: nvrtc.compile_operation(name, weight_type, architecture).code
        for name in kernel_sources.operations()
    }
    assert all(len(code) > 1000 for code in codes.values())
    for kernel in kernel_sources.kernels().values():
        assert kernel.name.encode() in codes[kernel.file]


def test_what_was_compiled_is_kept(tmp_path):
    from cuda.core.utils import FileStreamProgramCache

    first, second = kernel_sources.operations()[:2]
    with FileStreamProgramCache(tmp_path) as cache:
        made = nvrtc.compile_operation(first, "int8", "90", cache)

    with FileStreamProgramCache(tmp_path) as cache:
        assert nvrtc.compile_operation(first, "int8", "90", cache).code == made.code
        assert len(cache) == 1
        nvrtc.compile_operation(second, "int8", "90", cache)
        nvrtc.compile_operation(first, "int4", "90", cache)
        nvrtc.compile_operation(first, "int8", "80", cache)
        assert len(cache) == 4


def test_without_a_folder_it_is_compiled_all_the_same(tmp_path):
    (tmp_path / "file").touch()
    kept = nvrtc.compile_all("fp16", "90", tmp_path / "folder")
    made = nvrtc.compile_all("fp16", "90", tmp_path / "file" / "folder")
    assert {name: code.code for name, code in made.items()} == {
        name: code.code for name, code in kept.items()
    }
    assert list(kept) == kernel_sources.operations()


def test_fp32_weights_have_no_kernels():
    with pytest.raises(DeviceError, match="the GPU has no kernels for fp32 weights"):
        nvrtc.load("fp32", "90")
