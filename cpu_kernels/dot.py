"""The integer dot product of four bytes, by each CPU's own instruction: the one place that knows about CPUs.

The operation is  dot4(acc, w, x)[i] = acc[i] + sum over j of w[4i + j] * x[4i + j],  for sixteen lanes i, with w and x
signed bytes. x86's instruction takes its first factor unsigned: there the bytes of w are shifted by 128 on their way
in, and a sum over a group must start at -128 * sum(x) to make good for it. `WEIGHT_OFFSET` is that shift.

To add a CPU, write its emitter and add a row to `INSTRUCTIONS`; tests run every row that the machine has.
"""

import os
from collections.abc import Callable
from typing import NamedTuple

import llvmlite.binding as llvm
from llvmlite import ir

from cpu_kernels.simd import I8, I32, _call, _constant, _emits


def _vpdpbusd(builder, acc, w, x):
    """AVX-512 VNNI: sixty-four products in one instruction."""
    unsigned = builder.xor(w, _constant(I8, -128))  # w + 128, as an unsigned byte
    # Older versions of LLVM take vectors of i32, newer ones of i8; LLVM rewrites the older form by itself.
    operands = acc, builder.bitcast(unsigned, I32.llvm), builder.bitcast(x, I32.llvm)
    return _call(builder, "llvm.x86.avx512.vpdpbusd.512", I32.llvm, *operands)


def _plain(builder, acc, w, x):
    """Widen, multiply, add: what any CPU can do."""
    for j in range(4):
        lanes = ir.Constant(ir.VectorType(ir.IntType(32), 16), list(range(j, 64, 4)))
        a, b = (builder.sext(builder.shuffle_vector(v, v, lanes), I32.llvm) for v in (w, x))
        acc = builder.add(acc, builder.mul(a, b))
    return acc


class Instruction(NamedTuple):
    """How one family of CPUs computes dot4."""

    features: tuple[str, ...]  # that the CPU must have, as LLVM names them
    weight_offset: int  # what is added to a weight on its way in
    emit: Callable


INSTRUCTIONS = {
    "avx512-vnni": Instruction(("avx512f", "avx512bw", "avx512vnni"), 128, _vpdpbusd),
    "plain": Instruction((), 0, _plain),
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
WEIGHT_OFFSET = INSTRUCTIONS[CHOSEN].weight_offset

dot4 = _emits(I32, I32, I8, I8)(INSTRUCTIONS[CHOSEN].emit)
