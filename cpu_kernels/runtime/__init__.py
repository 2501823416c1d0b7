"""What runs the kernels, in plain Python; Numba is imported only to compile.

aot           entry points as machine code, compiled by Numba or loaded from the cache
cache         machine code on disk
instructions  the integer dot product, by each CPU's own instruction
thread_team   the compute threads
"""
