"""Rounding for a text: smaller errors of what comes out, a file like any other, and the pass of the reference."""

import numpy as np
import pytest
from helpers.models import SHAPES, Weights, difference, fine_weights, some_tokens, write_file
from helpers.writers import TINY

from rwkv_cli.convert import calibration
from rwkv_cli.convert.calibration import Calibration, round_for
from rwkv_cli.engine.backends.reference import ReferenceBackend
from rwkv_cli.engine.state import State
from rwkv_cli.files.model_file import ModelFile
from rwkv_cli.files.quantization import GROUP, INT4_OFFSET, bf16_to_f32, quantize_int4

TEXT = "Once upon a time there was a goose that could count to ten, and it did so every morning. " * 12


def restored(rounded):
    q, scale = rounded
    groups = (q.astype(np.float32) - INT4_OFFSET).reshape(*scale.shape, GROUP)
    return (groups * bf16_to_f32(scale)[..., None]).reshape(q.shape)


def related_inputs(K, seed=0):
    """Inputs [2000, K] that depend on each other, as activations do."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(2000, K // 2)) @ rng.normal(size=(K // 2, K))).astype(np.float32)


@pytest.mark.parametrize("K", [64, 192])
def test_outputs_are_closer_than_with_rounding_to_the_nearest(K):
    X, W = related_inputs(K), np.random.default_rng(1).normal(size=(48, K)).astype(np.float32)
    errors = [
        np.linalg.norm((restored(rounded) - W) @ X.T) for rounded in (round_for(W, X.T @ X), quantize_int4(W))
    ]
    assert errors[0] < 0.8 * errors[1]
    q, _ = round_for(W, X.T @ X)
    assert q.max() <= 15


def test_inputs_that_are_independent_change_nothing():
    W = np.random.default_rng(1).normal(size=(16, 2 * GROUP)).astype(np.float32)
    expected = quantize_int4(W)
    found = round_for(W, np.eye(2 * GROUP, dtype=np.float32))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "gram", [np.zeros((GROUP, GROUP)), np.ones((GROUP, GROUP)), np.full((GROUP, GROUP), 1e30)]
)
def test_inputs_that_never_vary_are_rounded_all_the_same(gram):
    W = np.random.default_rng(1).normal(size=(16, GROUP)).astype(np.float32)
    W[3] = 0
    found = restored(round_for(W, gram.astype(np.float32)))
    assert np.isfinite(found).all()
    assert not found[3].any()


@pytest.mark.parametrize("name", ["tiny", "odd-ranks"])
def test_the_text_is_read_as_the_reference_reads_it(monkeypatch, name):
    """Without rounding, the last layer has the very inputs of the head."""
    weights = Weights(fine_weights(SHAPES[name]))
    tokens = some_tokens(weights.config, 24)
    heads = []

    def exact(self, name, matrix, inputs):
        self._rounded[name] = (None, None)
        if name == "head.weight":
            heads.append(inputs @ matrix.T)
        return matrix

    monkeypatch.setattr(Calibration, "_round", exact)
    found = Calibration(weights, tokens)
    for tensor in weights.config.tensor_shapes():
        if tensor.endswith(("att.receptance.weight", "head.weight")):
            found(tensor, weights.tensor(tensor))
    expected = ReferenceBackend(weights).forward_all(tokens, State.zeros(weights.config))
    assert difference(heads[0].reshape(expected.shape), expected) < 1e-5


def test_a_calibrated_file_is_an_int4_file_like_any_other(rwkv, tmp_path, monkeypatch, byte_vocabulary):
    monkeypatch.chdir(tmp_path)
    write_file(tmp_path / "fp32", fine_weights(), "fp32", tokenizer=byte_vocabulary)
    assert rwkv("quantize", "fp32", "plain", "--type", "int4").code == 0
    (tmp_path / "text.txt").write_text(TEXT)
    result = rwkv("quantize", "fp32", "made", "--type", "int4", "--calibrate", "text.txt", "--compare", TEXT)
    assert result.code == 0
    assert "KL divergence" in result.out
    plain, made = ModelFile(tmp_path / "plain"), ModelFile(tmp_path / "made")
    assert (made.info.weight_type, made.weight_bytes) == ("int4", plain.weight_bytes)
    assert made.config == TINY
    name = "blocks.1.ffn.key.weight"
    assert (made.stored(name) != plain.stored(name)).any()
    np.testing.assert_array_equal(made.stored("emb.weight"), plain.stored("emb.weight"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--calibrate", TEXT), "--calibrate is of use for int4 only"),
        (("--calibrate", "short", "--type", "int4"), f"at least {calibration.LEAST_TOKENS}"),
    ],
)
def test_what_cannot_be_calibrated_is_one_sentence(rwkv, tmp_path, byte_vocabulary, arguments, said):
    write_file(tmp_path / "fp32", fine_weights(), "fp32", tokenizer=byte_vocabulary)
    result = rwkv("quantize", tmp_path / "fp32", tmp_path / "out", *arguments)
    assert said in result.sentence
    assert result.code == 2
    assert not (tmp_path / "out").exists()
