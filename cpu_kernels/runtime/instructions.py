"""The integer dot product of four bytes, by each CPU's own instruction: the one place that knows about CPUs.

`cpu_kernels.products.dot` makes it a function for Numba; this module does not need Numba, so that `rwkv info` starts
fast.

The operation is  dot4(acc, w, x)[i] = acc[i] + sum over j of (w[4i + j] + WEIGHT_OFFSET) * x[4i + j],  for sixteen
lanes i, with w and x from -127 to 127. The offset is for CPUs whose instruction takes its first factor unsigned; the
caller subtracts it again by the sum of x. `dot4_unsigned` is the same for w from 0 to 15, without an offset.

To add a CPU, write its two emitters and add a row to `INSTRUCTIONS`; the tests run every row that the machine supports.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

from llvmlite import ir

from cpu_kernels.runtime import host

Value = Any
"""A value of LLVM IR, of `llvmlite.ir`, which has no types for mypy; a builder emits instructions."""

Emitter = Callable[[Any, Value, Value, Value], Value]
"""emit(builder, acc, w, x) -> the new acc: <16 x i32>, of w and x: <64 x i8>; or of a part of them all."""

_i32 = ir.IntType(32)


def call(builder: Any, name: str, result: Any, *values: Value) -> Value:
    """Emit a call of an LLVM intrinsic or a C function; `result` is its LLVM type."""
    signature = ir.FunctionType(result, [value.type for value in values])
    return builder.call(builder.module.declare_intrinsic(name, fnty=signature), values)


def _in_parts(n_parts: int, emit: Emitter) -> Emitter:
    """Apply `emit` to each of n equal parts of the vectors, for CPUs with narrower registers."""

    def emit_all(builder: Any, acc: Value, w: Value, x: Value) -> Value:
        done = [emit(builder, *(_part(builder, v, n_parts, i) for v in (acc, w, x))) for i in range(n_parts)]
        while len(done) > 1:
            done = [_join(builder, *done[i : i + 2]) for i in range(0, len(done), 2)]
        return done[0]

    return emit_all


def _part(builder: Any, vector: Value, n_parts: int, i: int) -> Value:
    size = vector.type.count // n_parts
    lanes = ir.Constant(ir.VectorType(_i32, size), list(range(i * size, (i + 1) * size)))
    return builder.shuffle_vector(vector, vector, lanes)


def _join(builder: Any, a: Value, b: Value) -> Value:
    lanes = ir.Constant(ir.VectorType(_i32, 2 * a.type.count), list(range(2 * a.type.count)))
    return builder.shuffle_vector(a, b, lanes)


def _vpdpbusd(bits: int) -> Emitter:
    """AVX-512 VNNI and AVX-VNNI: unsigned times signed, four products and the sum in one instruction."""

    def emit(builder: Any, acc: Value, w: Value, x: Value) -> Value:
        # Older versions of LLVM take vectors of i32, newer ones of i8; LLVM rewrites the older form by itself.
        w, x = builder.bitcast(w, acc.type), builder.bitcast(x, acc.type)
        return call(builder, f"llvm.x86.avx512.vpdpbusd.{bits}", acc.type, acc, w, x)

    return emit


def _shifted(emit: Emitter) -> Emitter:
    """For an instruction whose first factor is unsigned: adds 128 to each weight."""
    return lambda builder, acc, w, x: emit(builder, acc, builder.xor(w, ir.Constant(w.type, [-128] * 64)), x)


def _avx2_unsigned(builder: Any, acc: Value, w: Value, x: Value) -> Value:
    """AVX2: sums of two products as 16 bits, enough for 2 * 127 * 127, then of four as 32 bits."""
    pairs = ir.VectorType(ir.IntType(16), 16)
    products = call(builder, "llvm.x86.avx2.pmadd.ub.sw", pairs, w, x)
    ones = ir.Constant(pairs, [1] * 16)
    return builder.add(acc, call(builder, "llvm.x86.avx2.pmadd.wd", acc.type, products, ones))


def _avx2_signed(builder: Any, acc: Value, w: Value, x: Value) -> Value:
    """|w| * (x with the sign of w)"""
    x = call(builder, "llvm.x86.avx2.psign.b", x.type, x, w)
    w = call(builder, "llvm.abs.v32i8", w.type, w, ir.Constant(ir.IntType(1), 0))
    return _avx2_unsigned(builder, acc, w, x)


def _sdot(builder: Any, acc: Value, w: Value, x: Value) -> Value:
    """ARM's dot product extension: signed times signed."""
    return call(builder, "llvm.aarch64.neon.sdot.v4i32.v16i8", acc.type, acc, w, x)


def _neon(builder: Any, acc: Value, w: Value, x: Value) -> Value:
    """ARM without that extension: products as 16 bits, added in pairs twice."""
    products = ir.VectorType(ir.IntType(16), 8)
    sums = []
    for half in range(2):
        a, b = (_part(builder, v, 2, half) for v in (w, x))
        product = call(builder, "llvm.aarch64.neon.smull.v8i16", products, a, b)
        sums.append(call(builder, "llvm.aarch64.neon.saddlp.v4i32.v8i16", acc.type, product))
    return builder.add(acc, call(builder, "llvm.aarch64.neon.addp.v4i32", acc.type, *sums))


def _plain(builder: Any, acc: Value, w: Value, x: Value) -> Value:
    """Widen, multiply, add: for any CPU."""
    for j in range(4):
        lanes = ir.Constant(ir.VectorType(_i32, 16), list(range(j, 64, 4)))
        a, b = (builder.sext(builder.shuffle_vector(v, v, lanes), acc.type) for v in (w, x))
        acc = builder.add(acc, builder.mul(a, b))
    return acc


class Instruction(NamedTuple):
    """How one family of CPUs computes dot4."""

    features: tuple[str, ...]  # that the CPU must have, by their LLVM names
    signed: Emitter  # of dot4
    unsigned: Emitter  # of dot4_unsigned
    weight_offset: int = 0
    has_tiles: bool = False  # products of many tokens are those of AMX: see `cpu_kernels.products.amx`


_vnni_512, _vnni_256 = _vpdpbusd(512), _in_parts(2, _vpdpbusd(256))

_AVX512_VNNI = ("avx512f", "avx512bw", "avx512vnni")

INSTRUCTIONS = {
    "amx-int8": Instruction(
        ("amx-tile", "amx-int8", *_AVX512_VNNI), _shifted(_vnni_512), _vnni_512, 128, has_tiles=True
    ),
    "avx512-vnni": Instruction(_AVX512_VNNI, _shifted(_vnni_512), _vnni_512, 128),
    "avx-vnni": Instruction(("avx2", "avxvnni"), _shifted(_vnni_256), _vnni_256, 128),
    "avx2": Instruction(("avx2",), _in_parts(2, _avx2_signed), _in_parts(2, _avx2_unsigned)),
    "neon-dotprod": Instruction(("dotprod",), _in_parts(4, _sdot), _in_parts(4, _sdot)),
    "neon": Instruction(("neon",), _in_parts(4, _neon), _in_parts(4, _neon)),
    "plain": Instruction((), _plain, _plain),
}
"""By name, fastest first; the first one that the CPU supports is chosen."""


def available() -> list[str]:
    """The names in `INSTRUCTIONS` that this machine supports, fastest first."""
    cpu = host.cpu()
    return [name for name, row in INSTRUCTIONS.items() if cpu.has(*row.features)]


def choose() -> str:
    """The fastest that this machine supports, or the one that the environment variable RWKV_CPU_KERNEL names.

    Raises ValueError if the machine does not support the named one.
    """
    names = available()
    wanted = os.environ.get("RWKV_CPU_KERNEL") or names[0]
    if wanted not in names:
        raise ValueError(f"RWKV_CPU_KERNEL is {wanted!r}; this machine can run: {', '.join(names)}")
    return wanted


CHOSEN = choose()
