"""The table of tensors: that it is complete, and that what is computed from it fits together."""

import pytest

from rwkv_cli import tensors
from rwkv_cli.config import ModelConfig

ROWS = (*tensors.INPUT, *tensors.BLOCK, *tensors.OUTPUT)
NAMES = [name for name, _ in tensors.every(2)]


def test_every_name_is_found_and_no_other():
    for name, tensor in tensors.every(3):
        assert tensors.row_of(name) is tensor
        assert not tensors.is_absent(name)
    for name in (
        "",
        "emb",
        "blocks.0",
        "blocks.01.att.w0",
        "blocks.12345.att.w0",
        "blocks.0.att.x_x",
        "emb.weight\n",
    ):
        assert tensors.find(name) is None
        with pytest.raises(KeyError):
            tensors.row_of(name)


def test_layer_0_lacks_the_value_residual_alone():
    lacking = [f"blocks.0.{tensor.name}" for tensor in tensors.BLOCK if tensor.first_layer]
    assert lacking == ["blocks.0.att.v0", "blocks.0.att.v1", "blocks.0.att.v2"]
    assert all(tensors.is_absent(name) for name in lacking)
    assert not set(lacking) & set(NAMES)
    assert not tensors.is_absent("blocks.1.att.v0")
    assert not tensors.is_absent("other")


def test_the_orders_of_the_kernels_have_every_tensor_of_their_kind():
    in_block = {tensor.name: tensor.role for tensor in tensors.BLOCK}
    assert sorted(tensors.VECTORS) == sorted(name for name, role in in_block.items() if role == "vector")
    assert sorted(tensors.MATRICES) == sorted(name for name, role in in_block.items() if role != "vector")
    assert tensors.NORMS == ("blocks.0.ln0.weight", "blocks.0.ln0.bias", "ln_out.weight", "ln_out.bias")
    assert tensors.SHIFTS == ("att.x_r", "att.x_w", "att.x_k", "att.x_v", "att.x_a", "att.x_g")


@pytest.mark.parametrize("name", NAMES)
def test_names_of_other_formats_lead_back(name):
    assert tensors.from_hf(tensors.hf_name(name)) == name
    assert tensors.from_hf(tensors.hf_name(name).removeprefix("model.")) == name
    if not name.rpartition(".")[2].startswith("x_") or ".ffn." in name:
        assert tensors.from_gguf(tensors.gguf_name(name)) == name
        assert tensors.from_gguf(tensors.gguf_name(name).removesuffix(".weight")) == name
    else:
        with pytest.raises(KeyError):
            tensors.gguf_name(name)


def test_names_are_unique_in_every_format():
    for format in ("name", "gguf", "hf"):
        names = [name for tensor in ROWS if (name := getattr(tensor, format))]
        assert len(names) == len(set(names))


def test_names_of_no_place_stay():
    for name in ("blk.0", "blk.0.other.weight", "other", "attn_norm.weight"):
        assert tensors.from_gguf(name) == name
    for name in ("layers.0", "layers.0.other.weight", "other", "attn_norm.weight"):
        assert tensors.from_hf(name) == name


def test_shapes_of_other_formats():
    config = ModelConfig(2, 128, 320, 300, rank_w=32, rank_a=24, rank_v=16, rank_g=40)
    shapes = config.tensor_shapes()

    def shape_in(format, name):
        return tensors.row_of(name).shape_in(format, shapes[name])

    assert [shape_in(f, "blocks.1.att.w1") for f in ("pth", "hf", "st", "gguf")] == [
        (128, 32),
        (32, 128),
        (32, 128),
        (32, 128),
    ]
    for vector in ("w0", "x_r", "k_k"):
        assert (
            shape_in("st", f"blocks.1.att.{vector}")
            == shape_in("pth", f"blocks.1.att.{vector}")
            == (1, 1, 128)
        )
    assert shape_in("st", "blocks.1.att.r_k") == (2, 64)
    assert [shape_in(f, "blocks.1.att.x_r") for f in ("pth", "hf")] == [(1, 1, 128), (1, 1, 128)]
    assert [shape_in(f, "blocks.1.att.w0") for f in ("pth", "hf", "gguf")] == [(1, 1, 128), (128,), (128,)]
    assert [shape_in(f, "blocks.1.att.r_k") for f in ("pth", "hf", "gguf")] == [(2, 64), (2, 64), (128,)]
    assert [shape_in(f, "head.weight") for f in ("pth", "hf", "gguf")] == [(300, 128)] * 3
