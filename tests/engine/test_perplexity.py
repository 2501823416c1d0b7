"""Perplexity by its definition, and the promise that int8 costs next to nothing."""

import numpy as np
import pytest
from helpers.models import SHARED, Weights, fine_weights, needs_shared, some_tokens
from helpers.writers import TINY

from rwkv_cli.engine.backends.cpu import CpuBackend
from rwkv_cli.engine.backends.reference import ReferenceBackend
from rwkv_cli.engine.perplexity import CHUNK, negative_log_likelihoods, perplexity
from rwkv_cli.engine.state import State
from rwkv_cli.files.model_file import ModelFile
from rwkv_cli.paths import EMBEDDED_MODEL
from rwkv_cli.text.tokenizer import load_tokenizer

STORY = """Once upon a time, there was a little girl named Lily. She loved to play in the park with her red ball. One \
day, the ball rolled into the bushes and Lily could not find it. She was very sad and started to cry. Then a small dog \
came to her. The dog had the ball in his mouth! Lily was so happy. She gave the dog a big hug and said, "Thank you, \
little dog!" They played together all day, and they became best friends."""


class Uniform:
    """Gives every token the same chance, but for one that it always expects."""

    config = TINY

    def __init__(self, favourite: int | None = None, lead: float = 0) -> None:
        self.favourite, self.lead = favourite, lead
        self.starts: list[int] = []  # the first token of every text

    def forward_all(self, tokens, state):
        if not state.shift_att.any():
            self.starts.append(int(tokens[0]))
        state.shift_att[:] = 1
        logits = np.full((len(tokens), TINY.vocab_size), 3e4, np.float32)  # of which no exp is finite
        if self.favourite is not None:
            logits[:, self.favourite] += self.lead
        return logits


@pytest.mark.parametrize("length", [2, 3, CHUNK, CHUNK + 1, CHUNK + 2, 3 * CHUNK])
def test_equal_chances_have_the_perplexity_of_the_vocabulary(length):
    losses = negative_log_likelihoods(Uniform(), some_tokens(TINY, length))
    np.testing.assert_allclose(losses, np.full(length - 1, np.log(TINY.vocab_size)))
    assert losses.dtype == np.float64


def test_each_prediction_is_of_the_next_token():
    losses = negative_log_likelihoods(Uniform(favourite=7, lead=1000), [7, 7, 5, 7])
    np.testing.assert_allclose(losses, [0, 1000, 0])


def test_losses_are_those_of_the_definition():
    backend, tokens = ReferenceBackend(Weights(fine_weights(TINY))), some_tokens(TINY, 2 * CHUNK)
    logits = backend.forward_all(tokens, State.zeros(TINY)).astype(np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = [-np.log(probabilities[t, tokens[t + 1]]) for t in range(len(tokens) - 1)]
    np.testing.assert_allclose(negative_log_likelihoods(backend, tokens), expected, rtol=1e-9)


def test_windows_are_spread_evenly_and_start_empty():
    backend, heard = Uniform(), []
    found = perplexity(backend, np.arange(300), 4, 10, lambda done, total: heard.append((done, total)))
    assert found == pytest.approx(TINY.vocab_size)
    assert backend.starts == [0, 75, 150, 225]
    assert heard == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_the_mean_is_of_the_losses():
    found = perplexity(Uniform(favourite=0, lead=30), [0, 0, 1, 0, 0, 0], windows=2, length=2)
    assert found == pytest.approx(np.exp(30 / 4), rel=1e-6)  # one miss in four predictions


def test_int8_reads_a_story_as_well_as_the_reference():
    model = ModelFile(EMBEDDED_MODEL)
    tokens = [0, *load_tokenizer(model.info.tokenizer, model.config.vocab_size).encode(STORY)]
    found = perplexity(CpuBackend(model), tokens, 1, len(tokens) - 1)
    assert found < 12
    expected = perplexity(ReferenceBackend(model), tokens[:65], 1, 64)
    assert perplexity(CpuBackend(model), tokens[:65], 1, 64) == pytest.approx(expected, rel=0.01)


@needs_shared
def test_int8_costs_less_than_a_fifth_of_a_percent():
    """24 windows of 1,024 predictions; the `rwkv` package in float32 has 14.7039."""
    tokens = np.fromfile(SHARED / "eval.bin", "<u2")
    found = perplexity(CpuBackend(ModelFile(EMBEDDED_MODEL)), tokens, 24, 1024)
    assert found == pytest.approx(14.7039, rel=0.002)
