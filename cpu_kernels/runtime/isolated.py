"""Compiles an entry point in a process of its own, in which Numba has its default settings.

Numba has some seventy settings, from environment variables and from a file in the current folder. They are meant for
the user's own programs: here they would leave out optimizations or instructions, add checks that need Numba's runtime,
end the process within LLVM, or print; and what was compiled under them would stay in the cache. A process that has
imported Numba already may also have changed any of them since.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from pathlib import Path

import llvmlite.binding as llvm

from cpu_kernels.runtime.host import host_features
from cpu_kernels.runtime.instructions import CHOSEN

_PREFIX = "NUMBA_"
_FILE = ".numba_config.yaml"

# The result follows a mark, since anything that is imported may print.
_PROGRAM = """
import sys, warnings
path, name, mark = sys.argv[1:]
warnings.simplefilter("ignore")
import json
sys.path[:] = json.loads(path)
from cpu_kernels.runtime.aot import compile_entry_point
code = compile_entry_point(name)
sys.stdout.flush()
sys.stdout.buffer.write(mark.encode() + code)
sys.stdout.flush()
"""


class CompilationError(RuntimeError):
    """An entry point cannot be compiled on this machine."""


def compiled(name: str) -> bytes | None:
    """The object file of an entry point, or None where no process of Python can be started.

    Raises CompilationError if the compiler does not live through it.
    """
    if getattr(sys, "frozen", False) or not sys.executable:  # the executable is some other program
        return None
    mark = secrets.token_hex(16)
    path = json.dumps([str(Path(entry).absolute()) for entry in sys.path])
    # -P: the folder that it runs in must not be searched for modules.
    command = [sys.executable, "-P", "-c", _PROGRAM, path, name, mark]
    environment = {key: value for key, value in os.environ.items() if not key.upper().startswith(_PREFIX)}
    if (features := host_features().flatten()) != llvm.get_host_cpu_features().flatten():
        environment[_PREFIX + "CPU_FEATURES"] = features  # otherwise Numba goes by LLVM
    environment |= {"RWKV_CPU_KERNEL": CHOSEN, "OPENBLAS_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command,
            env=environment,
            cwd=Path(__file__).parent,  # the package's own folder has no file of settings
            stdin=subprocess.DEVNULL,
            capture_output=True,
        )
    except (OSError, ValueError):  # no process to be had, an environment that cannot be passed on
        return None
    if done.returncode == 0:
        return done.stdout.rpartition(mark.encode())[2]
    if done.returncode < 0:
        raise CompilationError(f"compiling {name} ended by signal {-done.returncode} (too little memory?)")
    return None  # compiled in this process, it fails with its own message


def has_settings() -> bool:
    """Whether Numba may have other settings than its own in this process."""
    return (
        "numba" in sys.modules or any(key.startswith(_PREFIX) for key in os.environ) or Path(_FILE).exists()
    )
