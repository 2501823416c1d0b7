"""The sampler, against a plain one in float64 that sorts everything."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from helpers.plain_sampler import (
    NO_COUNTS,
    Counts,
    cases,
    float32,
    naive_distribution,
    sampler_with,
    some_logits,
)
from hypothesis import assume, given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st
from numpy.typing import NDArray

from rwkv_cli.engine.sampling import Sampler, exempt_tokens
from rwkv_cli.errors import RwkvError, UsageError
from rwkv_cli.sampling_settings import SamplingSettings
from rwkv_cli.text.tokenizer import WorldTokenizer


def measured_distribution(
    logits: NDArray[np.float32], settings: SamplingSettings, counts: Counts = NO_COUNTS
) -> NDArray[np.float64]:
    """The probability of every token [V], by bisecting where the draw passes from one token to the next."""

    def token_at(number: float) -> int:
        return sampler_with(settings, number, counts).sample(logits).token

    probabilities = np.zeros(len(logits))
    last = math.nextafter(1, 0)
    start = 0.0
    while start < last:
        token, low, high = token_at(start), start, last
        if token_at(last) == token:
            low = last
        while high - low > 1e-9 and low < last:
            middle = (low + high) / 2
            low, high = (middle, high) if token_at(middle) == token else (low, middle)
        probabilities[token] += low - start
        start = high if low < last else last
    return probabilities


LOGITS = some_logits(8)


@settings_of_hypothesis(max_examples=300)
@given(cases())
def test_distribution_is_the_naive_one(
    case: tuple[NDArray[np.float32], SamplingSettings, dict[int, float]],
) -> None:
    logits, settings, counts = case
    expected, margin = naive_distribution(logits, settings, counts)
    assume(margin > 1e-6)
    np.testing.assert_allclose(measured_distribution(logits, settings, counts), expected, atol=1e-7)


@pytest.mark.parametrize(
    "options", [{"presence_penalty": 1}, {"presence_penalty": 1, "banned": frozenset({0})}]
)
def test_counts_of_another_vocabulary(options: dict[str, Any]) -> None:
    """They may come from a memory that was saved with another model."""
    sampler = sampler_with(SamplingSettings(**options), 0.5, {7: 1.0})
    for choose in (lambda: sampler.sample(float32([1, 2, 3])), lambda: sampler.request(3)):
        with pytest.raises(UsageError, match="there is no token 7: the model has 3"):
            choose()


WIDE = [
    {},
    {"top_p": 0.3},
    {"top_p": 0.999},
    {"top_p": 1, "top_k": 200},
    {"top_p": 1, "min_p": 1e-4},
    {"top_k": 3},
]


@pytest.mark.parametrize(
    "options", [*WIDE, {"top_p": 1, "temperature": 1.3}, {"top_p": 0.5, "temperature": 0.5}]
)
@pytest.mark.parametrize("spread", [0.01, 1, 4, 30])
def test_wide_vocabulary(options: dict[str, Any], spread: float) -> None:
    logits = float32(np.random.default_rng(7).standard_normal(20_000) * spread)
    settings = SamplingSettings(**options)
    distribution = np.cumsum(naive_distribution(logits, settings)[0])
    for number in (0.0, 0.1, 0.37, 0.5, 0.77, 0.999):
        token = sampler_with(settings, number).sample(logits).token
        below = distribution[token - 1] if token else 0.0
        assert below - 1e-6 <= number <= distribution[token] + 1e-6
        assert distribution[token] > below


def test_ties_at_the_cutoff() -> None:
    logits = float32([1, 3, 1, 1, -5])
    assert np.count_nonzero(measured_distribution(logits, SamplingSettings(top_p=0.8))) == 4
    top_k = measured_distribution(logits, SamplingSettings(top_p=1, top_k=3))
    assert np.flatnonzero(top_k).tolist() == [0, 1, 2]


def test_top_p_comes_before_temperature() -> None:
    logits = float32(np.log([0.5, 0.3, 0.2]))
    hot = SamplingSettings(top_p=0.6, temperature=100)
    np.testing.assert_allclose(measured_distribution(logits, hot), [0.501277, 0.498723, 0], atol=1e-6)


@given(LOGITS, st.sampled_from([{"temperature": 0}, {"top_p": 0}, {"top_k": 1}]))
def test_greedy_takes_the_lowest_of_the_likeliest(
    logits: NDArray[np.float32], option: dict[str, float]
) -> None:
    sampler = Sampler(SamplingSettings(seed=1, **option))  # type: ignore[arg-type]
    before = sampler.rng.bit_generator.state
    assert sampler.sample(logits).token == int(np.argmax(logits))
    assert sampler.rng.bit_generator.state == before


@pytest.mark.parametrize("temperature", [1e-310, 1e-9, 1e9])
def test_extreme_temperatures(temperature: float) -> None:
    logits = float32([0, 2, 1])
    choice = sampler_with(SamplingSettings(temperature=temperature, top_p=1), 0.99).sample(logits)
    assert choice.token == (1 if temperature < 1 else 2)


@given(LOGITS, st.floats(0, 1, exclude_max=True))
def test_logprob_is_the_models_own_and_logits_stay(logits: NDArray[np.float32], number: float) -> None:
    original = logits.copy()
    settings = SamplingSettings(presence_penalty=3, logit_bias={0: 5.0}, temperature=0.5)
    choice = sampler_with(settings, number, {1: 2.0}).sample(logits)
    np.testing.assert_array_equal(logits, original)
    exact = logits.astype(np.float64)
    assert choice.logprob == pytest.approx(exact[choice.token] - np.log(np.exp(exact).sum()), abs=1e-5)


@given(st.lists(st.integers(0, 9), max_size=200), st.sampled_from([0, 0.5, 0.996, 1]))
def test_counts_decay_and_exempt_tokens_add_nothing(tokens: list[int], decay: float) -> None:
    sampler = Sampler(SamplingSettings(penalty_decay=decay), exempt={3, 4})
    expected: dict[int, float] = {}
    for token in tokens:
        sampler.accept(token)
        expected = {seen: count * decay for seen, count in expected.items()}
        if token not in (3, 4):
            expected[token] = expected.get(token, 0) + 1
    assert sampler.memory.counts == pytest.approx(expected)
    assert list(sampler.memory.counts) == list(expected)


def test_counts_of_many_tokens_and_penalties() -> None:
    sampler = Sampler(SamplingSettings(temperature=0, presence_penalty=1, frequency_penalty=1))
    logits = float32(np.linspace(1, 0, 300))
    assert [sampler.sample(logits).token for _ in range(300)] == list(range(300))
    assert len(sampler.memory.counts) == 300


def test_same_seed_same_tokens_also_from_a_saved_state() -> None:
    settings = SamplingSettings(seed=42, top_p=1, presence_penalty=0.5, frequency_penalty=0.5)
    logits = float32(np.random.default_rng(0).standard_normal(1000))
    first, second = Sampler(settings), Sampler(settings)
    begun = [first.sample(logits) for _ in range(20)]
    assert begun == [second.sample(logits) for _ in range(20)]
    third = Sampler(settings, memory=first.memory)
    assert [third.sample(logits) for _ in range(20)] == [first.sample(logits) for _ in range(20)]
    assert begun != [Sampler(SamplingSettings(seed=43, top_p=1)).sample(logits) for _ in range(20)]


def test_seeded_draws_never_change() -> None:
    sampler = Sampler(SamplingSettings(seed=0, top_p=1))
    assert [sampler.sample(float32(np.zeros(100))).token for _ in range(8)] == [63, 26, 4, 1, 81, 91, 60, 72]


@pytest.mark.parametrize("options", [{}, {"temperature": 0}, {"presence_penalty": 1.0}])
@pytest.mark.parametrize("values", [[0, math.nan], [math.inf, 0], [-math.inf, -math.inf]])
def test_model_output_that_is_no_number(values: list[float], options: dict[str, float]) -> None:
    with pytest.raises(RwkvError, match="the model's output is not a number"):
        Sampler(SamplingSettings(**options)).sample(float32(values))  # type: ignore[arg-type]


@pytest.mark.parametrize("temperature", [0, 1])
def test_nothing_left_to_choose(temperature: float) -> None:
    everything = SamplingSettings(banned=frozenset({0, 1}), temperature=temperature)
    with pytest.raises(UsageError, match="no token can be chosen: all are banned"):
        Sampler(everything).sample(float32([1, 2]))
    with pytest.raises(UsageError, match="a penalty or bias is far too large"):
        Sampler(SamplingSettings(logit_bias={0: 1e39}, temperature=temperature)).sample(float32([1, 2]))
    with pytest.raises(UsageError, match="there is no token 2: the model has 2"):
        Sampler(SamplingSettings(banned=frozenset({2}), temperature=temperature)).sample(float32([1, 2]))


def test_tokens_that_the_model_rules_out_are_never_chosen() -> None:
    logits = float32([-np.inf, 1, -np.inf, 1])
    assert measured_distribution(logits, SamplingSettings(top_p=1, temperature=9)).round(6).tolist() == [
        0,
        0.5,
        0,
        0.5,
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_p": 2}, "top_p is 2: it must be between 0 and 1"),
        ({"top_p": math.nan}, "top_p is nan: it must be between 0 and 1"),
        ({"temperature": -1}, "temperature is -1: it must be at least 0"),
        ({"temperature": math.inf}, "temperature is inf: it must be a finite number"),
        ({"top_k": -3}, "top_k is -3: it must be at least 0"),
        ({"min_p": 1.5}, "min_p is 1.5: it must be between 0 and 1"),
        ({"presence_penalty": math.inf}, "presence_penalty is inf: it must be a finite number"),
        ({"frequency_penalty": math.nan}, "frequency_penalty is nan: it must be a finite number"),
        ({"penalty_decay": 1.1}, "penalty_decay is 1.1: it must be between 0 and 1"),
        ({"logit_bias": {5: math.nan}}, "logit_bias of token 5 is nan: it must be a finite number"),
        ({"banned": frozenset({-1})}, "the id of a biased or banned token is -1: it must be at least 0"),
        ({"seed": -1}, "seed is -1: it must be at least 0"),
    ],
)
def test_senseless_settings(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        SamplingSettings(**options)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\n\n", True),
        (" ", True),
        ("7", True),
        ("　", True),
        ("\t", True),
        ("a", False),
        (".", False),
        ("é", False),
    ],
)
def test_exempt_tokens(text: str, expected: bool) -> None:
    tokenizer = WorldTokenizer()
    (token,) = tokenizer.encode(text)
    exempt: Callable[[int], bool] = exempt_tokens(tokenizer)
    assert exempt(token) is expected
    assert exempt(0) is False
