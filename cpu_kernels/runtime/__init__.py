"""What runs the kernels, in plain Python; Numba is imported only to compile.

aot           entry points as machine code, compiled by Numba or loaded from the cache
cache         machine code on disk
host          what the CPU can do
instructions  the integer dot product, by each CPU's own instruction
isolated      the compiler in a process of its own, away from the user's settings of Numba
leftovers     temporary files, and what killed processes left of them
thread_team   the compute threads
"""
