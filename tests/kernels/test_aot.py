"""Entry points as machine code: files of the cache, also damaged ones, and a run without Numba."""

import inspect
import os
import re
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import llvmlite.binding as llvm
import numpy as np
import pytest

from cpu_kernels.abi import EMPTY
from cpu_kernels.runtime import aot, cache, compiler, host, isolated, prebuilt
from cpu_kernels.runtime.aot import kernel
from cpu_kernels.runtime.compiler import ENTRY_POINTS

SMALL = "trie.pack"
"""An entry point that compiles fast."""

PACK = """
import sys
import numpy as np
from pathlib import Path
from cpu_kernels.runtime import isolated, prebuilt
from cpu_kernels.runtime.aot import kernel
prebuilt.FOLDER = Path("nowhere")
compiled, compile = [], isolated.compiled
isolated.compiled = lambda jobs: compiled.extend(jobs) or compile(jobs)
packed, edges = np.full((2, 4, 2), -1, np.int32)
edges[1] = 97, 1
kernel("trie.pack")(packed, 4, edges, 4)
assert sorted(packed.tolist()) == [[-1, -1]] * 3 + [[97, 1]]
print(len(compiled) > 0)
assert "numba" not in sys.modules
"""

GENERATE = """
import sys
from rwkv_cli.cli.main import main
sys.argv = ["rwkv", "generate", "-p", "Once", "-n", "2", "-m", sys.argv[1]]
try:
    main()
except SystemExit as exit:
    assert not exit.code
print(sorted({"numba", "rich"} & set(sys.modules)))
"""


def python(code: str, *arguments, place: Path | None = None) -> subprocess.CompletedProcess:
    """Run a program in a process of its own, with another cache folder if it is given one."""
    environment = os.environ | ({"RWKV_CACHE_DIR": str(place)} if place else {})
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def is_compiled_by(place: Path) -> bool:
    """Whether a process with this cache has to compile the small entry point; it works in any case."""
    done = python(PACK, place=place)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout == "True\n"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty cache, of this process too, and nothing that was built beforehand."""
    monkeypatch.setattr(cache, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(prebuilt, "FOLDER", tmp_path / "prebuilt")
    cache._warn.cache_clear()
    return tmp_path


@pytest.fixture(scope="module")
def code() -> bytes:
    """The machine code of the small entry point."""
    return compiler.compile_entry_point(SMALL)


def compiled(*names: str) -> dict[str, bytes]:
    """The machine code of entry points, from a process of its own."""
    [codes] = isolated.compiled([aot._job(names)])
    return codes


# --- machine code ---------------------------------------------------------------------------------------------------


def test_a_warm_run_does_without_numba(tiny_model):
    for name in ENTRY_POINTS:
        kernel(name)
    done = python(GENERATE, tiny_model)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("[]\n")


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_an_entry_point_has_as_many_arguments_as_the_table_says(name):
    module, function = name.split(".")
    found = getattr(import_module(f"cpu_kernels.{module}"), function)
    assert len(inspect.signature(found).parameters) == ENTRY_POINTS[name]


def undefined(code: bytes) -> set[str]:
    """The undefined symbols of an object file in ELF."""
    if code[:4] != b"\x7fELF":
        pytest.skip("this system has another format of object files")
    sections = {section.name(): section.data() for section in llvm.ObjectFileRef.from_data(code).sections()}
    names, found = sections[b".strtab"], set()
    for name, _info, _other, section, _value, _size in struct.iter_unpack("<IBBHQQ", sections[b".symtab"]):
        if name and section == 0:
            found.add(names[name : names.index(b"\0", name)].decode())
    return found


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_machine_code_needs_the_system_alone(name):
    kernel(name)
    content = aot._stored(name)
    assert content is not None
    assert undefined(content) <= compiler.LIBRARY


def prints(n):
    print(n)


def allocates(n):
    return np.arange(n)[::-1].copy().sum()


@pytest.mark.parametrize(("function", "missing"), [(prints, "PyObject_Str"), (allocates, "NRT_")])
def test_what_is_compiled_by_is_refused_before_it_is_loaded(monkeypatch, function, missing):
    monkeypatch.setitem(sys.modules, "cpu_kernels.needy", SimpleNamespace(function=function))
    monkeypatch.setitem(ENTRY_POINTS, "needy.function", 1)
    with pytest.raises(RuntimeError, match=f"^needy.function needs what only Numba has: .*{missing}"):
        compiler.compile_entry_point("needy.function")


def test_an_array_stands_for_its_address():
    tables = [np.full((4, 2), EMPTY, np.int32) for _ in range(2)]
    edges = np.array([[5, 6], [EMPTY, 0]], np.int32)
    assert kernel(SMALL)(tables[0], 4, edges, 2) == 0
    assert kernel(SMALL)(aot.address(tables[1]), np.int64(4), aot.address(edges), 2) == 0
    assert [5, 6] in tables[0].tolist()
    np.testing.assert_array_equal(*tables)


def test_an_array_that_is_not_contiguous_is_refused():
    edges = np.full((4, 4), EMPTY, np.int32)
    with pytest.raises(ValueError, match="a kernel needs a contiguous array"):
        kernel(SMALL)(edges[:, :2], 4, edges[:, 2:], 4)
    with pytest.raises(TypeError):
        kernel(SMALL)(edges, 4, edges)


def test_an_interrupt_while_arguments_are_converted_stays_an_interrupt():
    class Interrupted:
        def __int__(self):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kernel(SMALL)(Interrupted(), 4, 0, 0)


# --- away from the settings of Numba ---------------------------------------------------------------------------------

SETTINGS = [
    {"OPT": "0"},
    {"OPT": "junk", "NUM_THREADS": "junk", "DISABLE_JIT": "junk"},
    {"DISABLE_JIT": "1"},
    {"DEBUGINFO": "1", "BOUNDSCHECK": "1", "EXTEND_VARIABLE_LIFETIMES": "1"},
    {"DEBUG": "1", "DEBUG_FRONTEND": "1", "DUMP_ASSEMBLY": "1", "DEVELOPER_MODE": "1", "TRACE": "1"},
    {"CPU_NAME": "generic", "CPU_FEATURES": "", "ENABLE_AVX": "0", "LOOP_VECTORIZE": "0"},
    {"CPU_NAME": "nonsense", "CPU_FEATURES": "+nonsense"},
]
"""Of every kind: each would slow down the code, make it need Numba, print, or end the process."""


@pytest.fixture(scope="module")
def pure() -> dict[str, bytes]:
    """The machine code without settings; a process that has compiled something else names symbols otherwise."""
    return compiled(SMALL)


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: " ".join(settings))
def test_settings_in_the_environment_change_no_bit(monkeypatch, capfd, pure, settings):
    for name, value in settings.items():
        monkeypatch.setenv(f"NUMBA_{name}", value)
    assert compiled(SMALL) == pure
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("content", ["opt: 0\ndisable_jit: 1\n", "[1, 2]: {", "- 3\n"])
def test_settings_in_the_current_folder_change_no_bit(monkeypatch, tmp_path, pure, content):
    (tmp_path / ".numba_config.yaml").write_text(content)
    monkeypatch.chdir(tmp_path)
    assert compiled(SMALL) == pure


def test_modules_in_the_current_folder_are_not_taken_for_those_of_numba(monkeypatch, tmp_path, pure):
    for name in ("numba", "numpy", "json", "cache"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(7)")
    monkeypatch.chdir(tmp_path)
    assert compiled(SMALL) == pure


def test_the_fast_way_and_the_portable_one_compute_the_same(monkeypatch, pure):
    """Numba's internals may change: then it is compiled by its public interface."""
    monkeypatch.setattr(isolated, "_FAST", "a function that is not there")
    portable = compiled(SMALL)
    assert set(portable) == {SMALL}
    tables = []
    for codes in pure, portable:
        monkeypatch.setattr(aot, "_stored", codes.get)
        aot._kernel.cache_clear()
        tables.append(np.full((8, 2), EMPTY, np.int32))
        kernel(SMALL)(tables[-1], 8, np.array([[97, 1], [98, 2], [EMPTY, 0], [353, 3]], np.int32), 4)
    aot._kernel.cache_clear()
    np.testing.assert_array_equal(*tables)
    assert sorted(tables[0][:, 0])[-3:] == [97, 98, 353]


def test_compiling_leaves_numba_as_it_was():
    """For what compiles in a process that uses Numba for other things."""
    from numba import njit
    from numba.core import codegen

    before = codegen.JITCPUCodegen._library_class
    with compiler._lowering_only():
        assert codegen.JITCPUCodegen._library_class is not before
    assert codegen.JITCPUCodegen._library_class is before
    assert njit(lambda n: n + 1)(2) == 3


@pytest.fixture
def alone(monkeypatch):
    """No process can be started."""

    def fail(*_, **__):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(isolated, "_Process", fail)
    aot._kernel.cache_clear()
    yield
    aot._kernel.cache_clear()


@pytest.mark.usefixtures("alone", "place")
@pytest.mark.parametrize("has_settings", [True, False])
def test_without_a_process_it_is_compiled_here_and_kept_if_nothing_was_set(monkeypatch, has_settings):
    assert isolated.has_settings()  # this process has Numba
    monkeypatch.setattr(isolated, "has_settings", lambda: has_settings)
    edges = np.full((4, 2), EMPTY, np.int32)
    assert kernel(SMALL)(edges, 4, edges.copy(), 4) == 0
    assert (cache.read(SMALL) is None) == has_settings


@pytest.mark.usefixtures("alone", "place")
def test_a_compiler_that_fails_ends_in_a_sentence(monkeypatch, rwkv, tiny_model):
    def fail(_):
        raise KeyError("first line\nsecond line")

    monkeypatch.setattr(compiler, "compile_entry_point", fail)
    result = rwkv("generate", "-m", tiny_model, "-p", "a", "--device", "cpu", "-q")
    assert result.code == 1
    assert result.sentence.startswith("the CPU kernels cannot run: Numba cannot compile ")


@pytest.mark.usefixtures("place")
def test_a_compiler_that_dies_ends_in_a_sentence(monkeypatch):
    monkeypatch.setattr(isolated, "_PROGRAM", "import os; os.abort()")
    with pytest.raises(isolated.CompilationError, match=r"^compiling trie\.pack ended by signal 6"):
        compiled(SMALL)


# --- the cache ------------------------------------------------------------------------------------------------------


def test_it_is_compiled_once(place):
    assert is_compiled_by(place)
    assert not is_compiled_by(place)
    assert aot.is_compiled(SMALL)
    assert not aot.is_compiled("forward.passes")


@pytest.mark.parametrize("size", [0, 31, 32, 100, -1])
def test_a_truncated_file_is_compiled_again(place, code, size):
    cache.write(SMALL, code)
    path = cache.folder() / SMALL
    whole = path.read_bytes()
    path.write_bytes(whole[:size])
    assert not aot.is_compiled(SMALL)
    assert is_compiled_by(place)
    assert aot.is_compiled(SMALL)


@pytest.mark.usefixtures("place")
def test_damage_is_noticed_anywhere(code):
    cache.write(SMALL, code)
    path = cache.folder() / SMALL
    whole = path.read_bytes()
    for position in range(0, len(whole), 97):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        assert cache.read(SMALL) is None
    path.write_bytes(whole)
    assert cache.read(SMALL) == code


@pytest.mark.usefixtures("place")
def test_one_entry_point_is_not_taken_for_another(code):
    cache.write(SMALL, code)
    (cache.folder() / SMALL).rename(cache.folder() / "trie.build")
    assert cache.read("trie.build") is None


def test_all_that_is_missing_is_compiled_together(place, monkeypatch):
    """The largest one in a process of its own; what is there already, not again."""
    monkeypatch.setattr(aot, "LARGEST", "trie.build")
    names, jobs = ("trie.pack", "trie.build", "trie.longest_matches"), []
    compile_jobs = isolated.compiled
    monkeypatch.setattr(isolated, "compiled", lambda some: jobs.extend(some) or compile_jobs(some))
    aot.compile_missing(names)
    assert [job.names for job in jobs] == [("trie.build",), ("trie.pack", "trie.longest_matches")]
    assert sorted(path.name for path in cache.folder().iterdir()) == sorted(names)
    assert all(map(aot.is_compiled, names))
    (cache.folder() / "trie.pack").unlink()
    aot.compile_missing(names)
    assert [job.names for job in jobs[2:]] == [("trie.pack",)]
    assert place.is_dir()


def test_an_interrupt_ends_the_compilers(monkeypatch):
    monkeypatch.setattr(isolated, "_PROGRAM", "import time; time.sleep(600)")
    running, start = [], isolated._Process

    def started(*arguments):
        running.append(start(*arguments))
        return running[-1]

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(isolated, "_Process", started)
    monkeypatch.setattr(isolated, "_result", interrupt)
    with pytest.raises(KeyboardInterrupt):
        isolated.compiled([aot._job(("trie.pack",)), aot._job(("trie.build",))])
    assert len(running) == min(2, os.cpu_count() or 1)
    assert all(process.returncode is not None for process in running)


def test_processes_that_compile_at_once(place):
    with ThreadPoolExecutor() as threads:
        assert list(threads.map(is_compiled_by, [place] * 3)).count(True) >= 1
    assert not is_compiled_by(place)
    assert [path.name for path in cache.folder().iterdir()] == [SMALL]


def test_threads_that_compile_at_once(monkeypatch, code):
    times = []
    monkeypatch.setattr(isolated, "compiled", lambda jobs: times.extend(jobs[0].names) or [{SMALL: code}])
    monkeypatch.setattr(aot, "_stored", lambda _: None)
    monkeypatch.setattr(cache, "write", lambda *_: None)
    aot._kernel.cache_clear()
    with ThreadPoolExecutor() as threads:
        found = {id(function) for function in threads.map(kernel, [SMALL] * 4)}
    aot._kernel.cache_clear()
    assert (len(found), times) == (1, [SMALL])


def test_a_cache_folder_that_cannot_be_written(tmp_path):
    """A file has its name."""
    place = tmp_path / "cache"
    place.write_text("")
    done = python(
        PACK.replace('kernel("trie.pack")(', 'kernel("trie.build"); kernel("trie.pack")('), place=place
    )
    assert done.stdout == "True\n"
    assert re.fullmatch(
        r"cannot write to the cache folder \S+cache \(not a directory\): "
        r"kernels will be compiled again on every run; set RWKV_CACHE_DIR\n",
        done.stderr,
    )


def test_a_full_disk(place, code, monkeypatch, caplog):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    for name in ("trie.build", SMALL):
        cache.write(name, code)
    assert caplog.messages == [
        f"cannot write to the cache folder {place} (no space left on device): "
        "kernels will be compiled again on every run; set RWKV_CACHE_DIR"
    ]
    assert list(cache.folder().iterdir()) == []


def test_a_user_without_a_home(code, monkeypatch, caplog):
    def fail(*_, **__):
        raise RuntimeError("Could not determine home directory.")

    cache._warn.cache_clear()
    monkeypatch.setattr(cache, "CACHE_DIR", None)
    monkeypatch.setattr(cache.platformdirs, "user_cache_dir", fail)
    cache.write(SMALL, code)
    assert cache.read(SMALL) is None
    assert "cannot find a cache folder (could not determine home directory): kernels will be" in caplog.text


def test_old_versions_go(place, code):
    versions = [place / f"kernels-{i}" for i in range(10)]
    for age, version in enumerate(versions):
        version.mkdir()
        os.utime(version, (1e9 - age, 1e9 - age))
    other = place / "checkpoints"
    other.mkdir()
    cache.write(SMALL, code)
    assert set(place.iterdir()) == {cache.folder(), other, *versions[: cache.KEPT_VERSIONS - 1]}


@pytest.fixture
def asked_anew():
    """A function after which the CPU is asked again; and it is after the test."""
    yield host.this_cpu.cache_clear
    host.this_cpu.cache_clear()


@pytest.mark.parametrize("name", ["get_host_cpu_name", "get_process_triple"])
def test_another_machine_has_another_version(monkeypatch, asked_anew, name):
    assert cache._version() == cache.VERSION
    monkeypatch.setattr(llvm, name, lambda: "another")
    asked_anew()
    assert cache._version() != cache.VERSION


def test_other_features_and_instructions_have_another_version(monkeypatch, asked_anew):
    features = llvm.get_host_cpu_features()
    features["another"] = True
    with monkeypatch.context() as patch:
        patch.setattr(llvm, "get_host_cpu_features", lambda: features)
        asked_anew()
        assert cache._version() != cache.VERSION
    asked_anew()
    monkeypatch.setattr(cache, "CHOSEN", "another")
    assert cache._version() != cache.VERSION
