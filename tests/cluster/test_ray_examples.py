"""The examples with Ray run as they are, on a local Ray, with the built-in model; and the server on Ray Serve."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ray")

import rwkv_cli

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name, folder, cluster):
    """What an example prints; it runs in `folder`."""
    variables = {"PYTHONPATH": str(EXAMPLES.parent), "PYTHONUTF8": "1", "RAY_ADDRESS": cluster.address}
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, "gosling"],
        cwd=folder,
        env=os.environ | variables,
        capture_output=True,
        encoding="utf-8",
        timeout=150,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_batch(cluster, tmp_path):
    lines = [
        line for line in run("ray_batch.py", tmp_path, cluster).splitlines() if ". Once upon a time" in line
    ]
    assert [line.split(".")[0] for line in lines] == [str(i) for i in range(2, 10)]
    assert all(len(line) > len("2. Once upon a time, there were 2 little foxes") + 10 for line in lines)


def test_a_server_with_two_replicas(cluster, tmp_path):
    model = rwkv_cli.load(device="cpu")
    alone = model.generate("Once upon a time", template="raw", seed=1, max_tokens=20)
    text = "".join(step.text for step in alone)
    assert run("ray_serve.py", tmp_path, cluster).endswith(f"Once upon a time{text}\n")
