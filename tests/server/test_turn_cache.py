"""Snapshots found by the tokens that lead to them."""

import numpy as np
import pytest
from helpers.talker import talking
from hypothesis import given
from hypothesis import strategies as st

from rwkv_cli.engine.session import Snapshot
from rwkv_cli.server import turn_cache
from rwkv_cli.server.turn_cache import LEAST, TurnCache

MODEL = talking()
SIZE = 10**9


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("RWKV_CACHE_DIR", str(tmp_path / "cache"))


def snapshot(value):
    found = Snapshot.empty(MODEL.config)
    found.state.shift_att[:] = value
    return Snapshot(found.state, np.full(MODEL.config.vocab_size, value, np.float32), value)


def value_of(found):
    return None if found is None else (found[0], int(found[1].state.shift_att[0, 0]))


TOKENS = [*range(1, 101)]


def test_the_longest_beginning_is_found():
    cache = TurnCache(MODEL, SIZE, 0)
    for length in (20, 40, 60):
        cache.keep(TOKENS[:length], snapshot(length))
    assert value_of(cache.longest(TOKENS)) == (60, 60)
    assert value_of(cache.longest(TOKENS[:59])) == (40, 40)
    assert value_of(cache.longest([*TOKENS[:50], 0, *TOKENS[51:]])) == (40, 40)
    assert cache.longest([0, *TOKENS[1:]]) is None
    cache.keep(TOKENS[:40], snapshot(7))
    assert value_of(cache.longest(TOKENS[:50])) == (40, 7)


def test_few_tokens_are_not_worth_it():
    cache = TurnCache(MODEL, SIZE, SIZE)
    cache.keep(TOKENS[: LEAST - 1], snapshot(1))
    cache.keep(TOKENS[:50], Snapshot.empty(MODEL.config))  # nothing was read: there are no logits
    assert cache.longest(TOKENS) is None
    assert turn_cache.files() == []


def test_the_least_recently_used_leaves_the_memory_first():
    each = snapshot(1).nbytes
    cache = TurnCache(MODEL, 2 * each, 0)
    first, second, third = TOKENS[:20], TOKENS[20:40], TOKENS[40:60]
    cache.keep(first, snapshot(1))
    cache.keep(second, snapshot(2))
    assert cache.longest(first)
    cache.keep(third, snapshot(3))
    assert cache.nbytes == 2 * each
    assert cache.longest(second) is None
    assert cache.longest(first)
    assert cache.longest(third)


def test_what_left_the_memory_is_read_from_disk_and_another_process_finds_it():
    cache = TurnCache(MODEL, 0, SIZE)
    cache.keep(TOKENS[:20], snapshot(1))
    cache.keep(TOKENS[:40], snapshot(2))
    for found in (cache, TurnCache(MODEL, SIZE, SIZE)):
        assert value_of(found.longest(TOKENS)) == (40, 2)
        assert value_of(found.longest(TOKENS[:30])) == (20, 1)
    cache.forget_memory()
    assert cache.nbytes == 0
    assert value_of(cache.longest(TOKENS)) == (40, 2)


def test_another_model_finds_nothing():
    TurnCache(MODEL, SIZE, SIZE).keep(TOKENS, snapshot(1))
    other = talking()
    other.info = type(other.info)(**{**vars(other.info), "source": {"name": "x", "sha256": "1" * 64}})
    assert TurnCache(other, SIZE, SIZE).longest(TOKENS) is None


def test_damaged_and_strange_files_are_passed_over():
    cache = TurnCache(MODEL, SIZE, SIZE)
    cache.keep(TOKENS[:20], snapshot(1))
    cache.keep(TOKENS[:40], snapshot(2))
    longest = next(path for _, _, path in turn_cache.files() if path.stem.endswith("-40"))
    longest.write_bytes(b"x")
    (turn_cache.folder() / "x.safetensors").write_bytes(b"")
    (turn_cache.folder() / "x-99999999999999999999.safetensors").write_bytes(b"")
    fresh = TurnCache(MODEL, SIZE, SIZE)
    assert value_of(fresh.longest(TOKENS)) == (20, 1)
    assert value_of(fresh.longest(TOKENS)) == (20, 1)


def test_the_disk_has_a_limit():
    each = snapshot(1)
    cache = TurnCache(MODEL, 0, 3 * each.nbytes)
    for n in range(6):
        cache.keep([n, *TOKENS[:20]], snapshot(n))
    assert 1 <= len(turn_cache.files()) <= 3
    assert value_of(cache.longest([5, *TOKENS])) == (21, 5)


def test_a_folder_that_cannot_be_written_is_done_without(tmp_path):
    (tmp_path / "cache").write_bytes(b"a file")
    cache = TurnCache(MODEL, SIZE, SIZE)
    cache.keep(TOKENS, snapshot(1))
    assert value_of(cache.longest(TOKENS)) == (100, 1)


@given(
    st.lists(st.lists(st.integers(0, 3), min_size=LEAST, max_size=24), max_size=8),
    st.lists(st.integers(0, 3), max_size=30),
)
def test_it_finds_what_a_search_would(kept, asked):
    cache = TurnCache(MODEL, SIZE, 0)
    for n, tokens in enumerate(kept):
        cache.keep(tokens, snapshot(n))
    last = {tuple(tokens): n for n, tokens in enumerate(kept)}
    fitting = [tokens for tokens in last if tuple(asked[: len(tokens)]) == tokens]
    expected = max(fitting, key=len, default=None)
    assert value_of(cache.longest(asked)) == (expected and (len(expected), last[expected]))
