"""State files that the first release wrote stay readable, and continue as they did then.

tests/golden/formats/expected.npz has the text that the states are saved after and the tokens that followed, the answers
of the conversation and its next answer, to the message "three", all by the reference backend.
"""

from pathlib import Path

import numpy as np
import pytest

import rwkv_cli
from rwkv_cli.sessions import state_file
from rwkv_cli.sessions.conversation import Conversation
from rwkv_cli.text.templates import get_template

FORMATS = Path(__file__).parents[1] / "golden" / "formats"
SAMPLING = {"seed": 5, "presence_penalty": 0.5, "frequency_penalty": 0.5}
MORE_SAMPLING = {"logit_bias": {3: -1.0}, "banned": frozenset({7})}

ROUNDED = 2e-3
"""Relative to the largest value: the compact form keeps float16."""


@pytest.fixture(scope="module")
def expected():
    with np.load(FORMATS / "expected.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def model():
    return rwkv_cli.load(FORMATS / "model-int8.safetensors", "reference")


@pytest.mark.parametrize("name", ["state", "state-compact", "conversation"])
def test_they_load_and_belong_to_their_model(name, model):
    path = FORMATS / f"{name}.safetensors"
    assert state_file.is_state_file(path)
    saved = state_file.load(path)
    assert state_file.fit(saved, model) is None
    saved.snapshot.state.check_fits(model.config)


def test_all_that_a_state_holds(expected):
    saved = state_file.load(FORMATS / "state.safetensors")
    assert (saved.name, saved.template, saved.text) == ("plain", get_template("raw"), str(expected["text"]))
    assert saved.settings == SAMPLING | MORE_SAMPLING
    assert saved.snapshot.n_tokens == len(b"Hello") + 8  # a token per byte
    assert saved.snapshot.memory
    assert saved.snapshot.memory.counts


def test_the_state_continues_with_the_same_tokens(expected, model):
    saved = state_file.load(FORMATS / "state.safetensors")
    generation = model.generate("", start=saved.snapshot, max_tokens=8, **saved.settings)
    assert [step.token for step in generation] == expected["continuation"].tolist()


def test_the_compact_state_is_the_exact_one_rounded():
    exact, compact = (
        state_file.load(FORMATS / f"{name}.safetensors").snapshot for name in ("state", "state-compact")
    )
    for name in ("shift_att", "wkv", "shift_ffn"):
        one, other = getattr(exact.state, name), getattr(compact.state, name)
        assert np.abs(one - other).max() <= ROUNDED * np.abs(one).max()
    assert compact.n_tokens == exact.n_tokens


def test_the_conversation_has_its_turns_and_continues(expected, model):
    conversation = Conversation.from_saved(model, state_file.load(FORMATS / "conversation.safetensors"))
    assert [turn.text for turn in conversation.turns] == expected["turns"].tolist()
    for _ in conversation.ask("three"):
        pass
    assert conversation.turns[-1].text == str(expected["next_answer"])


@pytest.mark.parametrize("name", ["state", "conversation"])
def test_this_version_writes_the_same_bytes(name, tmp_path):
    path = FORMATS / f"{name}.safetensors"
    saved = state_file.load(path)
    state_file.save(tmp_path / path.name, saved)
    assert (tmp_path / path.name).read_bytes() == path.read_bytes()
