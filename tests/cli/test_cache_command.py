"""`rwkv cache`: where the disk went."""

import json
import os
import subprocess
import sys

import pytest

from cpu_kernels.runtime.leftovers import temporary_beside
from rwkv_cli.files.lock import locked

KINDS = [
    "compiled kernels",
    "converted checkpoints",
    "prompt cache",
    "conversations of the server",
    "results of tasks",
    "downloads in progress",
    "left-overs",
]


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """A cache with something of every kind, of 10 bytes to 6 MB; and what is in use."""
    from huggingface_hub import constants

    cache = tmp_path / "cache"
    monkeypatch.setenv("RWKV_CACHE_DIR", str(cache))
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "hf"))
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    target = cache / "models" / "g-int8-0.safetensors"
    live = temporary_beside(target)
    left = live.with_name(live.name.replace(f"-{os.getpid()}-", f"-{dead.pid}-"))
    sizes = {
        cache / "kernels-0" / "forward.passes": 10,
        cache / "cuda" / "entries" / "0" / "1": 0,
        target: 200,
        cache / "prompts" / "0.safetensors": 3000,
        cache / "turns" / "0-16.safetensors": 9_000,
        cache / "responses" / "resp_0.json": 1_000,
        cache / "eval" / "0.jsonl": 6_000_000,
        cache / "downloads" / "idle" / "a.pth.rwkv-part": 30_000,
        left: 500_000,
        live: 7,
        cache / "downloads" / "busy" / "b.pth.rwkv-part": 7,
        cache / "downloads" / "whole" / "c.pth": 7,
    }
    for path, size in sizes.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(size))
    with locked(cache / "downloads" / "busy.lock"):
        yield cache


def test_what_there_is(rwkv, cache):
    done = rwkv("cache", "--json")
    assert done.err == ""
    result = json.loads(done.out)
    assert {name: row["bytes"] for name, row in result["kinds"].items()} == dict(
        zip(KINDS, (10, 200, 3000, 10_000, 6_000_000, 30_000, 500_000), strict=True)
    )
    assert (result["bytes"], result["folder"], result["action"]) == (6_543_210, str(cache), "show")
    shown = rwkv("cache").out
    assert all(kind in shown for kind in KINDS)
    assert "30.0 kB in 1 file" in shown


def test_clear_leaves_what_is_in_use(rwkv, cache):
    assert rwkv("cache", "clear").out == "removed 6.5 MB\n"
    remaining = sorted(path.name.split(".")[-1] for path in cache.rglob("*") if path.is_file())
    assert remaining == ["lock", "pth", "rwkv-part", "tmp"]
    assert json.loads(rwkv("cache", "--json").out)["bytes"] == 0


def test_nothing_is_there(rwkv, monkeypatch, tmp_path):
    monkeypatch.setenv("RWKV_CACHE_DIR", str(tmp_path / "missing"))
    result = json.loads(rwkv("cache", "--json").out)
    assert list(result["kinds"]) == KINDS
    assert rwkv("cache", "clean").code == 2
