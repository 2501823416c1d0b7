"""Kinds of CPUs that machine code is built for beforehand, on any machine: see `cpu_kernels.runtime.prebuilt`.

Each is a set of features that very many CPUs have, with one of the `instructions`. LLVM's own names for such sets are
https://en.wikipedia.org/wiki/X86-64#Microarchitecture_levels and, on ARM, "generic".
"""

from __future__ import annotations

from collections.abc import Iterable

from cpu_kernels.runtime.host import Cpu

_X86_2 = "cmov cx8 cx16 fxsr mmx popcnt sahf sse sse2 sse3 sse4.1 sse4.2 ssse3".split()
_X86_3 = [*_X86_2, *"avx avx2 bmi bmi2 f16c fma lzcnt movbe xsave".split()]
_X86_4 = [*_X86_3, *"avx512bw avx512cd avx512dq avx512f avx512vl".split()]


def _x86(level: str, features: Iterable[str]) -> Cpu:
    return Cpu("x86_64-unknown-linux-gnu", level, dict.fromkeys(features, True))


def _arm(*features: str) -> Cpu:
    return Cpu("aarch64-unknown-linux-gnu", "generic", dict.fromkeys(("fp-armv8", "neon", *features), True))


TARGETS = {
    "amx-int8": _x86("x86-64-v4", [*_X86_4, "avx512vnni", "amx-tile", "amx-int8"]),
    "avx512-vnni": _x86("x86-64-v4", [*_X86_4, "avx512vnni"]),
    "avx-vnni": _x86("x86-64-v3", [*_X86_3, "avxvnni"]),
    "avx2": _x86("x86-64-v3", _X86_3),
    "neon-dotprod": _arm("dotprod"),
    "neon": _arm(),
}
"""By the name of their instruction: those of Linux. On other systems, and on rarer CPUs, kernels are compiled."""
