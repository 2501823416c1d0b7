"""The integer dot product of four bytes, by each CPU's own instruction: the one place that knows about CPUs.

`cpu_kernels.dot` makes it a function for Numba, which is not needed to tell which instruction the machine has.

The operation is  dot4(acc, w, x)[i] = acc[i] + sum over j of (w[4i + j] + WEIGHT_OFFSET) * x[4i + j],  for sixteen
lanes i, with w and x from -127 to 127. The offset is there for CPUs whose instruction takes its first factor unsigned;
the caller takes it out again with the sum of x. `dot4_unsigned` is the same for w from 0 to 15, without an offset.

To add a CPU, write its two emitters and add a row to `INSTRUCTIONS`; the tests run every row that the machine has.
"""

import os
from collections.abc import Callable
from typing import NamedTuple

import llvmlite.binding as llvm
from llvmlite import ir

_i32 = ir.IntType(32)


def call(builder, name, result, *values):
    """Call an LLVM intrinsic or a C function by name."""
    signature = ir.FunctionType(result, [value.type for value in values])
    return builder.call(builder.module.declare_intrinsic(name, fnty=signature), values)


def _in_parts(n_parts, emit):
    """Apply `emit(builder, acc, w, x)` to each of n equal parts of the vectors, for CPUs with narrower registers."""

    def emit_all(builder, acc, w, x):
        done = [emit(builder, *(_part(builder, v, n_parts, i) for v in (acc, w, x))) for i in range(n_parts)]
        while len(done) > 1:
            done = [_join(builder, *done[i : i + 2]) for i in range(0, len(done), 2)]
        return done[0]

    return emit_all


def _part(builder, vector, n_parts, i):
    size = vector.type.count // n_parts
    lanes = ir.Constant(ir.VectorType(_i32, size), list(range(i * size, (i + 1) * size)))
    return builder.shuffle_vector(vector, vector, lanes)


def _join(builder, a, b):
    lanes = ir.Constant(ir.VectorType(_i32, 2 * a.type.count), list(range(2 * a.type.count)))
    return builder.shuffle_vector(a, b, lanes)


def _vpdpbusd(bits):
    """AVX-512 VNNI and AVX-VNNI: unsigned times signed, four products and the sum in one instruction."""

    def emit(builder, acc, w, x):
        # Older versions of LLVM take vectors of i32, newer ones of i8; LLVM rewrites the older form by itself.
        w, x = builder.bitcast(w, acc.type), builder.bitcast(x, acc.type)
        return call(builder, f"llvm.x86.avx512.vpdpbusd.{bits}", acc.type, acc, w, x)

    return emit


def _shifted(emit):
    """For an instruction whose first factor is unsigned: the weights, increased by 128."""
    return lambda builder, acc, w, x: emit(builder, acc, builder.xor(w, ir.Constant(w.type, [-128] * 64)), x)


def _avx2_unsigned(builder, acc, w, x):
    """AVX2: products in pairs as 16 bits, which 2 * 127 * 127 still fits, then pairs of pairs as 32."""
    pairs = ir.VectorType(ir.IntType(16), 16)
    products = call(builder, "llvm.x86.avx2.pmadd.ub.sw", pairs, w, x)
    ones = ir.Constant(pairs, [1] * 16)
    return builder.add(acc, call(builder, "llvm.x86.avx2.pmadd.wd", acc.type, products, ones))


def _avx2_signed(builder, acc, w, x):
    """|w| * (x with the sign of w)"""
    x = call(builder, "llvm.x86.avx2.psign.b", x.type, x, w)
    w = call(builder, "llvm.abs.v32i8", w.type, w, ir.Constant(ir.IntType(1), 0))
    return _avx2_unsigned(builder, acc, w, x)


def _sdot(builder, acc, w, x):
    """ARM's dot product extension: signed times signed."""
    return call(builder, "llvm.aarch64.neon.sdot.v4i32.v16i8", acc.type, acc, w, x)


def _neon(builder, acc, w, x):
    """ARM without it: products as 16 bits, added in pairs, and again in pairs."""
    products = ir.VectorType(ir.IntType(16), 8)
    sums = []
    for half in range(2):
        a, b = (_part(builder, v, 2, half) for v in (w, x))
        product = call(builder, "llvm.aarch64.neon.smull.v8i16", products, a, b)
        sums.append(call(builder, "llvm.aarch64.neon.saddlp.v4i32.v8i16", acc.type, product))
    return builder.add(acc, call(builder, "llvm.aarch64.neon.addp.v4i32", acc.type, *sums))


def _plain(builder, acc, w, x):
    """Widen, multiply, add: what any CPU can do."""
    for j in range(4):
        lanes = ir.Constant(ir.VectorType(_i32, 16), list(range(j, 64, 4)))
        a, b = (builder.sext(builder.shuffle_vector(v, v, lanes), acc.type) for v in (w, x))
        acc = builder.add(acc, builder.mul(a, b))
    return acc


class Instruction(NamedTuple):
    """How one family of CPUs computes dot4."""

    features: tuple[str, ...]  # that the CPU must have, as LLVM names them
    signed: Callable  # emits dot4
    unsigned: Callable  # emits dot4_unsigned
    weight_offset: int = 0


_vnni_512, _vnni_256 = _vpdpbusd(512), _in_parts(2, _vpdpbusd(256))

INSTRUCTIONS = {
    "avx512-vnni": Instruction(("avx512f", "avx512bw", "avx512vnni"), _shifted(_vnni_512), _vnni_512, 128),
    "avx-vnni": Instruction(("avx2", "avxvnni"), _shifted(_vnni_256), _vnni_256, 128),
    "avx2": Instruction(("avx2",), _in_parts(2, _avx2_signed), _in_parts(2, _avx2_unsigned)),
    "neon-dotprod": Instruction(("dotprod",), _in_parts(4, _sdot), _in_parts(4, _sdot)),
    "neon": Instruction(("neon",), _in_parts(4, _neon), _in_parts(4, _neon)),
    "plain": Instruction((), _plain, _plain),
}
"""Name -> how; the first one that the CPU can run is chosen."""


def available() -> list[str]:
    """The names in `INSTRUCTIONS` that this machine can run, best first."""
    features = llvm.get_host_cpu_features()
    return [name for name, row in INSTRUCTIONS.items() if all(features.get(f, False) for f in row.features)]


def choose() -> str:
    """The best that the machine has, or the one that the environment variable RWKV_CPU_KERNEL names."""
    names = available()
    wanted = os.environ.get("RWKV_CPU_KERNEL") or names[0]
    if wanted not in names:
        raise ValueError(f"RWKV_CPU_KERNEL is {wanted!r}; this machine can run: {', '.join(names)}")
    return wanted


CHOSEN = choose()
