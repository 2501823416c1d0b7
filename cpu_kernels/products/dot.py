"""The integer dot product of four bytes, as functions for Numba: see `cpu_kernels.runtime.instructions`."""

from cpu_kernels.runtime.instructions import CHOSEN, INSTRUCTIONS
from cpu_kernels.simd import I8, I32, intrinsic_of

WEIGHT_OFFSET = INSTRUCTIONS[CHOSEN].weight_offset
HAS_TILES = INSTRUCTIONS[CHOSEN].has_tiles

dot4 = intrinsic_of(I32, I32, I8, I8)(INSTRUCTIONS[CHOSEN].signed)
dot4_unsigned = intrinsic_of(I32, I32, I8, I8)(INSTRUCTIONS[CHOSEN].unsigned)
