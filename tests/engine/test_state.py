"""States: their arrays, and where the numbers are while a backend keeps them in memory of its own."""

import copy
import gc
import pickle
import weakref

import numpy as np
import pytest
from helpers.models import assert_same_state
from helpers.writers import TINY

from rwkv_cli.engine.state import State


def random_state(seed=0):
    rng = np.random.default_rng(seed)
    state = State.zeros(TINY)
    for part in State.PARTS:
        array = getattr(state, part)
        array[...] = rng.standard_normal(array.shape)
    return state


class Away:
    """A owner with one state, whose numbers are those of another one."""

    def __init__(self, state, numbers):
        self.state, self.numbers = state, numbers
        self.calls = []
        state.owner = self

    def evict(self, state):
        self.calls.append("evict")
        if state is self.state:
            for array, numbers in zip(state.host_arrays, self.numbers.host_arrays, strict=True):
                array[...] = numbers
            state.owner = self.state = None

    def snapshot(self, state):
        self.calls.append("snapshot")
        return self.numbers.copy() if state is self.state else None


@pytest.fixture
def away():
    return Away(State.zeros(TINY), random_state())


@pytest.mark.parametrize("part", State.PARTS)
def test_reading_an_array_brings_the_numbers_back_once(away, part):
    state = away.state
    np.testing.assert_array_equal(getattr(state, part), getattr(away.numbers, part))
    assert_same_state(state, away.numbers)
    assert away.calls == ["evict"]


@pytest.mark.parametrize("part", State.PARTS)
def test_replacing_an_array_brings_the_others_back(away, part):
    state = away.state
    new = np.ones_like(getattr(away.numbers, part))
    setattr(state, part, new)
    for name in State.PARTS:
        expected = new if name == part else getattr(away.numbers, name)
        np.testing.assert_array_equal(getattr(state, name), expected)


def test_an_array_that_somebody_holds_has_the_numbers_once_they_are_back():
    state = State.zeros(TINY)
    held = state.wkv
    away = Away(state, random_state())
    assert not held.any()
    state.to_host()
    np.testing.assert_array_equal(held, away.numbers.wkv)


def test_a_copy_leaves_the_state_where_it_is(away):
    state = away.state
    made = state.copy()
    assert_same_state(made, away.numbers)
    assert (state.owner, made.owner) == (away, None)
    made.wkv[...] = 0
    assert_same_state(state, away.numbers)


def test_a_copy_of_a_state_that_has_just_come_back(away):
    state = away.state
    owner = state.owner
    state.to_host()
    state.owner = owner  # as another thread sees it that has asked before
    assert_same_state(state.copy(), away.numbers)


def test_sizes_are_known_without_bringing_anything_back(away):
    state = away.state
    assert state.fits(TINY)
    assert state.nbytes == TINY.state_bytes
    assert away.calls == []


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, lambda state: pickle.loads(pickle.dumps(state))])
def test_other_ways_to_copy(away, way):
    assert_same_state(way(away.state), away.numbers)


def test_in_memory_a_head_lies_key_by_key():
    state = random_state()
    by_key = state.host_arrays[1]
    assert by_key.flags.c_contiguous
    np.testing.assert_array_equal(by_key.swapaxes(-1, -2), state.wkv)
    assert np.shares_memory(by_key, state.wkv)


def test_a_keeper_need_not_keep_a_state_alive():
    state = State.zeros(TINY)
    seen = weakref.ref(state)
    del state
    gc.collect()
    assert seen() is None
