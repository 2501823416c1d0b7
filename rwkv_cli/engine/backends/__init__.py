"""What computes.

base       the class of all backends, with safe defaults
registry   the table of backends, and the choice among them
reference  RWKV-7 in plain NumPy, in the order of the paper's formulas: the specification
cpu        the kernels of cpu_kernels/
cuda       the kernels of cuda/, by engine/gpu/
"""
