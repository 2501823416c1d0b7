"""Runs of `rwkv batch` that are killed at random: every row is answered once, no complete file is computed again."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.datasets import Versions, answers_of, check_complete, parts_of, processes, write_rows

N = 200
SHARDS = -(-N // 8)


@pytest.fixture
def run(tmp_path, tiny_model, compiled_kernels):  # noqa: ARG001
    """Start the command: its process."""
    file = write_rows(tmp_path / "in.jsonl", N)

    def start(*options, out=tmp_path / "out"):
        command = (sys.executable, "-m", "rwkv_cli", "batch", file, out, "-m", tiny_model)
        common = ("-n", "80", "--ban", "0", "--seed", "3", "--shard-rows", "8", "--threads", "1", "-q")
        return subprocess.Popen([str(word) for word in (*command, *common, *options)], stderr=subprocess.PIPE)

    return start


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def wait_for(n, out, process):
    """Until so many files are there, or the process has ended."""
    while len(parts_of(out)) < n and process.poll() is None:
        time.sleep(0.01)


def children(process):
    """The ids of the processes with a replica that a process has started."""
    return processes("spawn_main", process.pid)


def finish(process):
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1, said
    assert said.decode() == f"rwkv: {N // 17} of {N} rows failed: the column of errors says why\n"


def test_the_command_is_killed(run, out):
    chance, versions = random.Random(1), Versions(out)
    for share in (0.05, 0.25, 0.5):
        process = run()
        wait_for(round(share * SHARDS), out, process)
        time.sleep(chance.random() / 20)
        process.kill()
        process.wait()
        versions.look()
    assert versions.look() < SHARDS  # otherwise nothing was interrupted
    finish(run())
    versions.look()
    check_complete(out, N)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
def test_replicas_are_killed(run, out):
    """Two replicas on one queue, which are started again; the answers are those of one."""
    chance, versions = random.Random(2), Versions(out)
    process = run("--device", "cpu,cpu")
    for share in (0.1, 0.4, 0.7):
        wait_for(round(share * SHARDS), out, process)
        os.kill(chance.choice(children(process)), signal.SIGKILL)
        versions.look()
    finish(process)
    versions.look()
    check_complete(out, N)
    alone = out.with_name("alone")
    finish(run(out=alone))
    assert answers_of(alone) == answers_of(out)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
def test_replicas_end_with_the_command(run, out):
    process = run("--device", "cpu,cpu")
    wait_for(1, out, process)
    pids = children(process)
    assert len(pids) == 2
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while any(
        Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text() for pid in pids
    ):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("device", ["cpu", "cpu,cpu"])
def test_a_signal_ends_it(run, out, number, code, device):
    process = run("--device", device)
    wait_for(1, out, process)
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (code, b"")


def test_a_replica_that_cannot_begin(run):
    process = run("--device", "cpu,cuda:0")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert said.decode().startswith("rwkv: ")
    assert said.count(b"\n") == 1
