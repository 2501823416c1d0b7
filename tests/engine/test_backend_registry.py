"""Which backend is chosen, and why; GPUs are made up."""

import ctypes
import subprocess
import sys
from contextlib import contextmanager

import pytest
from helpers.models import write_and_open
from helpers.writers import random_weights

from rwkv_cli import load
from rwkv_cli.engine.backends import cuda, registry
from rwkv_cli.engine.gpu import probe
from rwkv_cli.errors import DeviceError, UsageError
from rwkv_cli.files.model_file import ModelFile
from rwkv_cli.reporting import Reporter

GPU = probe.GpuFacts("NVIDIA H100", (9, 0), 80 * 10**9, "13.0")


@pytest.fixture
def gpu(monkeypatch):
    """Put a GPU into this machine, with the backend installed."""

    def put(**facts):
        found = GPU._replace(**facts)
        monkeypatch.setattr(probe, "gpus", lambda: (found,))
        monkeypatch.setattr(probe, "is_backend_installed", lambda: True)

    return put


@pytest.fixture
def failing(monkeypatch):
    """Have the GPU say that it cannot."""

    def fail(*_):
        raise DeviceError("NVIDIA H100 has too little memory")

    monkeypatch.setattr(cuda, "open_cuda", fail)


class Heard(Reporter):
    """Notes that were heard."""

    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def test_without_a_gpu():
    assert registry.select("auto", "int8") == ("cpu", "there is no NVIDIA GPU")


def test_with_one(gpu):
    gpu()
    assert registry.select("auto", "int8").device == "cuda"
    for device in ("cuda", "cpu", "reference"):
        assert registry.select(device, "int8") == (device, "chosen by name")


@pytest.mark.parametrize(
    ("facts", "weight_type", "weight_bytes", "reason"),
    [
        ({}, "fp32", 10, "the GPU has no kernels for fp32 weights"),
        ({}, "int8", 81 * 10**9, "NVIDIA H100 has too little memory for this model"),
        (
            {"capability": (7, 0)},
            "int8",
            10,
            "NVIDIA H100 is too old: it has compute capability 7.0, and 7.5 is needed",
        ),
    ],
)
def test_one_that_cannot_run_the_model(gpu, facts, weight_type, weight_bytes, reason):
    gpu(**facts)
    assert registry.select("auto", weight_type, weight_bytes) == ("cpu", reason)
    assert registry.select("cuda", weight_type, weight_bytes).device == "cuda"


def test_one_without_the_packages(gpu, monkeypatch):
    gpu()
    monkeypatch.setattr(probe, "is_backend_installed", lambda: False)
    assert registry.select("auto", "int8") == ("cpu", probe.NOT_INSTALLED)


def test_a_name_that_nothing_has():
    for function in (
        registry.check,
        lambda name: registry.select(name, "int8"),
        lambda name: registry.open_backend(name, None),
    ):
        with pytest.raises(UsageError, match="one of auto, cuda, cpu, reference"):
            function("abacus")


def test_cuda_that_cannot_run_is_a_sentence(rwkv, tiny_model):
    result = rwkv("generate", "-m", tiny_model, "-p", "a", "-n", "1", "--device", "cuda")
    assert (result.code, result.sentence) == (1, "there is no NVIDIA GPU")


def test_fp32_on_cuda_is_a_sentence(gpu, tmp_path):
    gpu()
    with pytest.raises(DeviceError, match="no kernels for fp32"):
        registry.open_backend("cuda", write_and_open(tmp_path / "x", random_weights(), "fp32"))


@pytest.mark.usefixtures("failing")
def test_auto_goes_on_with_the_cpu_where_the_gpu_fails(gpu, tiny_model):
    gpu()
    created = registry.open_backend("auto", ModelFile(tiny_model))
    assert (created.backend.name, created.selection) == ("cpu", ("cpu", "NVIDIA H100 has too little memory"))
    heard = Heard()
    assert load(tiny_model, reporter=heard).backend.name == "cpu"
    assert heard.notes == ["computing on the CPU: NVIDIA H100 has too little memory"]


@pytest.mark.usefixtures("failing")
def test_cuda_by_name_does_not(gpu, tiny_model):
    gpu()
    with pytest.raises(DeviceError, match="too little memory"):
        load(tiny_model, "cuda")


def test_the_gpu_is_used_and_says_what_it_compiles(gpu, tiny_model, monkeypatch):
    gpu()
    heard = []

    class Fake:
        name = "cuda"

    @contextmanager
    def compiling(processor):
        heard.append(processor)
        yield

    def open_cuda(model, compiling, _index):
        with compiling():
            heard.append(model.path)
        return Fake()

    monkeypatch.setattr(cuda, "open_cuda", open_cuda)
    created = registry.open_backend("auto", ModelFile(tiny_model), compiling=compiling)
    assert (created.backend.name, created.selection.device, created.failure) == ("cuda", "cuda", None)
    assert heard == ["GPU", tiny_model]


def test_a_machine_without_a_gpu_imports_nothing_of_nvidia(tiny_model):
    code = (
        "import sys, rwkv_cli\n"
        f"rwkv_cli.load({str(tiny_model)!r})\n"
        "print([name for name in sys.modules if name.split('.')[0] == 'cuda'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_backend_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "rwkv_cli.engine.gpu.device", None)
    with pytest.raises(DeviceError, match="the CUDA backend is not installed: in the folder"):
        cuda.open_cuda(None)


def test_info_says_why(rwkv, gpu, tiny_model):
    assert "cannot run: there is no NVIDIA GPU" in rwkv("info", tiny_model).out
    gpu()
    shown = rwkv("info", tiny_model).out
    assert "NVIDIA H100, compute capability 9.0, 80.0 GB, driver for CUDA 13.0" in shown
    assert "the fastest backend on this machine" in shown
    assert "cannot run" not in shown


# ----------------------------------------------------------------------------------------------------- the driver


class Library:
    """A driver with some GPUs."""

    def __init__(self, count=2, code=0):
        self.cuInit = lambda _: code
        self.cuDriverGetVersion = lambda version: self.put(version._obj, 12040)
        self.cuDeviceGetCount = lambda found: self.put(found._obj, count)
        self.cuDeviceGet = lambda device, index: self.put(device._obj, 10 + index)
        self.cuDeviceGetName = lambda name, _, device: self.put(name, f"GPU {device.value}".encode())
        self.cuDeviceGetAttribute = lambda found, which, _: self.put(found._obj, {75: 8, 76: 6}[which])
        self.cuDeviceTotalMem_v2 = lambda size, _: self.put(size._obj, 24 * 10**9)

    @staticmethod
    def put(target, value):
        target.value = value
        return 0


GPUS = probe.gpus.__wrapped__  # before a fixture hides it


def test_what_the_driver_tells(monkeypatch):
    monkeypatch.setattr(probe, "_library", Library)
    found = GPUS()
    assert found == tuple(probe.GpuFacts(f"GPU {i}", (8, 6), 24 * 10**9, "12.4") for i in (10, 11))


@pytest.mark.parametrize(
    ("library", "reason"),
    [
        (None, "there is no NVIDIA GPU"),
        (Library(count=0), "there is no NVIDIA GPU"),
        (Library(code=100), "there is no NVIDIA GPU"),
        (Library(code=999), "the NVIDIA driver cannot be used: cuInit gave 999"),
    ],
)
def test_a_driver_that_has_none(monkeypatch, library, reason):
    monkeypatch.setattr(probe, "_library", lambda: library)
    with pytest.raises(DeviceError, match=reason):
        GPUS()


def test_a_machine_without_a_driver(monkeypatch):
    def missing(*_):
        raise OSError

    monkeypatch.setattr(ctypes, "CDLL", missing)
    monkeypatch.setattr(ctypes, "WinDLL", missing, raising=False)
    assert probe._library() is None


def test_several_devices(monkeypatch):
    monkeypatch.setattr(probe, "gpus", lambda: (GPU, GPU))
    assert registry.expand("all") == ["cuda:0", "cuda:1"]
    assert registry.expand("cuda:1, cuda:0") == ["cuda:1", "cuda:0"]
    assert registry.expand("cpu,cpu") == ["cpu", "cpu"]
    assert registry.expand("auto") == ["auto"]
    for wrong in ("cuda:0,abacus", "cuda:0,cuda:0", "", "cuda:x", "cuda:-1"):
        with pytest.raises(UsageError):
            registry.expand(wrong)


def test_a_gpu_by_its_number(gpu, monkeypatch, tiny_model):
    gpu()
    monkeypatch.setattr(probe, "gpus", lambda: (GPU, GPU))
    opened = []
    monkeypatch.setattr(cuda, "open_cuda", lambda _model, _compiling, index: opened.append(index))
    for device in ("cuda", "cuda:0", "cuda:1"):
        registry.open_backend(device, ModelFile(tiny_model))
    assert opened == [0, 0, 1]
    with pytest.raises(DeviceError, match="there is no GPU 2: this machine has 2, which are counted from 0"):
        registry.open_backend("cuda:2", ModelFile(tiny_model))
