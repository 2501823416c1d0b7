import json

import numpy as np
import pytest
from helpers.writers import TINY, hf_tensors, random_weights, write_hf, write_safetensors, write_torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rwkv_cli.config import ModelConfig
from rwkv_cli.errors import CheckpointError, RwkvError, UnsupportedModelError
from rwkv_cli.files.checkpoints import open_checkpoint

WEIGHTS = random_weights(TINY)


def same_tensors(path, weights=WEIGHTS):
    checkpoint = open_checkpoint(path)
    for name, tensor in weights.items():
        np.testing.assert_array_equal(checkpoint.tensor(name), tensor, err_msg=name)
    return checkpoint


def test_shards_are_joined(tmp_path):
    checkpoint = same_tensors(write_hf(tmp_path / "m", WEIGHTS, shards=3))
    assert [file.name for file in checkpoint.files] == [
        f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)
    ]


def test_a_single_file_is_a_model_too(tmp_path):
    folder = write_hf(tmp_path / "m", WEIGHTS, fused=True)
    assert same_tensors(folder / "model.safetensors").format == "hf"
    (folder / "config.json").unlink()
    same_tensors(folder / "model.safetensors")


def test_a_single_file_of_another_name_is_found(tmp_path):
    folder = write_hf(tmp_path / "m", WEIGHTS)
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    same_tensors(folder)


def test_names_without_the_prefix_and_layer_0s_unused_tensors(tmp_path):
    folder = write_hf(tmp_path / "m", WEIGHTS)
    named = {name.removeprefix("model."): tensor for name, tensor in hf_tensors(WEIGHTS).items()}
    for part in ("0.weight", "2.weight", "2.bias"):
        named[f"layers.0.attn.v_lora.lora.{part}"] = named[f"layers.1.attn.v_lora.lora.{part}"]
    named["layers.1.ffn.x_k"] = named["layers.1.ffn.x_k"].reshape(1, 1, -1)
    named["layers.1.attn.x_r"] = named["layers.1.attn.x_r"].reshape(-1)
    write_safetensors(folder / "model.safetensors", named)
    same_tensors(folder)


def test_four_dimensional_fused_shifts(tmp_path):
    folder = write_hf(tmp_path / "m", WEIGHTS)
    named = hf_tensors(WEIGHTS, fused=True)
    named = {n: t.reshape(6, 1, 1, -1) if n.endswith("x_x") else t for n, t in named.items()}
    write_safetensors(folder / "model.safetensors", named)
    same_tensors(folder)
    named["model.layers.0.attn.x_x"] = named["model.layers.0.attn.x_x"][:5]
    write_safetensors(folder / "model.safetensors", named)
    with pytest.raises(CheckpointError, match="six token shifts"):
        open_checkpoint(folder)


def test_tied_embeddings(tmp_path):
    folder = write_hf(tmp_path / "m", WEIGHTS, tie_word_embeddings=True)
    same_tensors(folder, WEIGHTS | {"head.weight": WEIGHTS["emb.weight"]})


def test_pytorch_pickles_in_this_layout(tmp_path):
    folder = write_hf(tmp_path / "m", WEIGHTS)
    (folder / "model.safetensors").unlink()
    write_torch(folder / "pytorch_model.bin", hf_tensors(WEIGHTS))
    same_tensors(folder)


def test_a_missing_shard_is_named(tmp_path):
    folder = write_hf(tmp_path / "m", WEIGHTS, shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=r"model-00002-of-00003.safetensors is missing in .*: get it too"
    ):
        open_checkpoint(folder)


def test_a_missing_index_is_named(tmp_path):
    folder = write_hf(tmp_path / "m", WEIGHTS, shards=3)
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(CheckpointError, match=r"3 safetensors files but no model.safetensors.index.json"):
        open_checkpoint(folder)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", "..\\x", "", ".."])
def test_an_index_cannot_lead_out_of_its_folder(tmp_path, name):
    folder = write_hf(tmp_path / "m", WEIGHTS, shards=2)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match=r"outside its folder|is missing"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"weight_map": [1]}', '{"weight_map": {"a": 1}}', "{", "[" * 10**5]
)
def test_a_damaged_index_is_refused(tmp_path, content):
    folder = write_hf(tmp_path / "m", WEIGHTS, shards=2)
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"index.json"):
        open_checkpoint(folder)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    folder = write_hf(tmp_path / "m", WEIGHTS, shards=2)
    write_safetensors(folder / "model-00001-of-00002.safetensors", hf_tensors(WEIGHTS))
    with pytest.raises(CheckpointError, match="repeats the tensor"):
        open_checkpoint(folder)


def test_two_names_for_one_tensor_are_refused(tmp_path):
    folder = write_hf(tmp_path / "m", WEIGHTS)
    named = hf_tensors(WEIGHTS)
    write_safetensors(
        folder / "model.safetensors", named | {"embeddings.weight": named["model.embeddings.weight"]}
    )
    with pytest.raises(CheckpointError, match=r"two tensors for 'emb.weight'"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"norm_eps": 1e-6}, UnsupportedModelError, "sets norm_eps to 1e-06; RWKV-7 models have 1e-05"),
        ({"hidden_act": "relu"}, UnsupportedModelError, "sets hidden_act"),
        ({"norm_first": False}, UnsupportedModelError, "sets norm_first"),
        ({"hidden_size": 64}, CheckpointError, "sets hidden_size to 64, but the tensors say 128"),
        ({"num_hidden_layers": 24}, CheckpointError, "sets num_hidden_layers to 24"),
        ({"model_type": "rwkv6"}, UnsupportedModelError, r"is an RWKV-6 model \(Finch\)"),
        ({"model_type": "mamba"}, UnsupportedModelError, "is a model of the type mamba"),
        ({"model_type": ["x"] * 99}, UnsupportedModelError, "is a model of the type"),
    ],
)
def test_a_config_of_another_model_is_refused(tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        open_checkpoint(write_hf(tmp_path / "m", WEIGHTS, **changes))


def test_settings_that_are_null_are_read_from_the_tensors(tmp_path):
    same_tensors(write_hf(tmp_path / "m", WEIGHTS, intermediate_size=None))


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"{"])
def test_a_damaged_config_is_refused(tmp_path, content):
    folder = write_hf(tmp_path / "m", WEIGHTS)
    (folder / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config.json is not a JSON object"):
        open_checkpoint(folder)


def test_truncated_and_damaged_weights(tmp_path):
    folder = write_hf(tmp_path / "m", WEIGHTS)
    content = (folder / "model.safetensors").read_bytes()
    for part in (content[:-1], content[:100], content[:4], b""):
        (folder / "model.safetensors").write_bytes(part)
        with pytest.raises(CheckpointError, match=r"model.safetensors cannot be read: .*; get it again"):
            open_checkpoint(folder)


def test_integer_weights_are_refused(tmp_path):
    folder = write_hf(tmp_path / "m", WEIGHTS)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes().replace(b'"BF16"', b' "I16"'))
    with pytest.raises(CheckpointError, match="in the type i16, which is not a type of weights"):
        open_checkpoint(folder)


SMALL = ModelConfig(n_layer=1, n_embd=64, n_ffn=64, vocab_size=8, rank_w=4, rank_a=4, rank_v=0, rank_g=4)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused(tmp_path, data):
    file = write_hf(tmp_path / "m", random_weights(SMALL)) / "model.safetensors"
    content = bytearray(file.read_bytes())
    header = int.from_bytes(content[:8], "little")
    for place in data.draw(st.lists(st.integers(0, header + 8), max_size=3)):
        content[place] = data.draw(st.integers(0, 255))
    file.write_bytes(content[: data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))])
    try:
        checkpoint = open_checkpoint(tmp_path / "m")
        for name, shape in checkpoint.config.tensor_shapes().items():
            assert checkpoint.tensor(name).shape == shape
    except RwkvError:
        pass
