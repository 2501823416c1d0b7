"""Answer a large dataset while everything is killed at random, and check that every row is answered once.

    python scripts/soak_batch.py                  on this machine: the command, and its two replicas, are killed
    python scripts/soak_batch.py --ray            on Ray: the command, replicas and the second of two nodes are killed
    python scripts/soak_batch.py --disk 4M        on a file system that is too small at first (root only)

The files of answers that are complete must never be written again. The exit code is 0 if all of that holds.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from helpers.datasets import Versions, check_complete, parts_of, processes, write_rows

RAY = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0"}


class Soak:
    """A dataset, and runs of the command over it."""

    def __init__(self, arguments: argparse.Namespace, folder: Path, cluster: Any) -> None:
        self.rows, self.cluster, self.out = arguments.rows, cluster, folder / "out"
        self._file = write_rows(folder / "in.jsonl", arguments.rows)
        self._options = ["-n", str(arguments.max_tokens), "--shard-rows", str(arguments.shard_rows), "-q"]
        self._options += ["--ray-address", cluster.address] if cluster else ["--device", "cpu,cpu"]
        self.versions, self.kills = Versions(self.out), dict[str, int]()
        self._chance = random.Random(arguments.seed)

    def start(self) -> subprocess.Popen[bytes]:
        """Start the command, or continue it."""
        words = [sys.executable, "-m", "rwkv_cli", "batch", str(self._file), str(self.out), "--seed", "1"]
        return subprocess.Popen([*words, *self._options], stderr=subprocess.PIPE)

    def run(self, most_files: int) -> float:
        """Run it, and kill something whenever up to so many more files are there, until all is done: the seconds."""
        begun, process, kill_at = time.monotonic(), self.start(), 1
        while process.poll() is None:
            time.sleep(self._chance.uniform(0.01, 0.5))
            if len(parts_of(self.out)) >= kill_at:
                process = self._kill(process)
                kill_at = self.versions.look() + self._chance.randint(1, most_files)
        _, said = process.communicate()
        assert process.returncode == 1, said.decode()  # some rows are broken
        self.versions.look()
        return time.monotonic() - begun

    def _kill(self, process: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
        """Kill something with signal 9: the process of the command, a new one if that was killed."""
        replicas = self._replicas(process)
        kinds = ["driver"] + ["replica"] * bool(replicas) + ["node"] * bool(self.cluster)
        kind = self._chance.choice(kinds)
        self.kills[kind] = self.kills.get(kind, 0) + 1
        if kind == "replica":
            os.kill(self._chance.choice(replicas), signal.SIGKILL)
        elif kind == "node":
            self.cluster.remove_node(self.cluster.second, allow_graceful=False)
            self.cluster.second = self.cluster.add_node(num_cpus=1)
        else:
            process.kill()
            process.wait()
            process = self.start()
        print(f"  {len(parts_of(self.out)):,} files: killed a {kind}", flush=True)
        return process

    def _replicas(self, process: subprocess.Popen[bytes]) -> list[int]:
        return processes("MapWorker") if self.cluster else processes("spawn_main", process.pid)


def fill(soak: Soak, size: str) -> None:
    """Run on a file system that is too small until that is said, then make it larger."""
    soak.out.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", soak.out], check=True)
    process = soak.start()
    _, said = process.communicate()
    assert process.returncode == 1, said.decode()
    assert b"no space left on the disk" in said, said.decode()
    print(f"  {soak.versions.look():,} files: {said.decode().strip()}", flush=True)
    subprocess.run(["mount", "-o", "remount,size=2G", soak.out], check=True)


def two_nodes() -> Any:
    """A Ray cluster on this machine, of two nodes with a core each."""
    from ray.cluster_utils import Cluster

    found: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    found.second = found.add_node(num_cpus=1)
    return found


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--shard-rows", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1, help="of what is killed when")
    parser.add_argument("--files", type=int, default=20, help="the most files between two kills")
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--disk", metavar="SIZE", help="of the file system at first, such as 4M")
    arguments = parser.parse_args()
    os.environ.update(RAY)
    with tempfile.TemporaryDirectory() as temporary:
        cluster = two_nodes() if arguments.ray else None
        soak = Soak(arguments, Path(temporary), cluster)
        try:
            if arguments.disk:
                fill(soak, arguments.disk)
            seconds = soak.run(arguments.files)
            check_complete(soak.out, arguments.rows)
        finally:
            if arguments.disk:
                subprocess.run(["umount", soak.out], check=False)
            if cluster:
                cluster.shutdown()
    print(f"{arguments.rows:,} rows, each once, in {seconds:.0f} s; killed: {soak.kills}")


if __name__ == "__main__":
    main()
