"""Work on several tensors at a time: order, memory, failures."""

import threading
import time

import pytest

from rwkv_cli import machine
from rwkv_cli.files.pipeline import in_order


class Work:
    """Says when it is called, takes as long as it is told, and knows how much is in memory."""

    def __init__(self, sizes, seconds=0.0):
        self.sizes, self.seconds = sizes, seconds
        self.lock = threading.Lock()
        self.started, self.held, self.most_held, self.most_at_once, self.at_once = [], 0, 0, 0, 0

    def __call__(self, name):
        with self.lock:
            self.started.append(name)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            self.held += self.sizes[name]
            self.most_held = max(self.most_held, self.held)
        time.sleep(self.seconds * (1 + self.sizes[name] % 3))
        with self.lock:
            self.at_once -= 1
        return name.upper()

    def run(self, at_once):
        results = []
        for name, result in in_order(self, self.sizes, at_once):
            results.append((name, result))
            with self.lock:
                self.held -= self.sizes[name]
        return results


SIZES = {"a": 90, "b": 10, "c": 11, "d": 50, "e": 40, "f": 1, "g": 90, "h": 100, "i": 3}


@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_results_come_in_order_and_memory_is_bounded(at_once):
    work = Work(SIZES, seconds=0.002)
    assert work.run(at_once) == [(name, name.upper()) for name in SIZES]
    assert sorted(work.started) == sorted(SIZES)
    assert work.most_held <= max(SIZES.values())
    assert work.most_at_once <= at_once


def test_small_ones_are_worked_on_together():
    sizes = dict.fromkeys("abcdefgh", 10) | {"z": 100}
    work = Work(sizes, seconds=0.05)
    work.run(4)
    assert work.most_at_once > 1


def test_a_failure_comes_in_its_turn_and_ends_the_work():
    def work(name):
        if name == "c":
            raise ValueError("c")
        started.append(name)
        return name

    started = []
    results = in_order(work, dict.fromkeys("abcdefghijkl", 1), 2)
    assert [next(results), next(results)] == [("a", "a"), ("b", "b")]
    with pytest.raises(ValueError, match=r"^c$"):
        next(results)
    assert len(started) < 8


def test_who_stops_listening_ends_the_work():
    work = Work(dict.fromkeys("abcdefghijkl", 1))
    results = in_order(work, work.sizes, 2)
    assert next(results) == ("a", "A")
    results.close()
    assert len(work.started) <= 4


def test_without_threads_it_is_done_here(monkeypatch):
    monkeypatch.setattr(machine, "has_threads", lambda: False)
    work = Work(SIZES)
    assert [name for name, _ in work.run(4)] == list(SIZES)
    assert work.started == list(SIZES)
    assert work.most_at_once == 1


def test_nothing_to_do():
    assert list(in_order(str.upper, {})) == []
