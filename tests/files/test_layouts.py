"""Names, shapes and orientations: the ports of RWKV-7 to safetensors, and what trainers write."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.models import SHAPES
from helpers.ports import PORTS, write_port, write_st
from helpers.writers import (
    TINY,
    layer0_value_residual,
    pickled_int,
    pickled_tensor,
    pickled_text,
    random_weights,
    rows,
    state_dict_pickle,
    to_bf16,
    with_low_rank_transposed,
    write_folder,
    write_hf,
    write_pth,
    write_safetensors,
    write_torch,
    write_torch_archive,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from rwkv_cli.config import ModelConfig
from rwkv_cli.errors import CheckpointError, RwkvError, UnsupportedModelError
from rwkv_cli.files.checkpoints import open_checkpoint
from rwkv_cli.files.checkpoints.layouts import official_name

WEIGHTS = random_weights(TINY, seed=4)
# All ranks are C, so that no shape shows which way round a matrix is.
SQUARE = random_weights(ModelConfig(2, 64, 128, 20, rank_w=64, rank_a=64, rank_v=64, rank_g=64))


def opened(path, weights=WEIGHTS):
    """The checkpoint, which has these tensors."""
    checkpoint = open_checkpoint(path)
    assert set(checkpoint.config.tensor_shapes()) == set(weights)
    for name, tensor in weights.items():
        np.testing.assert_array_equal(checkpoint.tensor(name), tensor, err_msg=name)
    return checkpoint


# --------------------------------------------------------------------------------------- folders of the ports


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("port", PORTS)
def test_every_port_is_read(tmp_path, port, name):
    weights = random_weights(SHAPES[name], seed=2)
    checkpoint = opened(write_port(tmp_path / "m", weights, port), weights)
    assert (checkpoint.format, checkpoint.config) == ("hf", SHAPES[name])


@pytest.mark.parametrize("port", PORTS)
def test_every_port_is_read_from_shards(tmp_path, port):
    checkpoint = opened(write_port(tmp_path / "m", WEIGHTS, port, shards=3, dtype="f16"))
    assert len(checkpoint.files) == 3


@pytest.mark.parametrize("port", PORTS)
def test_unused_tensors_of_layer_0_are_left_out(tmp_path, port):
    opened(write_port_with(tmp_path / "m", port, layer0_value_residual(WEIGHTS)))


def write_port_with(folder, port, more):
    rename, config_of = PORTS[port]
    return write_folder(folder, rename(WEIGHTS | more), config_of(TINY))


@pytest.mark.parametrize("port", PORTS)
def test_deep_embeddings_are_refused_under_every_name(tmp_path, port):
    more = {"blocks.0.ffn.s_emb.weight": np.ones((4, 4), np.float32)}
    with pytest.raises(UnsupportedModelError, match="DeepEmbed"):
        open_checkpoint(write_port_with(tmp_path / "m", port, more))


@pytest.mark.parametrize("port", PORTS)
def test_the_name_of_an_unknown_tensor_is_the_files_own(tmp_path, port):
    name = next(iter(PORTS[port][0]({"blocks.1.att.x_r": WEIGHTS["blocks.1.att.x_r"]}))).replace("x_r", "x_y")
    folder = write_port(tmp_path / "m", WEIGHTS, port)
    write_safetensors(folder / "model.safetensors", PORTS[port][0](WEIGHTS) | {name: np.ones(4, np.float32)})
    with pytest.raises(CheckpointError, match=f"has the tensor '{name}', which no RWKV-7 model has"):
        open_checkpoint(folder)


@pytest.mark.parametrize("setting", ["head_dim", "head_size"])
@pytest.mark.parametrize("port", PORTS)
def test_a_flat_r_k_is_split_into_the_heads_of_the_config(tmp_path, port, setting):
    config = replace(TINY, head_size=32)
    weights = random_weights(config)
    flat = {name: tensor.reshape(-1) if name.endswith("r_k") else tensor for name, tensor in weights.items()}
    rename, config_of = PORTS[port]
    sizes = {"head_dim": None, "head_size": None} | {setting: 32}
    assert (
        opened(write_folder(tmp_path / "m", rename(flat), config_of(config) | sizes), weights).config
        == config
    )


def test_tied_embeddings(tmp_path):
    tied = WEIGHTS | {"head.weight": WEIGHTS["emb.weight"]}
    folder = write_port(tmp_path / "m", tied, "RwkvForCausalLM", tie_word_embeddings=True)
    rename = PORTS["RwkvForCausalLM"][0]
    named = {name: tensor for name, tensor in rename(tied).items() if name != "lm_head.weight"}
    write_safetensors(folder / "model.safetensors", named)
    opened(folder, tied)


@pytest.mark.parametrize("model_type", ["rwkv", "rwkv7", None])
def test_the_tensors_tell_what_a_model_called_rwkv_is(tmp_path, model_type):
    opened(write_hf(tmp_path / "m", WEIGHTS, model_type=model_type))
    folder = write_hf(tmp_path / "raven", WEIGHTS, model_type=model_type)
    names = ("rwkv.blocks.0.attention.time_decay", "rwkv.blocks.0.attention.key.weight", "head.weight")
    write_safetensors(folder / "model.safetensors", {name: np.ones((4, 4), np.float32) for name in names})
    with pytest.raises(UnsupportedModelError, match=r"is an RWKV-4 model \(Raven\)"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"embedding_layer_norm_fused": True}, UnsupportedModelError, "folded into the embedding"),
        ({"layer_norm_epsilon": 1e-6}, UnsupportedModelError, "sets layer_norm_epsilon to 1e-06"),
        ({"group_norm_epsilon": 1e-5}, UnsupportedModelError, "sets group_norm_epsilon to 1e-05"),
        ({"hidden_act": "silu"}, UnsupportedModelError, "sets hidden_act to silu"),
        ({"head_size": 32}, CheckpointError, "sets head_size to 32, but the tensors say 64"),
    ],
)
def test_a_config_of_another_model_is_refused(tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        open_checkpoint(write_port(tmp_path / "m", WEIGHTS, "RwkvForCausalLM", **changes))


def test_squared_relu_has_two_names(tmp_path):
    opened(write_port(tmp_path / "m", WEIGHTS, "RwkvForCausalLM", hidden_act="relu2"))


# ------------------------------------------------------------------------- safetensors under official names


PLAIN = {
    "as published": rows,
    "flat": dict,
    "transposed": lambda tensors: rows(with_low_rank_transposed(tensors)),
    "transposed and flat": with_low_rank_transposed,
}


@pytest.mark.parametrize("suffix", [".st", ".safetensors"])
@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32"])
@pytest.mark.parametrize("form", PLAIN)
def test_official_names_in_both_orientations(tmp_path, form, dtype, suffix):
    path = write_safetensors(tmp_path / f"x{suffix}", PLAIN[form](WEIGHTS), dtype)
    checkpoint = opened(path)
    assert (checkpoint.format, checkpoint.dtype, checkpoint.path) == ("st", dtype, path)
    assert opened(tmp_path).format == "st"


def test_the_official_library_writes_what_is_read(tmp_path):
    save_file(
        {name: np.ascontiguousarray(tensor) for name, tensor in with_low_rank_transposed(WEIGHTS).items()},
        tmp_path / "x.st",
    )
    opened(tmp_path / "x.st")


@pytest.mark.parametrize("name", SHAPES)
def test_st_files_of_all_shapes(tmp_path, name):
    weights = random_weights(SHAPES[name], seed=6)
    assert opened(write_st(tmp_path / "x.st", weights), weights).config == SHAPES[name]


@pytest.mark.parametrize("shape", [(2, 64), (128,), (1, 1, 128), (1, 1, 2, 64), (1, 128)])
def test_shapes_of_r_k(tmp_path, shape):
    named = {name: t.reshape(shape) if name.endswith("r_k") else t for name, t in WEIGHTS.items()}
    opened(write_safetensors(tmp_path / "x.st", named))
    opened(write_torch(tmp_path / "x.pth", named))


@pytest.mark.parametrize("shape", [(64,), (1, 64), (1, 1, 64), (1, 1, 1, 64)])
def test_shapes_of_r_k_with_one_head(tmp_path, shape):
    weights = random_weights(SHAPES["one-layer"])
    named = {name: t.reshape(shape) if name.endswith("r_k") else t for name, t in weights.items()}
    opened(write_safetensors(tmp_path / "x.st", named), weights)


@pytest.mark.parametrize("form", ["as published", "transposed"])
def test_square_matrices_do_not_show_their_orientation(tmp_path, form):
    path = write_safetensors(tmp_path / "x.st", PLAIN[form](SQUARE))
    with pytest.raises(CheckpointError, match=r"which way round .* square: use the .pth"):
        open_checkpoint(path)


def test_square_matrices_whose_names_show_their_orientation(tmp_path):
    opened(write_pth(tmp_path / "x.pth", SQUARE), SQUARE)
    opened(write_hf(tmp_path / "fla", SQUARE), SQUARE)
    opened(write_port(tmp_path / "linear", SQUARE, "Rwkv7ForCausalLM, linear layers"), SQUARE)


@pytest.mark.parametrize("form", ["as published", "transposed"])
def test_one_pair_decides_for_square_ones(tmp_path, form):
    config = ModelConfig(2, 64, 128, 20, rank_w=64, rank_a=64, rank_v=64, rank_g=63)
    weights = random_weights(config)
    opened(write_safetensors(tmp_path / "x.st", PLAIN[form](weights)), weights)


def test_both_orientations_in_one_file_are_refused(tmp_path):
    mixed = WEIGHTS | {"blocks.1.att.a1": WEIGHTS["blocks.1.att.a1"].T}
    with pytest.raises(
        CheckpointError, match=r"blocks.0.att.w1 as \[128, 32\] but blocks.1.att.a1 as \[24, 128\]"
    ):
        open_checkpoint(write_safetensors(tmp_path / "x.st", mixed))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("blocks.1.att.w1", (127, 32), r"blocks.1.att.w1 has the shape \[127, 32\]; the others demand \[128, 32\]"),
        ("blocks.1.att.w1", (128, 31), r"blocks.1.att.w1 has the shape \[128, 31\]; the others demand \[128, 32\]"),
        ("blocks.0.att.w1", (7,), r"blocks.0.att.w1 has the shape \[7\]; it should have 2 dimensions"),
        ("blocks.0.att.r_k", (3, 64), "3 heads of 64"),
        ("blocks.2.att.r_k", (127,), r"blocks.2.att.r_k has the shape \[127\]"),
        ("blocks.1.att.x_r", (2, 1, 128), r"blocks.1.att.x_r has the shape \[2, 1, 128\]"),
        ("emb.weight", (1, 300, 64), r"2 heads of 64 .* do not make 64 channels"),
    ],
)  # fmt: skip
def test_wrong_shapes_are_named(tmp_path, name, shape, message):
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(write_safetensors(tmp_path / "x.st", WEIGHTS | {name: np.ones(shape, np.float32)}))


def test_a_folder_with_several_models_is_not_guessed(tmp_path):
    write_st(tmp_path / "a.st", WEIGHTS)
    write_pth(tmp_path / "b.pth", WEIGHTS)
    with pytest.raises(CheckpointError, match="contains 2 models: name one of its files"):
        open_checkpoint(tmp_path)


def test_two_names_of_ports_for_one_tensor_are_refused(tmp_path):
    twice = WEIGHTS | {"model.layers.1.mlp.up_proj.weight": WEIGHTS["blocks.1.ffn.key.weight"]}
    with pytest.raises(CheckpointError, match=r"two tensors for 'blocks.1.ffn.key.weight'"):
        open_checkpoint(write_safetensors(tmp_path / "x.safetensors", twice))


@pytest.mark.parametrize(
    "name",
    [
        "",
        "model.",
        "model",
        "module.optimizer",
        "models.emb.weight",
        "model.blocks.0",
        "model.blocks.².att.w1",
        "model.layers.12345.linear_attn.w1",
        "layers.0.linear_attn.r_proj.bias",
        "layers.0.mlp.r_proj.weight",
        "blocks.0.att.x_r.weight",
    ],
)
def test_other_names_stay(name):
    assert official_name(name) == name


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused(tmp_path, data):
    path = write_st(tmp_path / "x.st", random_weights(SHAPES["one-layer"]))
    content = bytearray(path.read_bytes())
    header = int.from_bytes(content[:8], "little")
    for place in data.draw(st.lists(st.integers(0, header + 8), max_size=3)):
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        checkpoint = open_checkpoint(path)
        for name, shape in checkpoint.config.tensor_shapes().items():
            assert checkpoint.tensor(name).shape == shape
    except RwkvError:
        pass


# ---------------------------------------------------------------------------------------------- .pth of trainers


@pytest.mark.parametrize("prefix", ["model.", "module.", "_orig_mod.", "rwkv7.", "module._orig_mod."])
def test_one_prefix_is_removed(tmp_path, prefix):
    opened(write_torch(tmp_path / "x.pth", {prefix + name: tensor for name, tensor in rows(WEIGHTS).items()}))
    opened(write_safetensors(tmp_path / "x.st", {prefix + name: t for name, t in WEIGHTS.items()}))


def trainers_pickle(key, tensors):
    """A checkpoint as trainers write it: the weights in an entry, beside numbers, lists and optimizer states."""
    nested = state_dict_pickle(tensors, "bf16")[2:-1]
    moment = pickled_tensor("0", (2,), "bf16", numel=next(iter(tensors.values())).size)
    numbers = b"}" + pickled_int(0) + b"}" + pickled_text("exp_avg") + moment + b"ss"
    groups = b"](}" + pickled_text("lr") + b"G?PbM\xd2\xf1\xa9\xfc" + b"s" + b"]" + pickled_int(0) + b"ae"
    entries = (
        pickled_text("epoch") + pickled_int(3),
        pickled_text(key) + nested,
        pickled_text("optimizer") + b"}(" + pickled_text("state") + numbers,
        pickled_text("param_groups") + groups + b"u",
        pickled_text("scheduler") + b"N",
    )
    return b"\x80\x02}(" + b"".join(entries) + b"u."


@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_weights_inside_a_trainers_checkpoint(tmp_path, key, prefix):
    tensors = {prefix + name: tensor for name, tensor in rows(WEIGHTS).items()}
    storages = [to_bf16(tensor).tobytes() for tensor in tensors.values()]
    opened(write_torch_archive(tmp_path / "x.pth", trainers_pickle(key, tensors), storages))


def test_a_trainers_checkpoint_without_weights_is_refused(tmp_path):
    pickled = b"\x80\x02}" + pickled_text("epoch") + pickled_int(3) + b"s."
    with pytest.raises(CheckpointError, match="is not a flat dict of tensors: 'epoch' is something else"):
        open_checkpoint(write_torch_archive(tmp_path / "x.pth", pickled))


def test_a_pth_with_the_names_of_a_port(tmp_path):
    rename = PORTS["Rwkv7ForCausalLM, linear layers"][0]
    opened(write_torch(tmp_path / "x.pth", rename(WEIGHTS)))
