"""The reference backend next to the independent `rwkv` package, live; needs the `peers` extra.

What that package cannot do is left out: a rank of 1 or a vocabulary of 1, whose matrices it squeezes into vectors.
"""

import pytest
from helpers.models import SHAPES, SHARED, Weights, difference, some_tokens, state_difference
from helpers.writers import random_weights, write_pth
from make_golden import Peer, as_state

from rwkv_cli.engine.backends.reference import ReferenceBackend
from rwkv_cli.engine.state import State
from rwkv_cli.files.checkpoints import open_checkpoint

pytest.importorskip("torch", reason="needs the peers extra")
pytest.importorskip("rwkv", reason="needs the peers extra")

PROMISE = 1e-4  # of the scale


def agrees_with_the_package(path, length=64, seed=0):
    peer, backend = Peer(path), ReferenceBackend(open_checkpoint(path))
    tokens = some_tokens(backend.config, length, seed)
    state = State.zeros(backend.config)
    expected, parts = peer.forward(tokens)
    assert difference(backend.forward_all(tokens, state), expected) <= PROMISE
    assert state_difference(state, as_state(parts)) <= PROMISE

    token = tokens[0]  # and on from there
    expected, parts = peer.forward([token], parts)
    assert difference(backend.forward([token], state), expected[0]) <= PROMISE
    assert state_difference(state, as_state(parts)) <= PROMISE


@pytest.mark.parametrize("with_layer0_v", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_random_models(tmp_path, name, with_layer0_v):
    weights = random_weights(SHAPES[name], seed=1)
    agrees_with_the_package(write_pth(tmp_path / "x.pth", weights, "f32", with_layer0_v=with_layer0_v))


@pytest.mark.parametrize(("dtype", "vectors"), [("bf16", "[1,1,C]"), ("f16", "[C]")])
def test_files_as_they_are_published(tmp_path, dtype, vectors):
    weights = random_weights(SHAPES["tiny"], seed=2)
    agrees_with_the_package(write_pth(tmp_path / "x.pth", weights, dtype, vectors))


@pytest.mark.parametrize("seed", range(5))
def test_other_weights_and_tokens(tmp_path, seed):
    weights = random_weights(SHAPES["odd-ranks"], seed=10 + seed)
    agrees_with_the_package(write_pth(tmp_path / "x.pth", weights, "f32"), length=200, seed=seed)


@pytest.mark.skipif(not (SHARED / "gosling.pth").exists(), reason="gosling.pth is not on this machine")
def test_gosling():
    agrees_with_the_package(SHARED / "gosling.pth", length=32)


def test_a_wrong_weight_is_noticed(tmp_path):
    weights = random_weights(SHAPES["tiny"])
    peer = Peer(write_pth(tmp_path / "x.pth", weights, "f32"))
    weights["blocks.1.att.k_k"] = 1.1 * weights["blocks.1.att.k_k"] + 0.1
    tokens = some_tokens(SHAPES["tiny"], 16)
    expected, _ = peer.forward(tokens)
    found = ReferenceBackend(Weights(weights)).forward_all(tokens, State.zeros(SHAPES["tiny"]))
    assert difference(found, expected) > 10 * PROMISE
