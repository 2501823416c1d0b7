"""Machine code that comes with the installation: for which CPUs, and what is not believed."""

import struct

import pytest

from cpu_kernels.runtime import aot, cache, host, instructions, isolated, prebuilt
from cpu_kernels.runtime.targets import TARGETS

SMALL = "trie.pack"
MACHINES = {"x86_64": 62, "aarch64": 183}  # e_machine in ELF


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where prebuilt code is, of one entry point that compiles fast."""
    monkeypatch.setattr(prebuilt, "FOLDER", tmp_path / "prebuilt")
    monkeypatch.setattr(prebuilt, "ENTRY_POINTS", {SMALL: 4})
    monkeypatch.setattr(cache, "CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "prebuilt"


@pytest.fixture
def on(monkeypatch):
    """`on(cpu, instruction)`: this machine is another one."""

    def become(cpu, instruction):
        monkeypatch.setattr(host, "_assumed", [cpu])
        monkeypatch.setattr(prebuilt, "CHOSEN", instruction)

    return become


@pytest.mark.parametrize("name", TARGETS)
def test_code_is_built_for_a_cpu_that_this_machine_need_not_be(folder, on, name):
    prebuilt.build([name])
    assert [path.relative_to(folder).as_posix() for path in folder.glob("*/*")] == [f"{name}/{SMALL}"]
    on(TARGETS[name], name)
    code = prebuilt.read(SMALL)
    assert code[:4] == b"\x7fELF"
    assert struct.unpack_from("<H", code, 18) == (MACHINES[TARGETS[name].triple.split("-")[0]],)
    assert code == aot._stored(SMALL)
    assert aot.is_compiled(SMALL)


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_has_its_instruction(name):
    assert TARGETS[name].has(*instructions.INSTRUCTIONS[name].features)


@pytest.mark.parametrize("name", TARGETS)
def test_who_can_run_it(on, name):
    cpu = TARGETS[name]
    on(cpu._replace(name="znver9", features={**cpu.features, "another": True, "more": False}), name)
    assert prebuilt.target() == name
    on(cpu._replace(triple=cpu.triple.replace("unknown", "pc")), name)
    assert prebuilt.target() == name
    for feature in cpu.features:
        on(cpu._replace(features={**cpu.features, feature: False}), name)
        assert prebuilt.target() is None
    for other in ("x86_64-pc-windows-msvc", "arm64-apple-darwin25.0.0", "riscv64-unknown-linux-gnu"):
        on(cpu._replace(triple=other), name)
        assert prebuilt.target() is None


def test_a_slower_instruction_that_was_asked_for_has_its_own_code(folder, on):
    prebuilt.build(["avx2", "avx-vnni"])
    features = {**TARGETS["avx512-vnni"].features, **TARGETS["avx-vnni"].features}
    codes = []
    for name in ("avx2", "avx-vnni", "plain"):
        on(TARGETS["avx2"]._replace(features=features), name)
        codes.append(prebuilt.read(SMALL))
    assert codes[0] is not None
    assert codes[1] is not None
    assert codes[2] is None
    assert {path.name for path in folder.iterdir()} == {"avx2", "avx-vnni"}


def test_damage_and_other_names_are_noticed(folder, on):
    prebuilt.build(["avx2"])
    on(TARGETS["avx2"], "avx2")
    path = folder / "avx2" / SMALL
    whole = path.read_bytes()
    for position in range(0, len(whole), 97):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        assert prebuilt.read(SMALL) is None
    for size in (0, 31, 32, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert prebuilt.read(SMALL) is None
    path.write_bytes(whole)
    assert prebuilt.read(SMALL) is not None
    path.rename(folder / "avx2" / "trie.build")
    assert prebuilt.read("trie.build") is None
    (folder / "avx2").rename(folder / "neon")
    assert prebuilt._read("neon", "trie.build") is None


def test_code_of_other_sources_is_not_used_and_goes(folder, on, monkeypatch):
    prebuilt.build(["avx2", "neon"])
    on(TARGETS["avx2"], "avx2")
    with monkeypatch.context() as patch:
        patch.setattr(prebuilt, "SOURCES", "changed since")
        assert prebuilt.read(SMALL) is None
        prebuilt.build(["avx2"])
        assert prebuilt.read(SMALL) is not None
        assert [path.name for path in folder.iterdir()] == ["avx2"]
    assert prebuilt.read(SMALL) is None


def test_what_is_built_is_not_built_again(folder, monkeypatch):
    prebuilt.build(["avx2"])
    jobs = []
    monkeypatch.setattr(isolated, "compiled", lambda some: jobs.extend(some) or [])
    prebuilt.build(["avx2"])
    assert jobs == []
    assert folder.is_dir()
