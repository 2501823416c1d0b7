"""The integer dot product of four bytes, as functions for Numba: see `cpu_kernels.instructions`."""

from cpu_kernels.instructions import CHOSEN, INSTRUCTIONS
from cpu_kernels.simd import I8, I32, _emits

WEIGHT_OFFSET = INSTRUCTIONS[CHOSEN].weight_offset

dot4 = _emits(I32, I32, I8, I8)(INSTRUCTIONS[CHOSEN].signed)
dot4_unsigned = _emits(I32, I32, I8, I8)(INSTRUCTIONS[CHOSEN].unsigned)
