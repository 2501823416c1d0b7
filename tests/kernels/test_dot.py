"""The integer dot product: each CPU's own instruction against the definition, to the bit."""

import os
import re
import subprocess
import sys
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np
import pytest
from helpers.kernel_check import address
from hypothesis import given
from hypothesis import strategies as st
from llvmlite import ir
from numba import njit, types

from cpu_kernels.runtime import amx, host, instructions
from cpu_kernels.simd import I8, I32, intrinsic_of, load_i8, pointer

QUADS, BYTES = 16, 64
INT32 = np.iinfo(np.int32)


def _runnable() -> list[str]:
    """What this machine can run. AVX-512 also has AVX-VNNI's operation, under the same name, in its own encoding."""
    features = llvm.get_host_cpu_features()
    names = instructions.available()
    if features.get("avx512vnni") and features.get("avx512vl") and "avx-vnni" not in names:
        names.append("avx-vnni")
    return names


@intrinsic_of(I32, types.int64)
def load_i32(builder, place):
    return builder.load(pointer(builder, place, I32.llvm), align=4)


@intrinsic_of(types.void, types.int64, I32)
def store_i32(builder, place, vector):
    builder.store(vector, pointer(builder, place, I32.llvm), align=4)


def compiled(emit):
    """`call(acc, w, x)`: one operation, on int32 [16] and int8 [64] twice."""
    operation = intrinsic_of(I32, I32, I8, I8)(emit)

    @njit
    def kernel(acc, w, x):
        store_i32(acc, operation(load_i32(acc), load_i8(w), load_i8(x)))

    def call(acc, w, x):
        result = np.array(acc, np.int32)
        w, x = np.array(w, np.int8), np.array(x, np.int8)
        assert len(result) == QUADS
        assert len(w) == len(x) == BYTES
        kernel(address(result), address(w), address(x))
        return result

    return call


@pytest.fixture(scope="module", params=_runnable())
def instruction(request):
    """A row of the table and its two operations, compiled."""
    row = instructions.INSTRUCTIONS[request.param]
    return row, compiled(row.signed), compiled(row.unsigned)


def naive(acc, w, x, offset=0):
    """The definition, with an accumulator that wraps around."""
    sums = []
    for i in range(QUADS):
        total = int(acc[i]) + sum((int(w[4 * i + j]) + offset) * int(x[4 * i + j]) for j in range(4))
        sums.append((total - INT32.min) % 2**32 + INT32.min)
    return np.array(sums, np.int32)


def assert_right(instruction, acc, w, x):
    """Both forms, on the same activations and what the weights allow."""
    row, signed, unsigned = instruction
    np.testing.assert_array_equal(signed(acc, w, x), naive(acc, w, x, row.weight_offset))
    halves = np.asarray(w) & 15
    np.testing.assert_array_equal(unsigned(acc, halves, x), naive(acc, halves, x))


@pytest.mark.parametrize("w", [127, 1, 0, -1, -127])
@pytest.mark.parametrize("x", [127, 1, 0, -1, -127])
def test_extremes(instruction, w, x):
    """Four products of one sign: 16 bits do not hold more than two of them."""
    assert_right(instruction, [0] * QUADS, [w] * BYTES, [x] * BYTES)


@pytest.mark.parametrize("signs", range(16))
def test_extremes_of_every_sign_in_a_quad(instruction, signs):
    x = [127 if signs >> j & 1 else -127 for j in range(4)] * QUADS
    assert_right(instruction, [5] * QUADS, [127, -127, -127, 127] * QUADS, x)


@pytest.mark.parametrize("x", [127, -127])
def test_the_largest_halves(instruction, x):
    _, _, unsigned = instruction
    assert unsigned([0] * QUADS, [15] * BYTES, [x] * BYTES).tolist() == [4 * 15 * x] * QUADS


def test_every_byte_goes_to_its_own_lane(instruction):
    """One weight and one activation at a time, so that nothing can cancel out."""
    row, signed, unsigned = instruction
    zeros = [0] * QUADS
    for place in range(BYTES):
        w, x = np.zeros(BYTES, int), np.zeros(BYTES, int)
        w[place], x[place] = 13, 100
        np.testing.assert_array_equal(signed(zeros, w, x), naive(zeros, w, x, row.weight_offset))
        np.testing.assert_array_equal(unsigned(zeros, w, x), naive(zeros, w, x))


def test_every_product(instruction):
    """All weights times all activations, four of them at a time."""
    rng = np.random.default_rng(0)
    values = np.arange(-127, 128)
    w, x = (side.ravel() for side in np.meshgrid(values, values))
    rest = -len(w) % BYTES
    w, x = np.pad(w, (0, rest)), np.pad(x, (0, rest))
    order = rng.permutation(len(w))
    for chunk in order.reshape(-1, BYTES):
        assert_right(instruction, rng.integers(-1000, 1000, QUADS), w[chunk], x[chunk])


@pytest.mark.parametrize("acc", [INT32.max, INT32.min, 2**24 + 1, -(2**24) - 1])
def test_the_accumulator_is_a_whole_int32(instruction, acc):
    """No float in between, which would lose the last bit, and no saturation."""
    rng = np.random.default_rng(0)
    w, x = rng.integers(-127, 128, (2, BYTES))
    assert_right(instruction, [acc] * QUADS, w, x)


@given(st.data())
def test_any_operands(instruction, data):
    acc = data.draw(st.lists(st.integers(-(2**30), 2**30), min_size=QUADS, max_size=QUADS))
    w, x = (
        data.draw(st.lists(st.integers(-127, 127), min_size=BYTES, max_size=BYTES), name) for name in "wx"
    )
    assert_right(instruction, acc, w, x)


# --- the choice -----------------------------------------------------------------------------------------------------


def test_the_best_instruction_is_chosen(monkeypatch):
    monkeypatch.delenv("RWKV_CPU_KERNEL", raising=False)
    assert instructions.choose() == instructions.available()[0]
    assert instructions.available() == [
        name for name in instructions.INSTRUCTIONS if name in instructions.available()
    ]


@pytest.mark.parametrize("name", instructions.available())
def test_any_other_can_be_named(monkeypatch, name):
    monkeypatch.setenv("RWKV_CPU_KERNEL", name)
    assert instructions.choose() == name


@pytest.fixture
def with_features(monkeypatch):
    """`with_features(features)`: LLVM finds these in this CPU."""

    def become(features):
        monkeypatch.setattr(llvm, "get_host_cpu_features", lambda: dict(features))
        host.this_cpu.cache_clear()

    yield become
    host.this_cpu.cache_clear()


def test_plain_is_everywhere(with_features):
    with_features({})
    assert instructions.available() == ["plain"]


@pytest.mark.parametrize("name", ["abacus", "PLAIN", "avx2,plain"])
def test_a_name_that_is_none_is_refused_with_those_that_are(monkeypatch, name):
    monkeypatch.setenv("RWKV_CPU_KERNEL", name)
    with pytest.raises(
        ValueError, match=f"^RWKV_CPU_KERNEL is '{name}'; .*{', '.join(instructions.available())}$"
    ):
        instructions.choose()


def test_an_instruction_of_another_cpu_is_refused(monkeypatch, with_features):
    with_features({"avx2": True, "avxvnni": False})
    monkeypatch.setenv("RWKV_CPU_KERNEL", "avx-vnni")
    with pytest.raises(ValueError, match=r"this machine can run: avx2, plain$"):
        instructions.choose()


@pytest.mark.parametrize("is_permitted", [True, False])
def test_tile_registers_need_the_permission_of_the_system(monkeypatch, with_features, is_permitted):
    with_features(dict.fromkeys(instructions.INSTRUCTIONS["amx-int8"].features, True))
    monkeypatch.setattr(amx, "is_permitted", lambda: is_permitted)
    names = ["amx-int8"] * is_permitted + ["avx512-vnni", "plain"]
    assert instructions.available() == names


def test_tile_registers_are_of_linux_on_x86(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    assert not amx.is_permitted.__wrapped__()
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert not amx.is_permitted.__wrapped__()


@pytest.mark.skipif("amx-int8" not in instructions.available(), reason="this machine has no AMX")
def test_a_permission_can_be_asked_for_again():
    assert amx.is_permitted.__wrapped__()


def test_matrices_by_every_other_instruction_of_this_machine():
    """The choice is made at the import, so the tests of integer matrices run once more, in other processes."""
    files = [str(Path(__file__).with_name("test_matrix.py"))]
    command = [sys.executable, "-m", "pytest", "-q", "-k", "int8 or int4", "-p", "no:cacheprovider", *files]
    running = {
        name: subprocess.Popen(
            command, env=os.environ | {"RWKV_CPU_KERNEL": name}, stdout=subprocess.PIPE, text=True
        )
        for name in instructions.available()
        if name != instructions.CHOSEN
    }
    printed = {name: process.communicate()[0] for name, process in running.items()}
    for name, process in running.items():
        assert process.returncode == 0, f"{name}: {printed[name]}"


# --- CPUs that this machine is not ----------------------------------------------------------------------------------

ARM, X86 = "aarch64-linux-gnu", "x86_64-linux-gnu"


def assembly(emit, triple: str, cpu: str, features: str) -> str:
    """What LLVM makes of one operation for another CPU."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    try:
        target = llvm.Target.from_triple(triple)
    except RuntimeError:
        pytest.skip(f"this llvmlite has no target {triple}")
    module = ir.Module()
    module.triple = triple
    function = ir.Function(module, ir.FunctionType(I32.llvm, [I32.llvm, I8.llvm, I8.llvm]), "dot4")
    builder = ir.IRBuilder(function.append_basic_block())
    builder.ret(emit(builder, *function.args))
    parsed = llvm.parse_assembly(str(module))
    parsed.verify()
    return target.create_target_machine(cpu=cpu, features=features, opt=3).emit_assembly(parsed)


@pytest.mark.parametrize("form", ["signed", "unsigned"])
@pytest.mark.parametrize(
    ("name", "triple", "cpu", "features", "expected", "times"),
    [
        ("amx-int8", X86, "sapphirerapids", "", "vpdpbusd", 1),
        ("avx512-vnni", X86, "cascadelake", "", "vpdpbusd", 1),
        ("avx-vnni", X86, "alderlake", "", "vpdpbusd", 2),
        ("avx2", X86, "haswell", "", "vpmaddubsw", 2),
        ("neon-dotprod", ARM, "cortex-a72", "+dotprod", "sdot", 4),
        ("neon", ARM, "cortex-a72", "", "smull", 8),  # with smull2, for the upper halves of registers
        ("plain", ARM, "cortex-a72", "", "smull", 8),
        ("plain", X86, "x86-64", "", "pmul", 8),
    ],
)
def test_each_cpu_gets_its_instruction(name, triple, cpu, features, expected, times, form):
    text = assembly(getattr(instructions.INSTRUCTIONS[name], form), triple, cpu, features)
    assert text.count(expected) >= times
    assert not re.search(r"\t(call|bl)", text)  # no function of a library that is not there


def test_every_instruction_is_compiled_for_some_cpu():
    cases = test_each_cpu_gets_its_instruction.pytestmark[0].args[1]
    assert {case[0] for case in cases} == set(instructions.INSTRUCTIONS)
