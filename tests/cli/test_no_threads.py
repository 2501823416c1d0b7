"""Where the system gives no more threads: a limit of processes, a container's, an old filter of system calls."""

import threading
from pathlib import Path

import numpy as np
import pytest

from rwkv_cli import machine
from rwkv_cli.engine.backends import compute_threads
from rwkv_cli.files import quantization


@pytest.fixture
def no_threads(monkeypatch):
    """No thread can be started; those of the CPU backend are not there yet."""

    def refuse(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    for cached in (machine.has_threads, compute_threads.team):
        cached.cache_clear()
    yield
    for cached in (machine.has_threads, compute_threads.team):
        cached.cache_clear()


def test_a_text_is_the_same(rwkv, tiny_model, request):
    command = ("generate", "-m", tiny_model, "-p", "Once", "-n", 9, "--threads", 3, "--seed", 1, "-q")
    expected = rwkv(*command)
    request.getfixturevalue("no_threads")
    assert rwkv(*command).out == expected.out != ""


@pytest.mark.usefixtures("no_threads")
def test_a_conversion_needs_none(rwkv, tiny_model, tmp_path):
    result = rwkv("quantize", tiny_model, tmp_path / "int4.safetensors", "--type", "int4", "--json")
    assert (result.code, result.err) == (0, "")


def test_rows_are_all_done(request):
    done = np.zeros(3000, int)

    def work(rows: slice) -> None:
        done[rows] = 1

    request.getfixturevalue("no_threads")
    quantization._by_rows(work, len(done), quantization._VALUES_AT_ONCE // 10)
    assert done.all()


def test_whether_there_are_any(request):
    assert machine.has_threads()
    request.getfixturevalue("no_threads")
    assert not machine.has_threads()


@pytest.mark.usefixtures("no_threads")
def test_what_cannot_do_without_says_so(rwkv, monkeypatch, tmp_path: Path):
    def needs_one(_):
        threading.Thread(target=print).start()

    monkeypatch.setattr("rwkv_cli.catalog.registry.locate", needs_one)
    result = rwkv("info", tmp_path)
    assert result.sentence == "the system allows no more threads: raise the limit of processes (ulimit -u)"
