#!/usr/bin/env python3
"""A program in its own process, which stays alive for the whole comparison and is idle between commands.

Both ends of the pipe are here. A command is a line, "prefill 512", "decode 64" or "read"; the answer is a line of JSON.
The program's own output goes to a log, whose last line is the reason if it fails.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from programs import ENTRIES, Probe, Program

PROBE = "memory"
WARM_UP = {"prefill": 512, "decode": 16}
PATIENCE = 600
"""Seconds to wait for an answer; a program that takes longer is killed."""
WARM_UPS = 2  # TorchScript's optimized code is ready after the second


class WorkerError(Exception):
    """The program could not start, or it died; the message is the reason."""


class Worker:
    """Runs a program in a process and sends it commands."""

    def __init__(self, name: str, folder: Path, size: str, threads: int) -> None:
        """Raises WorkerError when the program cannot run here."""
        self.name = name
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115, see `close`
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
        self._process = subprocess.Popen(
            [sys.executable, __file__, name, folder, size, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
            text=True,
        )
        self.facts = self._answer()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def ask(self, command: str) -> dict[str, Any]:
        """Send a command and wait for the answer. Raises WorkerError."""
        assert self._process.stdin
        try:
            self._process.stdin.write(command + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # reading the answer finds the reason
        return self._answer()

    def close(self) -> None:
        """End the process."""
        if self._process.stdin:
            self._process.stdin.close()
        self._process.wait()
        self._log.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        patience = threading.Timer(PATIENCE, self._process.kill)
        patience.start()
        line = self._process.stdout.readline()
        patience.cancel()
        if line:
            return dict(json.loads(line))
        code = self._process.wait()
        self._log.seek(0)
        lines = self._log.read().strip().splitlines()
        raise WorkerError(lines[-1] if code > 0 and lines else f"killed by signal {-code}")


class Neighbours:
    """Measures from its creation on; Linux only, elsewhere it always says 0.

    Time that the hypervisor gave to other virtual machines (steal) counts as well.
    """

    def __init__(self, pids: Sequence[int]) -> None:
        """`pids` are our own processes, in addition to this one."""
        self._pids = pids
        self._start = time.monotonic()
        self._others = self._seconds()

    def cores(self) -> float:
        """Cores that other processes kept busy since then, on average."""
        elapsed = time.monotonic() - self._start
        return round(max(0.0, self._seconds() - self._others) / elapsed, 3)

    def _seconds(self) -> float:
        """CPU time of all other processes."""
        try:
            return _machine() - sum(_process(pid) for pid in [*self._pids, os.getpid()])
        except OSError:
            return 0.0


def _machine() -> float:
    """CPU seconds of all processes, and steal."""
    user, nice, system, _idle, _wait, irq, soft, steal = _numbers("/proc/stat", 1, 9)
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")


def _process(pid: int) -> float:
    """User and system seconds. The name in the second field may contain spaces, so fields are counted from its end."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _numbers(path: str, first: int, last: int) -> list[int]:
    """Fields of the first line of a file."""
    with Path(path).open(encoding="utf-8") as file:
        return [int(field) for field in file.readline().split()[first:last]]


def serve(name: str, folder: Path, size: str, threads: int) -> None:
    """Load the program, warm it up, and answer commands until the pipe is closed."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # the program's own output
    if name == PROBE:
        _serve_probe(Probe(threads), answers)
        return
    program = ENTRIES[name].open(folder, size, threads)
    for _ in range(WARM_UPS):
        for command, n_tokens in WARM_UP.items():
            _run(program, command, n_tokens)
    _send(answers, {"description": program.description, "weight_bytes": program.weight_bytes})
    for line in sys.stdin:
        command, count = line.split()
        _send(answers, {"seconds": _run(program, command, int(count))})


def _serve_probe(probe: Probe, answers: TextIO) -> None:
    probe.read()
    _send(answers, {"description": probe.description})
    for _ in sys.stdin:
        start = time.perf_counter()
        n_bytes = probe.read()
        _send(answers, {"seconds": time.perf_counter() - start, "bytes": n_bytes})


def _run(program: Program, command: str, n_tokens: int) -> float:
    """Seconds of "prefill", from an empty state, or of "decode", from the current one."""
    tokens = _some_tokens(n_tokens)
    if command == "prefill":
        program.reset()
    batches: Sequence[Sequence[int]] = [tokens] if command == "prefill" else [[token] for token in tokens]
    start = time.perf_counter()
    for batch in batches:
        program.forward(batch)
    return time.perf_counter() - start


def _some_tokens(n_tokens: int) -> list[int]:
    """Random tokens, the same for every program."""
    return [int(token) for token in np.random.default_rng(n_tokens).integers(1, 60_000, n_tokens)]


def _send(answers: TextIO, answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    serve(sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
