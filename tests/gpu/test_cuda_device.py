"""The CUDA backend on a real GPU: against the reference, the CPU backend and itself, with the embedded model."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.gpu import FOUND
from helpers.models import assert_same_state, difference, some_tokens, state_difference

from rwkv_cli.engine.backends import registry
from rwkv_cli.engine.backends.cpu import CpuBackend
from rwkv_cli.engine.backends.reference import ReferenceBackend
from rwkv_cli.engine.gpu import probe
from rwkv_cli.engine.sampling import Sampler
from rwkv_cli.engine.state import State
from rwkv_cli.files.model_file import ModelFile, write_model
from rwkv_cli.paths import EMBEDDED_MODEL
from rwkv_cli.sampling_settings import SamplingSettings

pytestmark = pytest.mark.skipif(
    not FOUND or not probe.is_backend_installed(), reason="there is no NVIDIA GPU, or no CUDA backend"
)

TYPES = ("fp16", "int8", "int4")

SUMS = 1e-5
"""Of the scale: float32 sums in another order, through 12 layers."""

ROUNDED = 0.03
"""Of the scale: where a value is halfway between two integers the last bit of a float decides, and the rest differs."""

HALF = 5e-3
"""Of the scale: tensor cores take their inputs in float16."""


@pytest.fixture(scope="module")
def backends(tmp_path_factory):
    """A model file and a CUDA backend by type of weights, made once."""
    from rwkv_cli.engine.backends.cuda import open_cuda

    made = {}

    def get(weight_type):
        if weight_type not in made:
            source = ModelFile(EMBEDDED_MODEL)
            path = tmp_path_factory.mktemp(weight_type) / "gosling"
            write_model(path, source, replace(source.info, weight_type=weight_type))
            model = ModelFile(path)
            made[weight_type] = model, open_cuda(model)
        return made[weight_type]

    return get


def test_a_greedy_text_is_that_of_the_reference(backends):
    model, cuda = backends("fp16")
    reference = ReferenceBackend(model)
    states = State.zeros(model.config), State.zeros(model.config)
    begin = some_tokens(model.config, 4)
    logits = [[cuda.forward([token], states[0]) for token in begin][-1], reference.forward(begin, states[1])]
    for _ in range(500):
        token = int(logits[1].argmax())
        assert int(logits[0].argmax()) == token
        assert difference(logits[0], logits[1]) <= SUMS
        logits = [cuda.forward([token], states[0]), reference.forward([token], states[1])]
    assert state_difference(*states) <= SUMS


@pytest.mark.parametrize("weight_type", ["int8", "int4"])
def test_integers_agree_with_the_cpu(backends, weight_type):
    model, cuda = backends(weight_type)
    tokens = some_tokens(model.config, 50)
    states = State.zeros(model.config), State.zeros(model.config)
    found = np.stack([cuda.forward([token], states[0]) for token in tokens])
    expected = CpuBackend(model).forward_all(tokens, states[1])
    assert difference(found, expected) <= ROUNDED
    assert state_difference(*states) <= ROUNDED


@pytest.mark.parametrize("weight_type", TYPES)
@pytest.mark.parametrize("length", [2, 100, 1500])
def test_prompts_agree_with_the_cpu_in_floats(backends, weight_type, length, tmp_path):
    model, cuda = backends(weight_type)
    write_model(tmp_path / "x", model, replace(model.info, weight_type="fp32"))
    tokens = some_tokens(model.config, length)
    states = State.zeros(model.config), State.zeros(model.config)
    found = cuda.forward(tokens, states[0])
    assert difference(found, CpuBackend(ModelFile(tmp_path / "x")).forward(tokens, states[1])) <= HALF
    assert state_difference(*states) <= HALF
    every = cuda.forward_all(tokens, State.zeros(model.config))
    assert difference(every[-1], found) <= HALF


@pytest.mark.parametrize("weight_type", TYPES)
def test_states_go_to_the_cpu_and_back(backends, weight_type):
    model, cuda = backends(weight_type)
    cpu, state, expected = CpuBackend(model), State.zeros(model.config), State.zeros(model.config)
    tokens = some_tokens(model.config, 24)
    for i, token in enumerate(tokens):
        logits = (cuda, cpu)[i // 3 % 2].forward([token], state)
    assert difference(logits, cpu.forward(tokens, expected)) <= ROUNDED
    assert state_difference(state, expected) <= ROUNDED


@pytest.mark.parametrize("weight_type", TYPES)
def test_two_runs_give_the_same_to_the_bit(backends, weight_type):
    model, cuda = backends(weight_type)
    results = []
    for _ in range(2):
        state = State.zeros(model.config)
        logits = [cuda.forward(some_tokens(model.config, 1100), state)]
        logits += [cuda.forward([token], state) for token in some_tokens(model.config, 100)]
        results.append((np.stack(logits), state))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    assert_same_state(results[0][1], results[1][1])


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0},
        {"temperature": 1.5, "top_p": 0.95},
        {"presence_penalty": 1, "frequency_penalty": 0.5, "logit_bias": {66: 4.0}, "banned": {0}},
        {"min_p": 0.05, "top_p": 1},
        {"top_k": 40, "top_p": 0.95},
    ],
)
def test_tokens_are_chosen_as_on_the_host(backends, options):
    model, cuda = backends("fp16")
    settings = SamplingSettings(**{"seed": 3, **options})
    here, there = Sampler(settings), Sampler(settings)
    states = State.zeros(model.config), State.zeros(model.config)
    token = 1
    for _ in range(300):
        chosen = cuda.choose(token, states[0], there)
        there.accept(chosen.choice.token)
        expected = here.sample(cuda.forward([token], states[1]))
        assert chosen.choice.token == expected.token
        assert chosen.choice.logprob == pytest.approx(expected.logprob, abs=1e-5)
        token = chosen.choice.token
    assert_same_state(*states)


def test_auto_takes_the_gpu(monkeypatch):
    monkeypatch.setattr(probe, "gpus", lambda: FOUND)
    opened = registry.open_backend("auto", ModelFile(EMBEDDED_MODEL))
    assert (opened.selection.device, opened.backend.name, opened.failure) == ("cuda", "cuda", None)
    assert FOUND[0].name in opened.backend.description
