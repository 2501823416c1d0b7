"""Speculation: the text is the same as without it, to the token, and so is the state after it."""

import numpy as np
import pytest
from helpers.models import assert_same_state, fine_weights, some_tokens, write_and_open
from helpers.writers import TINY
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkv_cli.engine import speculation
from rwkv_cli.engine.backends.cpu import CpuBackend
from rwkv_cli.engine.backends.reference import ReferenceBackend
from rwkv_cli.engine.drafting import Drafter, LookupDrafter, ModelDrafter, SelfDrafter
from rwkv_cli.engine.sampling import Sampler
from rwkv_cli.engine.session import Session
from rwkv_cli.engine.state import State
from rwkv_cli.sampling_settings import SamplingSettings

WAYS = ({"temperature": 0}, {}, {"top_p": 1, "temperature": 1.5}, {"top_k": 5, "presence_penalty": 1})


@pytest.fixture(scope="module")
def backends(tmp_path_factory):
    """The same weights in two types."""
    folder = tmp_path_factory.mktemp("tiny")
    return tuple(
        CpuBackend(write_and_open(folder / kind, fine_weights(TINY), kind)) for kind in ("int8", "int4")
    )


class Prophet(Drafter):
    """Knows what comes, and is wrong where that is wanted."""

    def __init__(self, tokens, is_right):
        self.tokens, self.is_right, self.read = tokens, is_right, 0

    def observe(self, tokens):
        self.read += len(tokens)

    def propose(self, token, _state, _sampler, most):
        assert self.tokens[self.read] == token
        found = []
        for i, each in enumerate(self.tokens[self.read + 1 : self.read + 1 + most], self.read + 1):
            found.append(each if self.is_right(i) else (each + 1) % TINY.vocab_size)
        return found


@pytest.fixture(autouse=True)
def always(monkeypatch):
    """It pays, however long it takes: how many tokens are proposed is drawn, so that all lengths come."""
    rng = np.random.default_rng(0)
    monkeypatch.setattr(speculation._Pace, "length", lambda _self: int(rng.integers(0, speculation.MOST + 1)))


def sampled(session, n):
    return [session.sample() for _ in range(n)]


@settings(max_examples=40)
@given(data=st.data())
@pytest.mark.parametrize("kind", ["cpu", "reference"])
def test_whatever_is_proposed_the_text_is_the_same(backends, tmp_path_factory, kind, data):
    """And the session can be looked at, forked and taken back at any place."""
    backend = backends[0]
    if kind == "reference":
        path = tmp_path_factory.mktemp("reference") / "x"
        backend = ReferenceBackend(write_and_open(path, fine_weights(TINY), "fp32"))
    options = data.draw(st.sampled_from(WAYS))
    prompt = some_tokens(TINY, 5)
    plain = Session(backend, Sampler(SamplingSettings(seed=1, **options)))
    plain.feed(prompt)
    expected = sampled(plain, 40)
    wrong = data.draw(st.sets(st.integers(0, 60)), "wrong")
    text = [*prompt, *(choice.token for choice in expected)]
    session = Session(
        backend, Sampler(SamplingSettings(seed=1, **options)), drafter=Prophet(text, lambda i: i not in wrong)
    )
    session.feed(prompt)
    for i, choice in enumerate(expected):
        found = session.sample()
        if kind == "cpu":
            assert found == choice
        else:  # whose products of one token and of many differ in the last bits
            assert found.token == choice.token
            assert found.logprob == pytest.approx(choice.logprob, abs=1e-4)
        if data.draw(st.integers(0, 9), "look") == 0:
            state = State.zeros(TINY)
            logits = backend.forward(text[: len(prompt) + i], state)
            snapshot = session.snapshot()
            assert snapshot.n_tokens == len(prompt) + i
            if kind == "cpu":
                assert_same_state(snapshot.state, state)
                np.testing.assert_array_equal(snapshot.logits, logits)
            fork = session.fork()
            rest = expected[i + 1 : i + 4]
            assert [choice.token for choice in sampled(fork, len(rest))] == [each.token for each in rest]


@pytest.mark.parametrize("options", WAYS)
@pytest.mark.parametrize("kind", ["lookup", "self", "model", "other"])
def test_drafters(backends, tmp_path, kind, options):
    backend, smaller = backends
    other = CpuBackend(write_and_open(tmp_path / "x", fine_weights(TINY, 9), "int8"))
    make = {
        "lookup": LookupDrafter,
        "self": lambda: SelfDrafter(smaller),
        "model": lambda: ModelDrafter(smaller),
        "other": lambda: ModelDrafter(other),
    }[kind]
    plain, fast = (
        Session(backend, Sampler(SamplingSettings(seed=3, **options)), drafter=drafter)
        for drafter in (None, make())
    )
    for session in (plain, fast):
        session.feed(some_tokens(TINY, 20))
    for _ in range(3):
        assert sampled(fast, 50) == sampled(plain, 50)
        for session in (plain, fast):
            session.feed([1, 2, 3])
    assert_same_state(fast.freeze().state, plain.freeze().state)
    drafted, accepted = fast.speculation.counts
    assert 0 <= accepted <= drafted
    if kind in ("self", "model"):
        assert accepted > 0  # random weights are in doubt about everything, and int4 changes them


def test_the_same_weights_are_right_about_everything(backends):
    """A drafter that computes the same draws the same tokens, with the same random numbers."""
    backend, _ = backends
    session = Session(
        backend,
        Sampler(SamplingSettings(seed=5, top_p=1, presence_penalty=0.5)),
        drafter=SelfDrafter(backend),
    )
    session.feed([1, 2])
    sampled(session, 100)
    session.snapshot()
    drafted, accepted = session.speculation.counts
    assert drafted > 60
    assert accepted >= 0.8 * drafted  # all but those that nobody had asked for at the snapshot


def test_lookup_finds_what_came_before():
    drafter = LookupDrafter()
    drafter.observe([1, 2, 3, 4, 5, 9, 1, 2, 7, 8, 9])
    nothing = (None, None)
    assert drafter.propose(1, *nothing, 3) == [2, 7, 8]
    drafter.observe([1])
    assert drafter.propose(2, *nothing, 8) == [7, 8, 9, 1]
    drafter.observe([2])
    assert drafter.propose(3, *nothing, 2) == [4, 5]
    assert drafter.propose(6, *nothing, 2) == []
    assert LookupDrafter().propose(6, *nothing, 2) == []


def test_what_was_on_trial_at_the_end_is_not_read(backends):
    backend, _ = backends
    plain = Session(backend, Sampler(SamplingSettings(temperature=0)))
    plain.feed([1, 2])
    text = [1, 2, *(choice.token for choice in sampled(plain, 30))]
    session = Session(
        backend, Sampler(SamplingSettings(temperature=0)), drafter=Prophet(text, lambda _: True)
    )
    session.feed([1, 2])
    for n in range(1, 20):
        session.sample()
        state = State.zeros(TINY)
        backend.forward(text[: 1 + n], state)
        assert session.n_tokens == 1 + n
    session.drop_pending()
    assert_same_state(session.freeze().state, state)


# --- the pace -------------------------------------------------------------------------------------------------------


@pytest.fixture
def pace(monkeypatch):
    monkeypatch.undo()
    return speculation._Pace()


def test_it_proposes_more_where_more_is_right(pace):
    pace.took_plain(1.0)
    for reading in (99.0, 1.4, 1.4):  # the first one allocates memory
        pace.took(4, 0.0, reading)
    for _ in range(50):
        pace.count(8, 8)
    assert pace.length() == speculation.MOST
    for _ in range(2):
        pace.count(8, 1)
    assert 0 < pace.length() < speculation.MOST


def test_it_stops_where_it_does_not_pay_and_tries_again_more_and_more_seldom(pace):
    for drafting, right in ((4.0, 3), (0.4, 0)):  # a draft that takes as long as the model; one that is wrong
        pace = speculation._Pace()
        pace.took_plain(1.0)
        tries = []
        for i in range(20_000):
            if n := pace.length():
                tries.append(i)
                pace.took(n, drafting / 4 * n, 1 + n / 10)
                pace.count(n, min(n, right))
        assert len(tries) < 50
        assert len([i for i in tries if i < 256]) <= 8
        assert tries[-1] - tries[-2] <= speculation.LONGEST_PAUSE + 2


def test_where_it_pays_again_it_goes_on(pace):
    pace.took_plain(1.0)
    used = []
    for i in range(3000):
        if n := pace.length():
            pace.took(n, 0.0, 1 + n / 10)
            pace.count(n, n if i > 1000 else 0)
            used.append(i)
    assert len([i for i in used if i > 2000]) > 900


def test_nothing_is_proposed_before_a_plain_token_was_measured(pace):
    assert pace.length() == 0
    pace.took_plain(1.0)
    assert pace.length() == 1  # it allocates memory
    pace.took(1, 0.1, 9.0)
    assert pace.length() == speculation.FIRST
