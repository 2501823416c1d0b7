"""The reference backend against recorded results of the independent `rwkv` package; see `make_golden.py`."""

import numpy as np
import pytest
from helpers.models import SHAPES, SMALLEST, Weights, assert_same_state, difference, some_tokens
from helpers.writers import TINY, random_weights
from make_golden import GOLDEN, excerpt

from rwkv_cli.engine.backends.reference import ReferenceBackend, layer_norm, sigmoid, wkv7
from rwkv_cli.engine.state import State
from rwkv_cli.files.model_file import ModelFile
from rwkv_cli.paths import EMBEDDED_MODEL

PROMISE = 1e-4
"""Of the scale: what float32 sums in another order may differ by, and far below what a wrong formula does."""


def agrees_with_the_recording(backend: ReferenceBackend, name: str) -> None:
    state = State.zeros(backend.config)
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as golden:
        found = excerpt(backend.forward_all(golden["tokens"], state), state)
        for part, values in found.items():
            assert difference(values, golden[part]) <= PROMISE, part


@pytest.mark.parametrize("name", SHAPES)
def test_random_models_agree_with_the_rwkv_package(name):
    agrees_with_the_recording(ReferenceBackend(Weights(random_weights(SHAPES[name]))), name)


def test_the_embedded_model_agrees_with_the_rwkv_package():
    agrees_with_the_recording(ReferenceBackend(ModelFile(EMBEDDED_MODEL)), "gosling")


@pytest.mark.parametrize(
    "part", ["att.x_w", "att.k_a", "att.r_k", "att.v0", "ln1.bias", "att.ln_x.weight", "ffn.x_k"]
)
def test_the_recording_notices_a_wrong_weight(part):
    weights = random_weights(TINY)
    weights[f"blocks.2.{part}"] = 0.9 * weights[f"blocks.2.{part}"]
    with pytest.raises(AssertionError):
        agrees_with_the_recording(ReferenceBackend(Weights(weights)), "tiny")


def test_chunks_give_the_same_to_the_bit():
    backend = ReferenceBackend(Weights(random_weights(TINY)))
    tokens = some_tokens(TINY, 20)
    whole, parts = State.zeros(TINY), State.zeros(TINY)
    every = backend.forward_all(tokens, whole)
    heard: list[int] = []
    assert np.array_equal(backend.forward(tokens[:7], parts, heard.append), every[6])
    assert np.array_equal(backend.forward(tokens[7:], parts), every[-1])
    assert_same_state(parts, whole)
    assert sum(heard) == 7


def test_the_smallest_model_runs():
    backend = ReferenceBackend(Weights(random_weights(SMALLEST)))
    assert np.isfinite(backend.forward([0, 1], State.zeros(SMALLEST))).all()


def test_a_state_stores_under_a_key_and_removes_it():
    S = np.zeros((1, 4, 4), np.float32)
    key, other, value = (np.eye(4, dtype=np.float32)[[i]] for i in range(3))
    ones, zeros = np.ones((1, 4), np.float32), np.zeros((1, 4), np.float32)
    assert np.array_equal(
        wkv7(S, key, ones, key, value, key, ones), value
    )  # written, then read with the same key
    assert np.array_equal(
        wkv7(S, other, ones, zeros, zeros, key, zeros), zeros
    )  # nothing is under another key
    assert np.array_equal(wkv7(S, key, 0.5 * ones, zeros, zeros, key, zeros), 0.5 * value)  # decayed
    assert np.array_equal(wkv7(S, key, ones, zeros, zeros, key, ones), zeros)  # removed


def test_sigmoid_never_overflows():
    with np.errstate(all="raise"):
        found = sigmoid(np.array([-1e30, -1.0, 0, 1.0, 1e30], np.float32))
    np.testing.assert_allclose(found, [0, 1 / (1 + np.e), 0.5, np.e / (1 + np.e), 1], rtol=1e-6)


def test_layer_norm_of_a_constant_is_its_bias():
    bias = np.arange(8, dtype=np.float32)
    assert np.array_equal(layer_norm(np.full(8, 3, np.float32), np.ones(8, np.float32), bias), bias)


def test_a_layer_reads_the_token_before_through_the_state():
    weights = random_weights(TINY)
    backend = ReferenceBackend(Weights(weights))
    state = State.zeros(TINY)
    backend.forward([5], state)
    x = layer_norm(weights["emb.weight"][5], weights["blocks.0.ln0.weight"], weights["blocks.0.ln0.bias"])
    u = layer_norm(x, weights["blocks.0.ln1.weight"], weights["blocks.0.ln1.bias"])
    np.testing.assert_array_equal(state.shift_att[0], u)
