"""Intervals, and the measures of texts, of two models and of questions, against plain computations."""

import itertools
import json
import math

import numpy as np
import pytest
from helpers.models import fine_weights, some_tokens, write_and_open
from hypothesis import given
from hypothesis import strategies as st

from rwkv_cli.config import ModelConfig
from rwkv_cli.engine.backends.reference import ReferenceBackend
from rwkv_cli.engine.perplexity import perplexity
from rwkv_cli.engine.state import State
from rwkv_cli.errors import UsageError
from rwkv_cli.evaluation import advice, divergence
from rwkv_cli.evaluation.comparison import compare_models
from rwkv_cli.evaluation.intervals import Interval, bootstrap, share
from rwkv_cli.evaluation.questions import TOGETHER, Question, answer_all, parse_questions
from rwkv_cli.evaluation.text import byte_counts, losses, score, windows_of
from rwkv_cli.text.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A model, and the same in int4."""
    weights, folder = fine_weights(), tmp_path_factory.mktemp("models")
    return tuple(
        ReferenceBackend(write_and_open(folder / f"{kind}.safetensors", weights, kind))
        for kind in ("fp32", "int4")
    )


def log_softmax(logits):
    wide = logits.astype(np.float64)
    return wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))


# ---------------------------------------------------------------------------------------------------------- intervals


def test_an_interval_covers_the_mean_that_it_is_of():
    rng, covered = np.random.default_rng(1), 0
    for _ in range(200):
        sample = rng.exponential(2.0, 2000)
        found = bootstrap(len(sample), lambda i, sample=sample: float(sample[i].mean()), draws=200)
        assert found.value == pytest.approx(sample.mean())
        covered += found.low <= 2.0 <= found.high
    assert 170 <= covered <= 200  # about 190


def test_neighbours_that_are_alike_widen_the_interval():
    sample = np.repeat(np.random.default_rng(0).normal(size=64), 64)
    apart = bootstrap(len(sample), lambda i: float(sample[i].mean()), block=1)
    together = bootstrap(len(sample), lambda i: float(sample[i].mean()), block=64)
    assert together.high - together.low > 4 * (apart.high - apart.low)


def test_one_block_has_no_interval():
    found = bootstrap(10, lambda i: float(len(i)))
    assert found.value == 10
    assert math.isnan(found.low)
    assert math.isnan(found.high)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_a_share_is_within_its_interval(counts):
    successes, n = counts
    found = share(successes, n)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.high > found.low


def test_a_share_is_wilson_s():
    # The score interval of 8 of 10, by the formula's solution of (p - q)^2 = z^2 q (1 - q) / n.
    found = share(8, 10)
    for end in (found.low, found.high):
        assert (0.8 - end) ** 2 == pytest.approx(1.959964**2 * end * (1 - end) / 10)


def test_an_interval_is_mapped_end_by_end():
    assert Interval(2.0, 1.0, 3.0).map(lambda x: 2 * x) == (4.0, 2.0, 6.0)


# --------------------------------------------------------------------------------------------------------------- texts


@given(st.integers(2, 400), st.integers(1, 130), st.none() | st.integers(1, 9))
def test_windows_are_pieces_in_order(n, length, most):
    tokens = list(range(n))
    found = windows_of(tokens, length, most)
    assert most is None or len(found) <= most
    for window in found:
        assert 2 <= len(window) <= length + 1
        assert list(window) == tokens[window[0] : window[0] + len(window)]
    firsts = [window[0] for window in found]
    assert firsts == sorted(set(firsts))
    if len(found) > 1:
        assert all(b - a >= len(found[0]) for a, b in itertools.pairwise(firsts))


def test_the_score_of_a_text_is_its_perplexity(models):
    backend, _ = models
    tokens = some_tokens(backend.config, 300)
    windows = windows_of(tokens, 70, 3)
    found = losses(backend, windows)
    scored = score(found, np.full(len(found), 3))
    assert scored.tokens == 210
    assert scored.perplexity.value == pytest.approx(perplexity(backend, tokens, 3, 70))
    assert scored.bits_per_byte.value == pytest.approx(found.mean() / math.log(2) / 3)
    assert scored.perplexity.low < scored.perplexity.value < scored.perplexity.high


def test_tokens_without_bytes_have_no_bits():
    windows = [[1, 2, 3]]
    counts = byte_counts(windows, lambda token: b"ab" * token)
    assert counts.tolist() == [4, 6]
    assert score(np.ones(2), np.zeros(2, np.int64)).bits_per_byte is None


# ---------------------------------------------------------------------------------------------------------- two models


def test_pairs_are_what_the_formulas_say(models):
    before, after = models
    tokens = some_tokens(before.config, 150, 3)
    found = divergence.pairs(before, after, [tokens])
    p, q = (log_softmax(model.forward_all(tokens[:-1], State.zeros(model.config))) for model in models)
    i = np.arange(len(tokens) - 1)
    np.testing.assert_allclose(found.before, -p[i, tokens[1:]], rtol=1e-6)
    np.testing.assert_allclose(found.after, -q[i, tokens[1:]], rtol=1e-6)
    np.testing.assert_allclose(found.divergence, (np.exp(p) * (p - q)).sum(axis=1), atol=1e-9)
    np.testing.assert_array_equal(found.agrees, p.argmax(axis=1) == q.argmax(axis=1))
    assert found.divergence.mean() > 0


def greedy(backend, prompt, n):
    state, text = State.zeros(backend.config), []
    logits = backend.forward(prompt, state)
    for _ in range(n):
        text.append(int(logits.argmax()))
        logits = backend.forward(text[-1:], state)
    return text


@pytest.mark.parametrize("seed", range(5))
def test_greedy_texts_part_where_they_do(models, seed):
    before, after = models
    prompt = some_tokens(before.config, 12, seed)
    first, second = (greedy(model, prompt, 24) for model in models)
    common = next((i for i in range(24) if first[i] != second[i]), 24)
    assert divergence.parted(before, after, prompt, 24) == common


def test_a_model_loses_nothing_against_itself(models, byte_vocabulary):
    before, after = models
    tokenizer = load_tokenizer(byte_vocabulary, before.config.vocab_size)
    windows = windows_of(some_tokens(before.config, 200), 64)
    same = compare_models(before, before, tokenizer, windows)
    assert same.change.value == same.divergence.value == 0
    assert same.agreement.value == 1
    assert same.parted.value == same.greedy_tokens
    less = compare_models(before, after, tokenizer, windows)
    assert less.divergence.value > 0
    assert less.after.perplexity.value / less.before.perplexity.value - 1 == pytest.approx(less.change.value)
    assert less.divergence_99.value > less.divergence.value


# ----------------------------------------------------------------------------------------------------------- questions


class Numbers:
    """Tokens written as numbers."""

    end_of_document = 0

    def encode(self, text):
        return [int(number) for number in text.split()]


def test_an_answer_is_right_if_it_is_the_greedy_text(models):
    backend, _ = models
    answer = greedy(backend, [0, 5, 6], 4)
    wrong = [*answer[:2], (answer[2] + 1) % backend.config.vocab_size, answer[3]]
    asked = [
        Question(task, "5 6", " ".join(map(str, tokens)))
        for task, tokens in (("a", answer), ("a", wrong), ("b", answer[:1]))
    ]
    found = answer_all(backend, Numbers(), asked)
    assert {task: share.value for task, share in found.items()} == {"a": 0.5, "b": 1.0, TOGETHER: 2 / 3}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2 of q is not valid JSON"),
        ("[1]", 'line 2 of q needs the texts "task", "prompt" and "answer"'),
        ('{"task": "a", "prompt": "b"}', "line 2 of q needs"),
        ('{"task": "a", "prompt": "b", "answer": ""}', "line 2 of q needs"),
        ('{"task": "a", "prompt": "b", "answer": 3}', "line 2 of q needs"),
    ],
)
def test_a_wrong_line_is_named(line, said):
    good = json.dumps({"task": "a", "prompt": "b", "answer": "c", "more": 1})
    assert parse_questions(good + "\n\n", "q") == [Question("a", "b", "c")]
    with pytest.raises(UsageError, match=said.replace('"', ".")):
        parse_questions(f"{good}\n{line}\n", "q")
    with pytest.raises(UsageError, match="q has no questions"):
        parse_questions("\n", "q")


# -------------------------------------------------------------------------------------------------------------- advice


def test_int4_is_warned_of_below_7b():
    def model(n_layer: int, n_embd: int) -> ModelConfig:
        return ModelConfig(
            n_layer=n_layer, n_embd=n_embd, n_ffn=4 * n_embd, vocab_size=65536,
            rank_w=64, rank_a=64, rank_v=32, rank_g=128,
        )  # fmt: skip

    small, large = model(24, 2048), model(32, 4096)
    assert "MATH500" in advice.warning(small, "int4")
    assert "docs/quality.md" in advice.warning(small, "int4")
    assert advice.warning(large, "int4") is None
    assert [advice.warning(small, kind) for kind in ("int8", "fp16", "fp32")] == [None] * 3
