"""What is measured and how it is reckoned, with a backend and a clock that are made up: no test looks at the time."""

import itertools
import json

import pytest
from helpers.models import TINY, fine_weights, write_and_open
from hypothesis import given
from hypothesis import strategies as st

from rwkv_cli.engine.backends import cpu
from rwkv_cli.engine.backends.base import Backend
from rwkv_cli.engine.backends.cpu import CpuBackend
from rwkv_cli.engine.backends.reference import ReferenceBackend
from rwkv_cli.engine.bench import STRETCH, TURN, Plan, Results, run, shares, spread, stretches, summary
from rwkv_cli.errors import UsageError
from rwkv_cli.files import weight_layouts


class Unlimited(Backend):
    """A backend that takes `prefill` or `decode` seconds a token, times `pace`, and nothing but its clock's time."""

    name = "fake"
    kernel = "a fake"
    config = TINY
    prefill, decode, growth = (
        1 / 1024,
        1 / 64,
        0.0,
    )  # growth: of the time with each token that a state has read

    def __init__(self):
        self.now = 0.0
        self.pace = 1.0
        self.calls = []

    def clock(self):
        return self.now

    def forward(self, tokens, state, progress=None):  # noqa: ARG002
        read = float(state.shift_att[0, 0])
        state.shift_att[0, 0] += len(tokens)
        each = self.prefill if len(tokens) > 1 else self.decode * (1 + self.growth * read)
        self.now += len(tokens) * each * self.pace
        self.calls.append(list(tokens))

    def forward_all(self, tokens, state):
        raise NotImplementedError


class Fake(Unlimited):
    """One with a memory of 2**30 bytes/s, a sixteenth of which 2**20 bytes a token take at 64 tokens/s."""

    kernel = "a fake kernel"
    n_threads = 3
    bytes_per_token = 1 << 20

    def memory_reader(self):
        def read():
            self.now += self.pace / 1024
            return 1 << 20

        return read


def measure(backend, **plan):
    plan, results = Plan(**plan), Results()
    run(backend, plan, results, backend.clock)
    return results, summary(backend, plan, results)


def test_speeds():
    results, found = measure(Fake(), prefill=[100, 512], decode=10, repeat=3)
    steady = {"standard_deviation": 0}
    assert results.prefill == {100: [1024] * 3, 512: [1024] * 3}
    assert found["prefill"][1] == {
        "tokens": 512,
        "repeats": 3,
        "tokens_per_second": steady | dict.fromkeys(("mean", "min", "max"), 1024),
    }
    assert found["decode"]["tokens_per_second"]["mean"] == 64
    assert found["memory"] == {
        "bytes_per_token": 1 << 20,
        "bytes_per_second": steady | dict.fromkeys(("mean", "min", "max"), 1 << 30),
        "share_of_dense_limit": 1 / 16,
    }
    assert (found["long"], found["interrupted"]) == (None, False)


def test_a_drifting_machine_leaves_the_share_as_it_is():
    """Each measurement, from one look at the clock to the next, finds the machine slower than the one before."""
    backend, plan, results, looks = Fake(), Plan([2], 10, 6), Results(), itertools.count()

    def clock():
        backend.pace = 1 / (1 - 0.01 * (next(looks) // 2))
        return backend.now

    run(backend, plan, results, clock)
    assert results.decode[-1] < 0.92 * results.decode[0]
    assert shares(results, backend.bytes_per_token) == pytest.approx([1 / 16] * 6)
    assert summary(backend, plan, results)["memory"]["share_of_dense_limit"] == pytest.approx(1 / 16)


def test_without_a_memory_to_compare_with():
    found = measure(Unlimited(), prefill=[2], decode=2)[1]
    assert found["memory"] is None
    assert found["decode"]["tokens_per_second"]["mean"] == 64


def test_the_tokens_are_always_the_same_and_fit_the_vocabulary():
    backends = Fake(), Fake()
    for backend in backends:
        measure(backend, prefill=[70, 2000], decode=3, repeat=2)
    assert backends[0].calls == backends[1].calls
    prompts = [len(call) for call in backends[0].calls if len(call) > 1]
    assert prompts == [64, 70, 70, 64, 2000, 2000]
    assert set(itertools.chain(*backends[0].calls)) == set(range(TINY.vocab_size))


def test_the_spread():
    assert spread([1, 2, 6]) == {"mean": 3, "standard_deviation": 7**0.5, "min": 1, "max": 6}
    assert spread([5]) == {"mean": 5, "standard_deviation": None, "min": 5, "max": 5}


# ------------------------------------------------------------------------------------------------------ long runs


@given(st.integers(2, 5 * STRETCH))
def test_stretches_cover_all_tokens_once(n):
    found = stretches(n)
    assert [i for begin, end in found for i in range(begin, end + 1)] == list(range(1, n + 1))
    sizes = [end - begin + 1 for begin, end in found]
    assert sizes[0] == sizes[-1] == max(sizes) <= STRETCH


def test_the_stretches_of_50_000():
    found = stretches(50_000)
    assert (found[0], found[-1], len(found)) == ((1, 1000), (49_001, 50_000), 50)


def test_the_end_of_a_long_run_is_compared_with_a_beginning():
    backend = Fake()
    results, found = measure(backend, prefill=[2], decode=1, repeat=1, long=4 * TURN + 3)
    size = 2 * TURN + 1
    assert [(each.begin, each.end) for each in results.long] == [
        (1, size),
        (size + 1, size + 1),
        (size + 2, 2 * size + 1),
    ]
    assert [each["tokens_per_second"] for each in found["long"]["stretches"]] == [64] * 3
    assert found["long"]["first_again"] == {"from": 1, "to": size, "tokens_per_second": 64}
    assert found["long"]["last_relative_to_first_again"] == 1


def test_a_machine_that_has_become_slower_is_no_slowing_down():
    backend = Fake()
    plan, results = Plan([2], 1, 1, long=3000), Results()

    def slower(text):
        if text.startswith("tokens 2,001"):
            backend.pace = 3

    run(backend, plan, results, backend.clock, slower)
    assert results.long[-1].speed == pytest.approx(64 / 3)
    assert results.constancy == 1


def test_slowing_down_is_seen():
    backend = Fake()
    backend.growth = 1 / 1000
    results, _ = measure(backend, prefill=[2], decode=1, repeat=1, long=4000)
    assert results.long[-1].speed < 0.5 * results.long[0].speed
    assert results.again.speed == pytest.approx(results.long[0].speed)
    assert results.constancy < 0.5


# ------------------------------------------------------------------------------------------ what may go wrong


@pytest.mark.parametrize(
    ("plan", "option"),
    [
        ({"prefill": [0]}, "prefill is 0"),
        ({"prefill": [5, -1]}, "prefill is -1"),
        ({"decode": 0}, "decode is 0"),
        ({"repeat": 0}, "repeat is 0"),
        ({"long": 1}, "long_tokens is 1"),
    ],
)
def test_numbers_that_cannot_be(plan, option):
    with pytest.raises(UsageError, match=f"^{option}: it must be at least"):
        Plan(**plan)


@pytest.mark.parametrize("calls", [0, 1, 2, 4, 6, 9, 20, 60, 100, 131])
def test_an_interruption_keeps_what_is_measured(calls):
    backend, plan, results = Fake(), Plan([2, 3], 4, 2, long=100), Results()
    forward = backend.forward

    def interrupted(tokens, state):
        if len(backend.calls) == calls:
            raise KeyboardInterrupt
        forward(tokens, state)

    backend.forward = interrupted
    with pytest.raises(KeyboardInterrupt):
        run(backend, plan, results, backend.clock)
    found = json.loads(json.dumps(summary(backend, plan, results)))
    assert len(found["prefill"]) == (0 if calls < 2 else 1 if calls < 5 else 2)
    assert (found["decode"] is None) == (found["memory"] is None) == (calls < 11)
    assert (found["long"] is None) == (calls < 67)
    assert found["long"] is None or found["long"]["first_again"] is None


# ------------------------------------------------------------------------------------------------ the CPU backend


@pytest.mark.parametrize("weight_type", weight_layouts.WEIGHT_TYPES)
def test_bytes_that_a_token_takes(tmp_path, weight_type):
    backend = CpuBackend(write_and_open(tmp_path / "x", fine_weights(), weight_type), n_threads=1)
    expected = 2 * TINY.state_bytes
    for name, shape in TINY.tensor_shapes().items():
        for part in weight_layouts.store(name, fine_weights()[name], weight_type).values():
            expected += part.nbytes // shape[0] if name == "emb.weight" else part.nbytes
    assert backend.bytes_per_token == expected


@pytest.mark.parametrize("n_threads", [1, 2])
def test_the_memory_is_read(tmp_path, monkeypatch, n_threads):
    monkeypatch.setattr(cpu, "PROBE_BYTES", 3 << 18)
    model = write_and_open(tmp_path / "x", fine_weights(), "int8")
    backend = CpuBackend(model, n_threads)
    read = backend.memory_reader()
    assert [read(), read()] == [3 << 18] * 2
    reference = ReferenceBackend(model)
    assert backend.bytes_per_token
    assert backend.memory_reader()
    assert (reference.bytes_per_token, reference.memory_reader()) == (None, None)
