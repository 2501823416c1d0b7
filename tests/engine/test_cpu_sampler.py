"""The choice of tokens by the CPU kernel, against `Sampler`, the naive distribution, and itself in other company."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.plain_sampler import (
    NO_COUNTS,
    cases,
    float32,
    naive_distribution,
    sampler_with,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rwkv_cli.engine.backends.cpu_sampler import CpuSampler
from rwkv_cli.engine.sampling import Sampler
from rwkv_cli.errors import RwkvError, UsageError
from rwkv_cli.sampling_settings import SamplingSettings

ROUNDED = 1e-5
"""How far from the ends of a token's interval a random number must be: weights are added in float32."""


def choose(logits, sampler: Sampler):
    """As `Sampler.sample`; the logits stay as they are."""
    before = logits.copy()
    (choice,) = CpuSampler(len(logits), 2).choose([logits], [sampler.request(len(logits))])
    np.testing.assert_array_equal(logits, before)
    sampler.accept(choice.token)
    return choice


def compare(logits, chosen, counts=NO_COUNTS, most=None):
    """Tokens, or the likeliest ones, come where the naive distribution has them, from end to end, as in `Sampler`."""
    probabilities, _ = naive_distribution(logits, chosen, counts)
    ends = np.cumsum(probabilities)
    for token in np.argsort(-probabilities)[:most]:
        if probabilities[token] <= 4 * ROUNDED:
            break
        begin = ends[token] - probabilities[token]
        for number in (begin + ROUNDED, ends[token] - ROUNDED):
            found = choose(logits, sampler_with(chosen, number, counts))
            expected = sampler_with(chosen, number, counts).sample(logits)
            assert found.token == expected.token == token
            assert found.logprob == pytest.approx(expected.logprob, abs=1e-5)


@settings(max_examples=300)
@given(case=cases(50))
def test_the_distribution_is_that_of_the_sampler(case):
    logits, chosen, counts = case
    assume(naive_distribution(logits, chosen, counts)[1] > 1e-6)
    compare(logits, chosen, counts)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_p": 0.3},
        {"top_p": 0.999, "min_p": 1e-3},
        {"top_p": 1, "min_p": 1e-4},
        {"top_p": 1, "temperature": 1.3},
        {"top_p": 1, "top_k": 40},
        {"top_p": 0.9, "top_k": 4000},
        {"top_p": 0.5, "temperature": 0.5, "banned": frozenset({7})},
    ],
)
@pytest.mark.parametrize("spread", [0.01, 1, 4, 30])
def test_wide_vocabulary(options, spread):
    logits = float32(np.random.default_rng(7).standard_normal(5_000) * spread)
    compare(logits, SamplingSettings(**options), most=10)


@pytest.mark.parametrize("size", [1, 2, 15, 16, 17, 63, 64, 65, 1000])
@pytest.mark.parametrize("number", [0.0, 0.5, 1 - 2**-53])
def test_the_ends_of_a_vocabulary_of_any_size(size, number):
    logits = np.zeros(size, np.float32)
    chosen = SamplingSettings(top_p=1)
    assert choose(logits, sampler_with(chosen, number)).token == int(number * size)
    assert choose(logits, sampler_with(replace(chosen, top_k=size), number)).token == int(number * size)


@given(
    logits=st.lists(st.sampled_from([0.0, 1.0, 2.0, -1.0]), min_size=4, max_size=70).map(float32),
    k=st.integers(1, 30),
)
def test_top_k_counts_and_keeps_the_lower_ids_of_those_as_likely(logits, k):
    kept = sorted(sorted(range(len(logits)), key=lambda token: (-logits[token], token))[:k])
    chosen = SamplingSettings(top_p=1, top_k=k)
    found = {choose(logits, sampler_with(chosen, number)).token for number in (0, 1 - 2**-53)}
    assert found == ({kept[0], kept[-1]} if k > 1 else {int(np.argmax(logits))})


@settings(max_examples=30)
@given(data=st.data())
def test_any_company_and_number_of_threads_chooses_the_same(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    n = data.draw(st.integers(1, 9))
    logits = float32(rng.standard_normal((n, 2_000)) * 3)
    options = [
        {"temperature": 0},
        {"top_p": 0.9, "presence_penalty": 1},
        {"top_p": 1, "min_p": 0.01},
        {"top_k": 7},
        {"top_p": 1, "temperature": 1.4},
    ]
    alone, together = (
        [Sampler(SamplingSettings(seed=i, **options[i % len(options)])) for i in range(n)] for _ in range(2)
    )
    expected = [choose(row, sampler) for row, sampler in zip(logits, alone, strict=True)]
    found = CpuSampler(2_000, data.draw(st.integers(1, 4))).choose(
        logits, [sampler.request(2_000) for sampler in together]
    )
    assert found == expected


@pytest.mark.parametrize("option", [{"temperature": 0}, {"top_p": 0}, {"top_k": 1}])
def test_greedy_takes_the_lowest_of_the_likeliest(option):
    logits = float32(np.random.default_rng(0).integers(-3, 3, 200))
    sampler = Sampler(SamplingSettings(seed=1, **option))
    before = sampler.rng.bit_generator.state
    assert choose(logits, sampler).token == int(np.argmax(logits))
    assert sampler.rng.bit_generator.state == before


@pytest.mark.parametrize("temperature", [1e-310, 1e-9, 1e9, 1e300])
def test_extreme_temperatures(temperature):
    chosen = SamplingSettings(temperature=temperature, top_p=1)
    assert choose(float32([0, 2, 1]), sampler_with(chosen, 0.99)).token == (1 if temperature < 1 else 2)


def test_ties_of_zeros_of_either_sign():
    assert choose(float32([-1, -0.0, 0.0, -1]), sampler_with(SamplingSettings(top_p=0.3), 0.1)).token == 1


def test_the_sampler_learns_of_the_choice():
    """Counts, and the random numbers, are as if `Sampler` had chosen."""
    logits = float32(np.random.default_rng(0).integers(-3, 3, 100))
    chosen = SamplingSettings(seed=4, top_p=1, presence_penalty=1, frequency_penalty=1, banned=frozenset({5}))
    here, there = Sampler(chosen), Sampler(chosen)
    for _ in range(30):
        assert choose(logits, there).token == here.sample(logits).token
    assert there.memory == here.memory


@pytest.mark.parametrize("options", [{}, {"temperature": 0}, {"logit_bias": {1: 1.0}}])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 70, 99])
def test_model_output_that_is_no_number(place, value, options):
    logits = float32(np.linspace(0, 1, 100))
    logits[place] = value
    with pytest.raises(RwkvError, match="the model's output is not a number"):
        choose(logits, Sampler(SamplingSettings(**options)))
    with pytest.raises(RwkvError, match="the model's output is not a number"):
        choose(np.full_like(logits, -np.inf), Sampler(SamplingSettings(**options)))


@pytest.mark.parametrize("number", [0.0, 1 - 2**-53])
@pytest.mark.parametrize(
    "options", [{"top_p": 1 - 1e-12}, {"top_p": 1}, {"top_k": 30, "top_p": 1}, {"min_p": 1e-300}]
)
def test_no_random_number_chooses_what_is_banned(options, number):
    logits = np.zeros(40, np.float32)
    chosen = SamplingSettings(banned=frozenset({0, 1, 20, 38, 39}), **options)
    token = choose(logits, sampler_with(chosen, number)).token
    assert token not in chosen.banned
    assert token in (2, 32, 37)  # the first one or the last one that is left


@pytest.mark.parametrize("temperature", [0, 1])
def test_nothing_left_to_choose(temperature):
    logits = float32([1, 2])
    everything = SamplingSettings(banned=frozenset({0, 1}), temperature=temperature)
    with pytest.raises(UsageError, match="no token can be chosen: all are banned"):
        choose(logits, Sampler(everything))
    with pytest.raises(UsageError, match="a penalty or bias is far too large"):
        choose(logits, Sampler(SamplingSettings(logit_bias={0: 1e39}, temperature=temperature)))
    with pytest.raises(UsageError, match="there is no token 2: the model has 2"):
        choose(logits, Sampler(SamplingSettings(banned=frozenset({2}), temperature=temperature)))
