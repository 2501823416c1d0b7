import numpy as np
import pytest
from helpers.models import SHAPES, SMALLEST
from helpers.writers import TINY, random_weights

from rwkv_cli.config import ModelConfig
from rwkv_cli.engine.state import State
from rwkv_cli.errors import CheckpointError

SHAPE = TINY.tensor_shapes()


@pytest.mark.parametrize("config", [*SHAPES.values(), SMALLEST], ids=[*SHAPES, "smallest"])
def test_every_size_is_read_from_the_shapes(config):
    assert ModelConfig.from_shapes(config.tensor_shapes()) == config


def test_tensors_in_any_order_and_unknown_ones_beside_them():
    shapes = dict(reversed(SHAPE.items())) | {"blocks.x.what": (1,), "other": ()}
    assert ModelConfig.from_shapes(shapes) == TINY


def test_the_fields_come_back_from_a_dictionary():
    assert ModelConfig.from_dict(TINY.as_dict()) == TINY
    assert all(type(value) is int for value in TINY.as_dict().values())


def test_sizes_that_follow():
    assert TINY.n_head == 2
    assert TINY.n_params == sum(weight.size for weight in random_weights(TINY).values())
    assert TINY.state_bytes == State.zeros(TINY).nbytes == 4 * 3 * (128 + 128 + 2 * 64 * 64)


def test_published_sizes():
    """RWKV-7 World 0.1B, from the sizes of its card: 191 M parameters and a state of 2.4 MB."""
    config = ModelConfig(
        n_layer=12, n_embd=768, n_ffn=3072, vocab_size=65536, rank_w=64, rank_a=64, rank_v=32, rank_g=128
    )
    assert round(config.n_params / 1e6) == 191
    assert round(config.state_bytes / 1e6, 1) == 2.4


def test_layer_0_has_no_value_residual():
    assert "blocks.0.att.v1" not in SHAPE
    assert SHAPE["blocks.1.att.v1"] == (128, 16)


@pytest.mark.parametrize("name", SHAPE)
def test_every_tensor_is_needed(name):
    shapes = {other: shape for other, shape in SHAPE.items() if other != name}
    with pytest.raises(CheckpointError, match=f"the tensor {name} is missing: the checkpoint is incomplete"):
        ModelConfig.from_shapes(shapes)


@pytest.mark.parametrize("name", SHAPE)
def test_every_shape_is_checked(name):
    with pytest.raises(CheckpointError):
        ModelConfig.from_shapes(SHAPE | {name: (*SHAPE[name][:-1], SHAPE[name][-1] + 64)})
    for wrong in ((), (1, *SHAPE[name]), (0,) * len(SHAPE[name])):
        with pytest.raises(CheckpointError, match="should have"):
            ModelConfig.from_shapes(SHAPE | {name: wrong})


def test_the_message_names_the_tensor_and_both_shapes():
    with pytest.raises(
        CheckpointError, match=r"blocks.2.att.v2 has the shape \[128, 16\]; .* demand \[16, 128\]"
    ):
        ModelConfig.from_shapes(SHAPE | {"blocks.2.att.v2": (128, 16)})


def test_heads_must_make_the_channels():
    with pytest.raises(CheckpointError, match="3 heads of 64"):
        ModelConfig.from_shapes(SHAPE | {"blocks.0.att.r_k": (3, 64)})


@pytest.mark.parametrize(
    "change",
    [
        {"n_layer": 0},
        {"n_layer": "3"},
        {"n_layer": None},
        {"n_layer": np.int64(3)},
        {"vocab_size": 2**31},
        {"vocab_size": -1},
        {"rank_w": 0},
        {"rank_v": -1},
        {"n_embd": 130},
        {"another": 1},
    ],
    ids=str,
)
def test_fields_that_cannot_be_right_are_refused(change):
    with pytest.raises(ValueError):
        ModelConfig.from_dict(TINY.as_dict() | change)


@pytest.mark.parametrize("value", [0, 0.0, False, None, "", [], {}], ids=repr)
def test_an_unknown_field_that_asks_for_nothing_is_ignored(value):
    assert ModelConfig.from_dict(TINY.as_dict() | {"deep_embed": value}) == TINY


@pytest.mark.parametrize("value", [1, 0.5, True, "no", [0], {"a": 0}], ids=repr)
def test_an_unknown_field_that_may_change_the_model_is_refused(value):
    with pytest.raises(ValueError, match="does not know its field 'deep_embed'; update rwkv-cli"):
        ModelConfig.from_dict(TINY.as_dict() | {"deep_embed": value})


def test_a_missing_field_with_a_default_takes_it():
    fields = TINY.as_dict()
    del fields["head_size"]
    assert ModelConfig.from_dict(fields).head_size == 64


def test_a_missing_field_is_refused():
    fields = TINY.as_dict()
    del fields["rank_g"]
    with pytest.raises(ValueError, match="rank_g"):
        ModelConfig.from_dict(fields)
