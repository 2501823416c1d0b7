"""`rwkv warm-up`: what the first runs would compile is in the cache afterwards, or it fails."""

import json
import sys

import pytest

from cpu_kernels import runtime
from cpu_kernels.runtime import aot, cache, compiler, prebuilt
from rwkv_cli.engine import warm_up
from rwkv_cli.engine.gpu import kernel_sources, nvrtc, probe


@pytest.fixture
def place(tmp_path, monkeypatch, rwkv):  # noqa: ARG001  # which compiles into the cache of all tests
    """An empty cache; of the CPU kernels only one, which compiles fast."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("RWKV_CACHE_DIR", str(folder))
    monkeypatch.setattr(cache, "CACHE_DIR", str(folder))
    monkeypatch.setattr(compiler, "ENTRY_POINTS", {"trie.pack": 4})
    monkeypatch.setattr(prebuilt, "FOLDER", tmp_path / "prebuilt")
    forget(monkeypatch)
    yield folder
    aot._kernel.cache_clear()


def forget(monkeypatch):
    """As in a new process."""
    aot._kernel.cache_clear()
    cache._warn.cache_clear()
    monkeypatch.setattr(warm_up, "why_no_gpu", lambda: "there is no NVIDIA GPU")


def failure(done):
    """The exit code of a command that failed, and the sentence that follows what it said of its progress."""
    assert done.out == ""
    return done.code, done.err.splitlines()[-1]


def test_kernels_are_compiled_once_and_named(rwkv, place, monkeypatch):
    done = rwkv("warm-up", "--json")
    assert (done.code, done.err) == (0, "")
    facts = json.loads(done.out)
    assert facts["folder"] == str(place)
    assert facts["cpu"]["folder"] == str(cache.folder())
    assert [path.name for path in cache.folder().iterdir()] == ["trie.pack"]
    assert (facts["cpu"]["new"], facts["gpu"], facts["problem"]) == (True, None, "there is no NVIDIA GPU")
    forget(monkeypatch)
    assert json.loads(rwkv("warm-up", "--json").out)["cpu"]["new"] is False
    shown = rwkv("warm-up").out
    assert f"already compiled for {facts['cpu']['target']}, in {cache.folder()}" in shown
    assert "RWKV_CACHE_DIR" in shown


def test_nothing_is_left_to_compile(rwkv, place, monkeypatch):
    rwkv("warm-up")
    forget(monkeypatch)
    monkeypatch.setattr(aot.isolated, "compiled", lambda jobs: pytest.fail(f"{jobs} are compiled again"))
    aot.kernel("trie.pack")
    assert place.is_dir()


def test_what_came_with_the_installation_needs_no_cache(rwkv, place, monkeypatch):
    if prebuilt.target() is None:
        pytest.skip("nothing is built beforehand for this CPU")
    monkeypatch.setattr(prebuilt, "ENTRY_POINTS", {"trie.pack": 4})
    prebuilt.build([prebuilt.target()])
    facts = json.loads(rwkv("warm-up", "--json").out)["cpu"]
    assert facts["folder"] == str(prebuilt.FOLDER / prebuilt.target())
    assert facts["new"] is False
    assert not place.exists()


def test_a_cache_that_cannot_be_written_is_a_failure(rwkv, place):
    place.parent.mkdir(exist_ok=True)
    place.touch()
    assert failure(rwkv("warm-up")) == (
        1,
        f"rwkv: the kernels cannot be kept in the cache folder {place}: "
        "set RWKV_CACHE_DIR to a folder that can be written",
    )


def test_kernels_for_a_gpu_that_is_not_here(rwkv, place, monkeypatch):
    compiled = []
    monkeypatch.setattr(probe, "is_backend_installed", lambda: True)
    monkeypatch.setattr(
        nvrtc, "compile_all", lambda *key: compiled.append(key) or key[2].mkdir(parents=True, exist_ok=True)
    )
    facts = json.loads(rwkv("warm-up", "--gpu", "12.0", "--json").out)
    assert compiled == [(kind, "120", place / "cuda") for kind in kernel_sources.KINDS]
    assert facts["gpu"] == {"target": "compute capability 12.0", "folder": str(place / "cuda"), "new": True}
    assert json.loads(rwkv("warm-up", "--gpu", "12.0", "--json").out)["gpu"]["new"] is False
    assert len(compiled) == len(kernel_sources.KINDS)


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("gpu", "code", "sentence"),
    [
        ("5.0", 1, "such a GPU is too old: it has compute capability 5.0, and 7.5 is needed"),
        ("sm_90", 2, "--gpu is 'sm_90': it must be a compute capability, such as 9.0"),
        ("9", 2, "--gpu is '9': it must be a compute capability, such as 9.0"),
    ],
)
def test_a_gpu_that_cannot_be_meant(rwkv, gpu, code, sentence):
    assert failure(rwkv("warm-up", "--gpu", gpu)) == (code, f"rwkv: {sentence}")


@pytest.mark.usefixtures("place")
def test_without_the_packages_for_gpus(rwkv, monkeypatch):
    monkeypatch.setattr(probe, "is_backend_installed", lambda: False)
    assert failure(rwkv("warm-up", "--gpu", "9.0")) == (1, f"rwkv: {probe.NOT_INSTALLED}")


@pytest.mark.usefixtures("place")
def test_a_gpu_that_the_compiler_does_not_know(rwkv):
    pytest.importorskip("cuda.core", reason="the CUDA backend is not installed")
    code, sentence = failure(rwkv("warm-up", "--gpu", "99.9"))
    assert code == 1
    assert sentence.startswith("rwkv: the kernels for compute capability 99.9 cannot be compiled: ")


def test_the_cpu_kernels_cannot_run(rwkv, monkeypatch):
    monkeypatch.setitem(sys.modules, "cpu_kernels.runtime.aot", None)
    monkeypatch.delattr(runtime, "aot")
    assert rwkv("warm-up").sentence.startswith("the CPU kernels cannot run: ")
