"""What runs the kernels, in plain Python; Numba is imported only to compile.

aot           entry points as functions
cache         machine code on disk
compiler      entry points to machine code
host          what the CPU can do
instructions  the integer dot product, by each CPU's own instruction
isolated      the compiler in processes of its own, away from the user's settings of Numba
leftovers     temporary files, and what killed processes left of them
prebuilt      machine code that comes with the installation
targets       the kinds of CPUs that it is built for
thread_team   the compute threads
"""
