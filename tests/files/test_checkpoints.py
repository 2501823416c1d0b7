import hashlib
import json
import struct
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from helpers.ports import write_port, write_st
from helpers.writers import (
    TINY,
    hf_tensors,
    random_weights,
    write_gguf,
    write_hf,
    write_pth,
    write_safetensors,
    write_torch,
)

from rwkv_cli.config import ModelConfig
from rwkv_cli.errors import CheckpointError, UnsupportedModelError
from rwkv_cli.files.checkpoints import open_checkpoint
from rwkv_cli.text.tokenizer import TokenizerSpec

WEIGHTS = random_weights(TINY)
SMALL = ModelConfig(n_layer=1, n_embd=64, n_ffn=64, vocab_size=8, rank_w=4, rank_a=4, rank_v=0, rank_g=4)

WRITERS = {
    "pth": lambda folder: write_pth(folder / "x.pth", WEIGHTS),
    "pth-flat-f16": lambda folder: write_pth(folder / "x.pth", WEIGHTS, "f16", vectors="[C]"),
    "pth-f32-layer-0": lambda folder: write_pth(folder / "x.pth", WEIGHTS, "f32", with_layer0_v=True),
    "pth-f64": lambda folder: write_pth(folder / "x.pth", WEIGHTS, "f64"),
    "hf": lambda folder: write_hf(folder / "x", WEIGHTS),
    "hf-fused-f16": lambda folder: write_hf(folder / "x", WEIGHTS, fused=True, dtype="f16"),
    "hf-shards-f32": lambda folder: write_hf(folder / "x", WEIGHTS, shards=4, dtype="f32"),
    "hf-port": lambda folder: write_port(folder / "x", WEIGHTS, "RwkvForCausalLM"),
    "st": lambda folder: write_st(folder / "x.st", WEIGHTS),
    "st-plain-bf16": lambda folder: write_safetensors(folder / "x.safetensors", WEIGHTS),
    "gguf-f32": lambda folder: write_gguf(folder / "x.gguf", WEIGHTS),
    "gguf-f16": lambda folder: write_gguf(folder / "x.gguf", WEIGHTS, "F16"),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_every_format_gives_the_same_model(tmp_path, writer):
    path = WRITERS[writer](tmp_path)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.path == path
        assert checkpoint.format == writer.partition("-")[0]
        assert checkpoint.config == TINY
        assert checkpoint.tokenizer is None
        for name, tensor in WEIGHTS.items():
            found = checkpoint.tensor(name)
            assert (found.dtype, found.shape) == (np.float32, tensor.shape)
            np.testing.assert_array_equal(found, tensor, err_msg=name)


def test_the_digest_covers_the_files_in_order(tmp_path):
    checkpoint = open_checkpoint(write_pth(tmp_path / "x.pth", WEIGHTS))
    assert checkpoint.sha256() == hashlib.sha256((tmp_path / "x.pth").read_bytes()).hexdigest()
    shards = open_checkpoint(write_hf(tmp_path / "m", WEIGHTS, shards=2))
    content = b"".join(path.read_bytes() for path in shards.files)
    assert shards.sha256() == hashlib.sha256(content).hexdigest()


def test_the_tokenizer_beside_the_model(tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(b'{"some": "tokenizer"}')
    expected = TokenizerSpec("tokenizer.json", b'{"some": "tokenizer"}')
    assert open_checkpoint(write_pth(tmp_path / "x.pth", WEIGHTS)).tokenizer == expected
    assert open_checkpoint(write_hf(tmp_path, WEIGHTS)).tokenizer == expected


def test_a_model_of_the_worlds_size_has_its_vocabulary(tmp_path):
    config = ModelConfig(
        n_layer=1, n_embd=64, n_ffn=64, vocab_size=65_536, rank_w=4, rank_a=4, rank_v=0, rank_g=4
    )
    path = write_pth(tmp_path / "x.pth", random_weights(config))
    assert open_checkpoint(path).tokenizer == TokenizerSpec("world")
    own = b'{"model": {"type": "BPE"}}'
    (tmp_path / "tokenizer.json").write_bytes(own)
    assert open_checkpoint(path).tokenizer == TokenizerSpec(
        "tokenizer.json", own
    )  # unless it has one of its own


def test_a_directory_with_one_file(tmp_path):
    write_pth(tmp_path / "x.pth", WEIGHTS)
    assert open_checkpoint(tmp_path).path == tmp_path / "x.pth"
    write_gguf(tmp_path / "x.gguf", WEIGHTS)
    with pytest.raises(CheckpointError, match="contains 2 models: name one of its files"):
        open_checkpoint(tmp_path)


def test_only_what_is_asked_for_is_read(tmp_path):
    config = ModelConfig(
        n_layer=1, n_embd=64, n_ffn=64, vocab_size=40_000, rank_w=4, rank_a=4, rank_v=0, rank_g=4
    )
    weights = random_weights(config)
    paths = [
        write_pth(tmp_path / "x.pth", weights),
        write_hf(tmp_path / "m", weights),
        write_gguf(tmp_path / "x.gguf", weights, "Q8_0"),
    ]
    import gguf  # noqa: F401  # its own tables are not what is measured

    for path in paths:
        tracemalloc.start()
        checkpoint = open_checkpoint(path)
        checkpoint.tensor("blocks.0.att.key.weight")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2_000_000 < weights["emb.weight"].nbytes, path


def test_a_sparse_file_of_many_gigabytes_opens_at_once(tmp_path):
    config = ModelConfig(
        n_layer=1, n_embd=64, n_ffn=64, vocab_size=2**24, rank_w=4, rank_a=4, rank_v=0, rank_g=4
    )
    shapes = {name: np.broadcast_to(np.float32(0), shape) for name, shape in config.tensor_shapes().items()}
    header, end = {}, 0
    for name, array in hf_tensors(shapes).items():
        header[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": [end, end + array.nbytes]}
        end += array.nbytes
    text = json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    assert end > 8e9
    checkpoint = open_checkpoint(path)
    assert checkpoint.config == config
    assert not checkpoint.tensor("blocks.0.ffn.key.weight").any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["bf16", "f32", "f64"])
def test_a_weight_that_is_no_number_is_refused(tmp_path, bad, dtype):
    weights = random_weights(SMALL)
    weights["blocks.0.att.w0"][3] = bad
    checkpoint = open_checkpoint(write_pth(tmp_path / "x.pth", weights, dtype))
    checkpoint.tensor("blocks.0.att.a0")
    with pytest.raises(CheckpointError, match=r"NaN or an infinity in the tensor blocks.0.att.w0"):
        checkpoint.tensor("blocks.0.att.w0")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("optimizer.step", "'optimizer.step', which no RWKV-7 model has"),
        ("blocks.0.att.time_state", "'blocks.0.att.time_state', which no RWKV-7 model has"),
        ("blocks.99999999.ln1.weight", "which no RWKV-7 model has"),
        ("blocks.².ln1.weight", "which no RWKV-7 model has"),
        ("blocks.9999.ln1.weight", "blocks.1.ln1.weight is missing"),
    ],
)
def test_unknown_tensors_are_never_ignored(tmp_path, extra, message):
    weights = random_weights(SMALL) | {extra: np.ones(3, np.float32)}
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(write_torch(tmp_path / "x.pth", weights))


def test_missing_and_misshapen_tensors_are_named(tmp_path):
    weights = random_weights(SMALL)
    for name in ("emb.weight", "blocks.0.att.r_k", "blocks.0.ffn.value.weight", "ln_out.bias"):
        rest = {key: tensor for key, tensor in weights.items() if key != name}
        with pytest.raises(CheckpointError, match=f"{name} is missing|not a recognised model file"):
            open_checkpoint(write_torch(tmp_path / "x.pth", rest))
        with pytest.raises(CheckpointError, match=r"shape|make"):
            open_checkpoint(write_torch(tmp_path / "x.pth", weights | {name: np.ones((1, 7), np.float32)}))


ATTENTION = "model.layers.0.self_attn.q_proj.weight"
FOREIGN = {
    "is an RWKV-4 model (Raven)": ["blocks.0.att.time_decay", "blocks.0.att.time_first", "emb.weight"],
    "is an RWKV-5 model (Eagle)": [
        "blocks.0.att.time_decay",
        "blocks.0.att.ln_x.weight",
        "blocks.0.att.gate.weight",
    ],
    "is an RWKV-6 model (Finch)": [
        "blocks.0.att.time_maa_x",
        "blocks.0.att.time_decay",
        "blocks.0.att.ln_x.weight",
    ],
    "is an RWKV-7a or RWKV-7b model (DeepEmbed)": ["blocks.0.att.r_k", "blocks.0.ffn.s_emb.weight"],
    "is a hybrid of RWKV-7 and a transformer": [
        "model.layers.0.attn.r_k",
        "model.layers.1.attn.q_proj.weight",
    ],
    "is a transformer": ["transformer.h.0.attn.c_attn.weight"],
    "is a tuned initial state, not a model": ["blocks.0.att.time_state"],
    "is a LoRA adapter, not a model": ["blocks.0.att.receptance.lora_A"],
    "is not a recognised model file": ["conv1.weight", "fc.bias"],
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_other_models_are_refused_by_name(tmp_path, kind):
    tensors = {name: np.ones(4, np.float32) for name in FOREIGN[kind]}
    with pytest.raises(UnsupportedModelError) as caught:
        open_checkpoint(write_torch(tmp_path / "x.pth", tensors))
    assert f"x.pth {kind}" in str(caught.value)


def test_a_published_7b_file_is_not_taken_for_a_hybrid(tmp_path):
    names = ["blocks.0.att.r_k", "blocks.0.qkv.qq.weight", "blocks.0.ffn.key.weight"]
    with pytest.raises(UnsupportedModelError, match="DeepEmbed"):
        open_checkpoint(write_torch(tmp_path / "x.pth", {name: np.ones(4, np.float32) for name in names}))


def test_a_transformers_directory_is_refused_by_its_own_name(tmp_path):
    folder = write_hf(tmp_path / "m", WEIGHTS, model_type="llama")
    (folder / "model.safetensors").unlink()
    write_torch(folder / "pytorch_model.bin", {ATTENTION: np.ones(4, np.float32)})
    with pytest.raises(
        UnsupportedModelError, match=r"is a transformer \(llama\); rwkv runs RWKV-7 models only"
    ):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", "before 1.6: save it again with torch >= 1.6"),
        (b"hello, this is a text", "is not a recognised model file"),
        (b"PK", "is not a recognised model file"),
        (b"PK\x03\x04", "is truncated"),
        (b"PK\x05\x06" + bytes(18), "is a zip archive, but not a PyTorch checkpoint"),
    ],
)
def test_files_of_other_kinds_are_refused(tmp_path, content, message):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path / "x.pth")


def test_missing_and_empty_places_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"there is no file .*missing.pth"):
        open_checkpoint(tmp_path / "missing.pth")
    with pytest.raises(CheckpointError, match=r"does not contain a model: name a .pth"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "rwkv7"}')
    with pytest.raises(CheckpointError, match=r"no weights: get its model.safetensors too"):
        open_checkpoint(tmp_path)


def test_an_unreadable_file_names_the_reason(tmp_path, monkeypatch):
    path = write_pth(tmp_path / "x.pth", random_weights(SMALL))

    def denied(*_arguments, **_options):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(type(path), "open", denied)
    with pytest.raises(CheckpointError, match=r"cannot read .*x.pth: permission denied"):
        open_checkpoint(path)


def test_the_package_is_cheap_to_import():
    code = "import sys, rwkv_cli.files.checkpoints; assert not {'gguf', 'torch', 'numba'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'4d' * 32}\nsize 381977600\n"


@pytest.mark.parametrize("name", ["m.pth", "m.safetensors", "m.gguf", "m.st", "m"])
def test_a_pointer_of_git_lfs_is_called_one(tmp_path, name):
    (tmp_path / name).write_text(POINTER)
    with pytest.raises(
        CheckpointError, match="is only a pointer of Git LFS: get the file itself with `git lfs pull`"
    ):
        open_checkpoint(tmp_path / name)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_pointer_in_a_folder_is_called_one(tmp_path, name):
    folder = write_hf(tmp_path / "model", WEIGHTS)
    (folder / name).write_text(POINTER)
    with pytest.raises(CheckpointError, match=rf"{name} is only a pointer of Git LFS"):
        open_checkpoint(folder)


def test_types_that_cannot_be_read_are_to_be_converted(tmp_path):
    header = b'{"emb.weight":{"dtype":"F8_E4M3","shape":[8],"data_offsets":[0,8]}}'
    (tmp_path / "m.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(CheckpointError, match=r"'F8_E4M3'; convert it to bf16 first$"):
        open_checkpoint(tmp_path / "m.safetensors")
