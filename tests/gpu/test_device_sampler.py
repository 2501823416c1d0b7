"""The choice of tokens on an emulated GPU: against `Sampler`, and in the token loop."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.emulated_gpu import COMPILER, EmulatedGpu, build, few_threads
from helpers.models import assert_same_state
from helpers.plain_sampler import NO_COUNTS, cases, float32, naive_distribution, sampler_with
from hypothesis import assume, given, settings

import rwkv_cli
from rwkv_cli.engine.backends.base import Backend
from rwkv_cli.engine.backends.cuda import CudaBackend
from rwkv_cli.engine.gpu import device_sampler
from rwkv_cli.engine.gpu.device_sampler import DeviceSampler
from rwkv_cli.engine.gpu.kernel_sources import constants
from rwkv_cli.engine.sampling import NOT_A_NUMBER, Choice, Sampler
from rwkv_cli.engine.state import State
from rwkv_cli.errors import RwkvError, UsageError
from rwkv_cli.files.model_file import ModelFile
from rwkv_cli.sampling_settings import SamplingSettings

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler is here to emulate a GPU with")

ROUNDED = 3e-6
"""How far float32 moves the border between two tokens in the distribution."""


@pytest.fixture(scope="module", autouse=True)
def quick():
    with few_threads():
        yield


@pytest.fixture(scope="module")
def gpu():
    return EmulatedGpu(build("int8"))


class OnDevice:
    """Logits on the device."""

    def __init__(self, gpu: EmulatedGpu, logits):
        self._gpu, self._logits = gpu, logits
        self._memory = gpu.allocate(logits.nbytes)
        gpu.upload(self._memory.address, logits)
        self._sampler = DeviceSampler(gpu, self._memory.address, len(logits))

    def choose(self, sampler: Sampler) -> Choice:
        """As `Sampler.sample`; the logits stay as they are."""
        self._sampler.submit([sampler.request(len(self._logits))])
        self._gpu.run(self._sampler.steps())
        after = np.empty_like(self._logits)
        self._gpu.download(self._memory.address, after)
        np.testing.assert_array_equal(after, self._logits)
        (choice,) = self._sampler.collect()
        sampler.accept(choice.token)
        return choice


def compare(gpu, logits, chosen, counts=NO_COUNTS, most=None):
    """Tokens, or the likeliest ones, come where the naive distribution has them, from end to end, as in `Sampler`."""
    probabilities, _ = naive_distribution(logits, chosen, counts)
    ends = np.cumsum(probabilities)
    there = OnDevice(gpu, logits)
    for token in np.argsort(-probabilities)[:most]:
        if probabilities[token] <= 4 * ROUNDED:
            break
        begin = ends[token] - probabilities[token]
        for number in (begin + ROUNDED, ends[token] - ROUNDED):
            found = there.choose(sampler_with(chosen, number, counts))
            expected = sampler_with(chosen, number, counts).sample(logits)
            assert found.token == expected.token == token
            assert found.logprob == pytest.approx(expected.logprob, abs=1e-5)


@settings(max_examples=200)
@given(case=cases(50))
def test_the_distribution_is_that_of_the_sampler(gpu, case):
    logits, chosen, counts = case
    assume(naive_distribution(logits, chosen, counts)[1] > 1e-6)
    compare(gpu, logits, chosen, counts)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_p": 0.3},
        {"top_p": 0.999, "min_p": 1e-3},
        {"top_p": 1, "min_p": 1e-4},
        {"top_p": 1, "temperature": 1.3},
        {"top_p": 0.5, "temperature": 0.5, "banned": frozenset({7})},
        {"top_p": 1, "top_k": 40},
        {"top_p": 0.9, "top_k": 2000, "min_p": 1e-5},
        {"top_p": 1, "top_k": 4900},
    ],
)
@pytest.mark.parametrize("spread", [0.01, 1, 4, 30])
def test_wide_vocabulary(gpu, options, spread):
    logits = float32(np.random.default_rng(7).standard_normal(5_000) * spread)
    compare(gpu, logits, SamplingSettings(**options), most=10)


def test_with_as_many_threads_as_there_are(gpu, monkeypatch):
    for kernel in ("SURVEY_THREADS", "SAMPLE_THREADS"):
        monkeypatch.setattr(
            device_sampler, kernel, constants(f"{kernel.split('_')[0].lower()}.cu")["THREADS"]
        )
    logits = float32(np.random.default_rng(1).standard_normal(5_000))
    compare(gpu, logits, SamplingSettings(presence_penalty=2), {7: 1.0, 4_999: 2.0}, most=3)


def test_many_sequences_at_once_each_by_its_own_settings(gpu):
    """Rows are further apart than the vocabulary is long, as the head's are; changes need more room than one has."""
    rng = np.random.default_rng(2)
    logits = float32(rng.standard_normal((4, 112)) * 3)
    memory = gpu.allocate(logits.nbytes)
    gpu.upload(memory.address, logits)
    on_device = DeviceSampler(gpu, memory.address, 100, 4, 112)
    options = (
        {"temperature": 0, "logit_bias": dict.fromkeys(range(100), 0.25)},
        {"top_p": 0.9, "presence_penalty": 1, "frequency_penalty": 0.5},
        {"top_p": 1, "min_p": 0.01, "banned": frozenset(range(60))},
        {"temperature": 1.4},
    )
    here, there = ([Sampler(SamplingSettings(seed=6, **each)) for each in options] for _ in range(2))
    for n in (4, 1, 3, 4, 4, 4, 2):
        on_device.submit([sampler.request(100) for sampler in there[:n]])
        gpu.run(on_device.steps(n))
        found = on_device.collect(n)
        for sampler, choice in zip(there[:n], found, strict=True):
            sampler.accept(choice.token)
        expected = [sampler.sample(row[:100]) for sampler, row in zip(here[:n], logits[:n], strict=True)]
        assert [choice.token for choice in found] == [choice.token for choice in expected]
        np.testing.assert_allclose([c.logprob for c in found], [c.logprob for c in expected], atol=1e-5)
    after = np.empty_like(logits)
    gpu.download(memory.address, after)
    np.testing.assert_array_equal(after, logits)


@pytest.mark.parametrize(
    "options", [{"top_p": 0.3}, {"top_p": 0.7, "top_k": 1500}, {"top_p": 1, "top_k": 777}]
)
@pytest.mark.parametrize("levels", [1, 2, 5, 4000])
def test_tokens_that_are_equally_likely(gpu, options, levels):
    """Thousands share one value, or are so close that one histogram cannot tell them apart."""
    rng = np.random.default_rng(3)
    steps = rng.integers(0, levels, 5_000)
    logits = float32(1 + steps / 2**16)
    chosen = SamplingSettings(**options)
    probabilities, _ = naive_distribution(logits, chosen)
    kept = np.flatnonzero(probabilities)
    there = OnDevice(gpu, logits)
    for token, number in ((kept[0], 0), (kept[-1], 1 - 1e-9)):
        assert there.choose(sampler_with(chosen, number)).token == token
        assert sampler_with(chosen, number).sample(logits).token == token


@pytest.mark.parametrize("top_k", range(1, 9))
def test_top_k_leaves_the_lowest_ids_of_equals(gpu, top_k):
    logits = float32([1, 3, 2, 3, 2, 3, 2, 0])
    chosen = SamplingSettings(top_p=1, top_k=top_k)
    there = OnDevice(gpu, logits)
    for number in np.linspace(0.01, 0.99, 30):
        assert (
            there.choose(sampler_with(chosen, number)).token
            == sampler_with(chosen, number).sample(logits).token
        )


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0}, {"top_k": 3, "top_p": 1, "banned": frozenset({9})}]
)
def test_a_mask_leaves_its_tokens_alone(gpu, options):
    """As if all others were banned; the logarithm of the probability stays that of the model."""
    rng = np.random.default_rng(5)
    logits = float32(rng.standard_normal((2, 100)) * 3)
    allowed = np.sort(rng.choice(100, 12, replace=False))
    mask = np.zeros(4, np.uint32)
    np.bitwise_or.at(mask, allowed // 32, np.uint32(1) << (allowed % 32).astype(np.uint32))
    memory = gpu.allocate(logits.nbytes)
    gpu.upload(memory.address, logits)
    on_device = DeviceSampler(gpu, memory.address, 100, 2)
    chosen = SamplingSettings(**options)
    others = frozenset(range(100)) - frozenset(allowed.tolist())
    banned = replace(chosen, banned=chosen.banned | others)
    for number in np.linspace(0.01, 0.99, 10):
        plain = sampler_with(chosen, number).request(100)
        on_device.submit([plain, plain._replace(mask=mask)], rows=[1, 0])
        gpu.run(on_device.steps(2))
        first, second = on_device.collect(2)
        for found, sampler, row in ((first, chosen, 1), (second, banned, 0)):
            expected = sampler_with(sampler, number).sample(logits[row])
            assert found.token == expected.token
            assert found.logprob == pytest.approx(expected.logprob, abs=1e-5)


@pytest.mark.parametrize("option", [{"temperature": 0}, {"top_p": 0}, {"top_k": 1}])
def test_greedy_takes_the_lowest_of_the_likeliest(gpu, option):
    logits = float32(np.random.default_rng(0).integers(-3, 3, 200))
    sampler = Sampler(SamplingSettings(seed=1, **option))
    before = sampler.rng.bit_generator.state
    assert OnDevice(gpu, logits).choose(sampler).token == int(np.argmax(logits))
    assert sampler.rng.bit_generator.state == before


@pytest.mark.parametrize("temperature", [1e-310, 1e-9, 1e9, 1e300])
def test_extreme_temperatures(gpu, temperature):
    chosen = SamplingSettings(temperature=temperature, top_p=1)
    choice = OnDevice(gpu, float32([0, 2, 1])).choose(sampler_with(chosen, 0.99))
    assert choice.token == (1 if temperature < 1 else 2)


def test_ties_of_zeros_of_either_sign(gpu):
    found = OnDevice(gpu, float32([-1, -0.0, 0.0, -1])).choose(sampler_with(SamplingSettings(top_p=0.3), 0.1))
    assert found.token == 1


def test_the_sampler_learns_of_the_choice(gpu):
    """Counts, and the random numbers, are as if the host had chosen."""
    logits = float32(np.random.default_rng(0).integers(-3, 3, 100))
    here, there = (
        Sampler(
            SamplingSettings(seed=4, top_p=1, presence_penalty=1, frequency_penalty=1, banned=frozenset({5}))
        )
        for _ in range(2)
    )
    on_device = OnDevice(gpu, logits)
    for _ in range(30):
        assert on_device.choose(there).token == here.sample(logits).token
    assert there.memory == here.memory


@pytest.mark.parametrize("options", [{}, {"temperature": 0}, {"logit_bias": {1: 1.0}}])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_model_output_that_is_no_number(gpu, value, options):
    logits = float32(np.linspace(0, 1, 100))
    logits[70] = value
    with pytest.raises(RwkvError, match="the model's output is not a number"):
        OnDevice(gpu, logits).choose(Sampler(SamplingSettings(**options)))
    with pytest.raises(RwkvError, match="the model's output is not a number"):
        OnDevice(gpu, np.full_like(logits, -np.inf)).choose(Sampler(SamplingSettings(**options)))


@pytest.mark.parametrize("temperature", [0, 1])
def test_nothing_left_to_choose(gpu, temperature):
    there = OnDevice(gpu, float32([1, 2]))
    everything = SamplingSettings(banned=frozenset({0, 1}), temperature=temperature)
    with pytest.raises(UsageError, match="no token can be chosen: all are banned"):
        there.choose(Sampler(everything))
    with pytest.raises(UsageError, match="a penalty or bias is far too large"):
        there.choose(Sampler(SamplingSettings(logit_bias={0: 1e39}, temperature=temperature)))
    with pytest.raises(UsageError, match="there is no token 2: the model has 2"):
        there.choose(Sampler(SamplingSettings(banned=frozenset({2}), temperature=temperature)))


# ----------------------------------------------------------------------------------------------- in the token loop


class OnHost(CudaBackend):
    """A backend that leaves the choice to the host."""

    choose = Backend.choose


@pytest.fixture(scope="module")
def backends(tiny_model):
    """One that chooses, and one that does not, with the same arithmetic."""
    return tuple(kind(ModelFile(tiny_model), EmulatedGpu(build("int8"))) for kind in (CudaBackend, OnHost))


@pytest.fixture
def models(backends, tiny_model):
    made = rwkv_cli.load(tiny_model), rwkv_cli.load(tiny_model)
    for model, backend in zip(made, backends, strict=True):
        model.backend = backend
    return made


WAYS = {
    "greedy": {"temperature": 0},
    "sampled": {"temperature": 1.5, "top_p": 0.95},
    "penalties": {"presence_penalty": 1, "frequency_penalty": 0.5, "logit_bias": {66: 4.0}, "banned": {0}},
    "top-k": {"top_k": 5, "top_p": 1},
    "stop": {"top_p": 0.99, "temperature": 2, "stop": ["e"]},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("taken", [2, 3, 4, 15])
def test_a_generation_is_the_same(models, way, taken):
    """Bytes at random are often half a character, which `commit` takes back."""
    ends = []
    for model in models:
        generation = model.generate("go", seed=3, max_tokens=15, **WAYS[way])
        steps = [step for _, step in zip(range(taken), generation, strict=False)]
        ends.append((steps, generation.commit(), generation))
    (steps, snapshot, first), (expected, expected_snapshot, second) = ends
    assert [(step.token, step.text, step.finish) for step in steps] == [
        (step.token, step.text, step.finish) for step in expected
    ]
    assert [step.logprob for step in steps] == pytest.approx([step.logprob for step in expected], abs=1e-5)
    assert_same_state(snapshot.state, expected_snapshot.state)
    np.testing.assert_array_equal(snapshot.logits, expected_snapshot.logits)
    assert snapshot.n_tokens == expected_snapshot.n_tokens
    assert first.sampler.memory == second.sampler.memory


def test_logits_are_kept_when_another_state_is_advanced(backends):
    backend, plain = backends
    states, chosen, expected = [State.zeros(backend.config) for _ in range(2)], [], []
    for token, state in zip((5, 6), states, strict=True):
        chosen.append(backend.choose(token, state, Sampler(SamplingSettings())))
        expected.append(plain.forward([token], State.zeros(backend.config)))
    for each, logits in zip(chosen, expected, strict=True):
        np.testing.assert_array_equal(each.logits(), logits)
        np.testing.assert_array_equal(each.logits(), logits)
    assert states[1].wkv.any()  # which evicts it
    np.testing.assert_array_equal(chosen[1].logits(), expected[1])


def test_logits_are_copied_only_if_they_can_be_asked_for(backends, monkeypatch):
    backend, plain = backends
    copies = []
    fetch = backend._fetch_logits
    monkeypatch.setattr(backend, "_fetch_logits", lambda: copies.append(1) or fetch())
    state, expected, sampler = (
        State.zeros(backend.config),
        State.zeros(backend.config),
        Sampler(SamplingSettings()),
    )
    chosen = None
    for token in (5, 6, 7):
        chosen = None  # what a session does, too
        chosen = backend.choose(token, state, sampler)
        logits = plain.forward([token], expected)
    assert not copies
    backend.choose(8, state, sampler)
    assert len(copies) == 1
    np.testing.assert_array_equal(chosen.logits(), logits)
    assert len(copies) == 1


def test_generations_in_turns(models):
    """Those of one backend disturb each other as little as those of two."""
    texts = []
    for model in models:
        both = [model.generate(prompt, seed=3, max_tokens=12, temperature=2) for prompt in ("go", "on")]
        steps = [tuple(step.token for step in pair) for pair in zip(*both, strict=False)]
        texts.append((steps, [generation.commit() for generation in both]))
    assert texts[0][0] == texts[1][0]
    for snapshot, expected in zip(texts[0][1], texts[1][1], strict=True):
        assert_same_state(snapshot.state, expected.state)
        np.testing.assert_array_equal(snapshot.logits, expected.logits)


def test_a_generation_whose_logits_are_not_numbers_can_be_committed(models, monkeypatch):
    """The token was read, and the logits after it can be looked at."""
    generation, expected = (model.generate("go", max_tokens=5, temperature=0) for model in models)
    assert next(generation) == next(expected)
    with monkeypatch.context() as patch:
        patch.setattr(models[0].backend._sampler, "collect", lambda: [Choice(NOT_A_NUMBER, 0.0)])
        with pytest.raises(RwkvError, match="not a number"):
            next(generation)
    snapshot, wanted = generation.commit(), expected.commit()
    assert snapshot.n_tokens == wanted.n_tokens
    np.testing.assert_array_equal(snapshot.logits, wanted.logits)
