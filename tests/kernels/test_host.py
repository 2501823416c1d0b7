"""What systems say of CPUs that this machine is not."""

import ctypes
from types import SimpleNamespace

import pytest

from cpu_kernels.runtime import host, instructions
from cpu_kernels.runtime.host import Cpu
from cpu_kernels.runtime.targets import TARGETS

BITS = {"dotprod": (16, 1 << 20), "i8mm": (26, 1 << 13)}  # of getauxval on Linux
SYSCTL = {"dotprod": "hw.optional.arm.FEAT_DotProd", "i8mm": "hw.optional.arm.FEAT_I8MM"}
WINDOWS = {"dotprod": 43, "i8mm": 66}


@pytest.fixture
def system(monkeypatch):
    """`system(platform, machine, has)`: another system, on a CPU with features of which LLVM does not know."""

    def become(platform: str, machine: str, has: set[str], told_by_llvm=None) -> None:
        def features():
            if told_by_llvm is None:
                raise RuntimeError("LLVM does not know")
            return told_by_llvm

        def getauxval(entry):
            return sum(bit for name, (where, bit) in BITS.items() if where == entry and name in has)

        def sysctl(name, value, size, _new, _new_size):
            found = next((feature for feature in SYSCTL if SYSCTL[feature].encode() == name), None)
            if found is None:
                return -1
            value._obj.value = found in has
            size._obj.value = 4
            return 0

        library = SimpleNamespace()
        if platform == "linux":
            library.getauxval = Function(getauxval)
        if platform == "darwin":
            library.sysctlbyname = sysctl
        kernel32 = SimpleNamespace(
            IsProcessorFeaturePresent=lambda n: int(n in {WINDOWS[name] for name in has})
        )
        monkeypatch.setattr(host.llvm, "get_host_cpu_features", features)
        monkeypatch.setattr(host.sys, "platform", platform)
        monkeypatch.setattr(host.platform, "machine", lambda: machine)
        monkeypatch.setattr(ctypes, "CDLL", lambda _: library)
        monkeypatch.setattr(ctypes, "windll", SimpleNamespace(kernel32=kernel32), raising=False)
        monkeypatch.delenv("RWKV_CPU_KERNEL", raising=False)
        host.this_cpu.cache_clear()

    yield become
    host.this_cpu.cache_clear()


class Function:
    """A function of a C library, which takes attributes."""

    def __init__(self, call):
        self.call = call

    def __call__(self, *arguments):
        return self.call(*arguments)


def prebuilt_target(cpu):
    """The best target that can run there, whatever LLVM says of the system."""
    fitting = [name for name, target in TARGETS.items() if cpu.has(*target.features)]
    return fitting[0] if fitting else None


CPUS = {
    "Raspberry Pi 4": (set(), "neon"),
    "Neoverse N1, Raspberry Pi 5, Apple M1": ({"dotprod"}, "neon-dotprod"),
    "Neoverse V1, Apple M2, Snapdragon X": ({"dotprod", "i8mm"}, "neon-dotprod"),
}


@pytest.mark.parametrize(("has", "expected"), CPUS.values(), ids=CPUS)
@pytest.mark.parametrize("told_by_llvm", [None, {}, {"neon": True, "fp-armv8": True, "sve": False}])
@pytest.mark.parametrize(
    ("platform", "machine"), [("linux", "aarch64"), ("darwin", "arm64"), ("win32", "ARM64")]
)
def test_arm(system, platform, machine, has, expected, told_by_llvm):
    system(platform, machine, has, told_by_llvm)
    assert instructions.choose() == expected
    cpu = host.this_cpu()
    assert cpu.has("neon", "fp-armv8")
    if platform == "linux":
        assert prebuilt_target(cpu) == expected
    assert {name for name in BITS if cpu.has(name)} == has


@pytest.mark.parametrize("platform", ["linux", "darwin", "freebsd14"])
def test_a_system_that_cannot_be_asked_still_has_neon(system, monkeypatch, platform):
    system(platform, "aarch64", {"dotprod"})
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace())
    assert instructions.available() == ["neon", "plain"]

    def fail(_):
        raise OSError("no C library can be loaded")

    monkeypatch.setattr(ctypes, "CDLL", fail)
    host.this_cpu.cache_clear()
    assert instructions.available() == ["neon", "plain"]


def test_what_llvm_finds_is_kept(system):
    system("linux", "aarch64", set(), {"dotprod": True})  # from the name of the CPU
    assert host.this_cpu().has("dotprod")


@pytest.mark.parametrize("told_by_llvm", [None, {}, {"avx2": False, "sse4.2": True}])
@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
def test_on_x86_only_the_cpu_is_asked(system, platform, told_by_llvm):
    system(platform, "x86_64", {"dotprod", "i8mm"}, told_by_llvm)
    assert host.this_cpu().features == (told_by_llvm or {})
    assert instructions.available() == ["plain"]


def test_flags_are_those_of_llvm():
    cpu = Cpu("x86_64-unknown-linux-gnu", "haswell", {"fma": True, "avx2": True, "avx512f": False})
    assert cpu.flags == "+avx2,-avx512f,+fma"
    assert cpu.has()
    assert cpu.has("fma", "avx2")
    assert not cpu.has("fma", "avx512f")
    assert not cpu.has("another")


def test_this_machine_is_asked_without_an_error():
    """Whatever it is: the real library is called."""
    assert host.this_cpu.__wrapped__() == host.this_cpu.__wrapped__()
    for name in ("_linux_has", "_mac_os_has", "_windows_has"):
        arguments = {"_linux_has": (16, 0), "_mac_os_has": ("hw.optional.none",), "_windows_has": (0,)}[name]
        assert getattr(host, name)(*arguments) in (True, False)
