"""Compiles entry points in processes of their own, in which Numba has its default settings.

Numba has some seventy settings, from environment variables and from a file in the current folder. They are meant for
the user's own programs: here they would leave out optimizations or instructions, add checks that need Numba's runtime,
end the process within LLVM, or print; and what was compiled under them would stay in the cache. A process that has
imported Numba already may also have changed any of them since.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import llvmlite.binding as llvm

from cpu_kernels.runtime import host
from cpu_kernels.runtime.compiler import CompilationError
from cpu_kernels.runtime.host import Cpu

_PREFIX = "NUMBA_"
_FILE = ".numba_config.yaml"

_FAST, _PORTABLE = "compile_as_a_whole", "compile_entry_point"  # of `compiler`

# Each result follows a mark, since anything that is imported may print.
_PROGRAM = """
import sys, warnings
path, cpu, names, way, mark = sys.argv[1:]
warnings.simplefilter("ignore")
import json
sys.path[:] = json.loads(path)
from cpu_kernels.runtime import host
host.assume(host.Cpu(*json.loads(cpu)))
from cpu_kernels.runtime import compiler
for name in json.loads(names):
    code = getattr(compiler, way)(name)
    sys.stdout.flush()
    sys.stdout.buffer.write(f"{mark}{name}\\n".encode() + code)
sys.stdout.flush()
"""


class Job(NamedTuple):
    """What one process compiles."""

    names: tuple[str, ...]  # of entry points
    cpu: Cpu
    instruction: str  # see `cpu_kernels.runtime.instructions`


def compiled(jobs: Sequence[Job]) -> list[dict[str, bytes]]:
    """Entry point -> object file, of each job; nothing where no process of Python can do it.

    As many jobs are done at once as there are processors. Raises CompilationError if a compiler does not live through
    one.
    """
    if getattr(sys, "frozen", False) or not sys.executable:  # the executable is some other program
        return [{} for _ in jobs]
    at_once, found = os.cpu_count() or 1, list[dict[str, bytes]]()
    for start in range(0, len(jobs), at_once):
        found += _compiled(jobs[start : start + at_once], _FAST)
    for i, job in enumerate(jobs):
        if not found[i] and job.cpu == host.this_cpu():
            [found[i]] = _compiled([job], _PORTABLE)
    return found


def _compiled(jobs: Sequence[Job], way: str) -> list[dict[str, bytes]]:
    """See `compiled`: all at once, in one of two ways."""
    mark = secrets.token_hex(16)
    with contextlib.ExitStack() as stack:
        try:
            running = [stack.enter_context(_Process(_command(job, way, mark), job)) for job in jobs]
        except (OSError, ValueError):  # no process to be had, an environment that cannot be passed on
            return [{} for _ in jobs]
        return [_result(process, job, mark) for process, job in zip(running, jobs, strict=True)]


def _result(process: subprocess.Popen[bytes], job: Job, mark: str) -> dict[str, bytes]:
    """What a process has compiled, once it has ended."""
    output, _ = process.communicate()
    if process.returncode < 0:
        names = ", ".join(job.names)
        raise CompilationError(
            f"compiling {names} ended by signal {-process.returncode} (too little memory?)"
        )
    parts = (part.partition(b"\n") for part in output.split(mark.encode())[1:])
    return {name.decode(): code for name, _, code in parts} if process.returncode == 0 else {}


class _Process(subprocess.Popen[bytes]):
    """A compiler, which ends when it is left."""

    def __init__(self, command: Sequence[str], job: Job) -> None:
        super().__init__(
            command,
            env=_environment(job),
            cwd=Path(__file__).parent,  # the package's own folder has no file of settings
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def __exit__(self, *exception: object) -> None:
        self.kill()
        super().__exit__(*exception)  # type: ignore[arg-type]


def _command(job: Job, way: str, mark: str) -> list[str]:
    path = json.dumps([str(Path(entry).absolute()) for entry in sys.path])
    # -P: the folder that it runs in must not be searched for modules.
    arguments = [path, json.dumps([*job.cpu]), json.dumps(job.names), way, mark]
    return [sys.executable, "-P", "-c", _PROGRAM, *arguments]


def _environment(job: Job) -> dict[str, str]:
    environment = {key: value for key, value in os.environ.items() if not key.upper().startswith(_PREFIX)}
    if job.cpu == host.this_cpu() and job.cpu.flags != llvm.get_host_cpu_features().flatten():
        environment[_PREFIX + "CPU_FEATURES"] = job.cpu.flags  # otherwise Numba goes by LLVM
    return environment | {"RWKV_CPU_KERNEL": job.instruction, "OPENBLAS_NUM_THREADS": "1"}


def has_settings() -> bool:
    """Whether Numba may have other settings than its own in this process."""
    return (
        "numba" in sys.modules or any(key.startswith(_PREFIX) for key in os.environ) or Path(_FILE).exists()
    )
