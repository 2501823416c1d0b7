"""LoRA adapters: what is merged is what the formula says, and what does not fit is refused."""

import hashlib
import json
import re

import numpy as np
import pytest
from helpers.models import Weights
from helpers.writers import TINY, random_weights, write_pth, write_safetensors, write_torch

from rwkv_cli.convert.conversion import Source
from rwkv_cli.convert.lora import Merged
from rwkv_cli.errors import CheckpointError, UsageError
from rwkv_cli.files.model_file import ModelFile

WEIGHTS = random_weights(TINY, seed=7)
RANK, ALPHA = 4, 8.0
ADAPTED = ("blocks.0.att.receptance", "blocks.1.ffn.key", "blocks.2.ffn.value", "head")


def pairs(names=ADAPTED, a=".lora_A", b=".lora_B", rank=RANK):
    rng = np.random.default_rng(1)
    adapter = {}
    for name in names:
        n_out, n_in = WEIGHTS[f"{name}.weight"].shape
        adapter[name + a] = rng.standard_normal((rank, n_in)).astype(np.float32)
        adapter[name + b] = rng.standard_normal((n_out, rank)).astype(np.float32)
    return adapter


def expected(name, adapter, a=".lora_A", b=".lora_B", rank=RANK):
    return WEIGHTS[f"{name}.weight"] + ALPHA / rank * adapter[name + b] @ adapter[name + a]


def merged(path, alpha=ALPHA):
    return Merged(Weights(WEIGHTS), path, alpha)


def test_the_form_of_rwkv_peft(tmp_path):
    adapter = pairs()
    model = merged(write_torch(tmp_path / "lora.pth", adapter, "f32"))
    assert model.merged == 4
    for name in TINY.tensor_shapes():
        base = name.removesuffix(".weight")
        wanted = expected(base, adapter) if base in ADAPTED else WEIGHTS[name]
        np.testing.assert_allclose(model.tensor(name), wanted, atol=1e-5)


@pytest.mark.parametrize("middle", ["", ".default"])
def test_the_form_of_peft(tmp_path, middle):
    a, b = f".lora_A{middle}.weight", f".lora_B{middle}.weight"
    adapter = pairs(ADAPTED[:1], a, b)
    prefix = "base_model.model.model.layers.0.attn.r_proj"
    named = {name.replace("blocks.0.att.receptance", prefix): value for name, value in adapter.items()}
    model = merged(write_safetensors(tmp_path / "adapter_model.safetensors", named, "f32"))
    np.testing.assert_allclose(
        model.tensor("blocks.0.att.receptance.weight"), expected(ADAPTED[0], adapter, a, b), atol=1e-5
    )


def test_low_rank_matrices_of_flash_linear_attention_are_turned(tmp_path):
    rng = np.random.default_rng(2)
    w1 = WEIGHTS["blocks.1.att.w1"]  # [C, D]; there it is a linear layer [D, C]
    A = rng.standard_normal((2, w1.shape[0])).astype(np.float32)
    B = rng.standard_normal((w1.shape[1], 2)).astype(np.float32)
    name = "base_model.model.model.layers.1.attn.w_lora.lora.0"
    model = merged(
        write_torch(tmp_path / "x.pth", {f"{name}.lora_A.weight": A, f"{name}.lora_B.weight": B}, "f32")
    )
    np.testing.assert_allclose(model.tensor("blocks.1.att.w1"), w1 + (ALPHA / 2 * B @ A).T, atol=1e-5)


def test_whole_tensors_take_the_place_of_the_models(tmp_path):
    adapter = pairs(ADAPTED[:1]) | {
        "blocks.1.ln1.weight": np.full(128, 3, np.float32),
        "blocks.0.att.x_r": np.full((1, 1, 128), 0.25, np.float32),
    }
    model = merged(write_torch(tmp_path / "x.pth", adapter, "f32"))
    np.testing.assert_array_equal(model.tensor("blocks.1.ln1.weight"), np.full(128, 3))
    np.testing.assert_array_equal(model.tensor("blocks.0.att.x_r"), np.full(128, 0.25))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a: a.pop("head.lora_A"), "only one of lora_A and lora_B for head.weight"),
        (
            lambda a: a.update({"head.lora_A": np.ones((4, 64), np.float32)}),
            "does not fit the model: it adapts head",
        ),
        (lambda a: a.update({"head.lora_A": np.ones((3, 128), np.float32)}), "does not fit the model"),
        (lambda a: a.update({"head.lora_A": np.ones(128, np.float32)}), "does not fit the model"),
        (
            lambda a: a.update({"blocks.9.att.key.lora_A": np.ones((4, 128), np.float32)}),
            "a matrix that this model does not have",
        ),
        (
            lambda a: a.update({"blocks.0.ln1.lora_A": np.ones((4, 128), np.float32)}),
            "a matrix that this model does not have",
        ),
        (lambda a: a.update({"other": np.ones(3, np.float32)}), "this model does not have"),
        (lambda a: a.update({"blocks.0.ln1.weight": np.ones(3, np.float32)}), "this model does not have"),
        (
            lambda a: a.update({"blocks.0.att.time_state": np.ones((2, 64, 64), np.float32)}),
            "this model does not have",
        ),
        (lambda a: a.update({"head.weight": WEIGHTS["head.weight"]}), "both adapts and replaces head.weight"),
        (
            lambda a: a.update({"head.weight.lora_A": np.ones((4, 128), np.float32)}),
            "adapts head.weight twice",
        ),
    ],
)
def test_what_does_not_fit(tmp_path, change, said):
    adapter = pairs()
    change(adapter)
    with pytest.raises(CheckpointError, match=said):
        merged(write_torch(tmp_path / "x.pth", adapter, "f32"))


def test_files_that_are_no_adapter(tmp_path):
    with pytest.raises(CheckpointError, match="is not a LoRA adapter"):
        merged(write_torch(tmp_path / "x.pth", {"blocks.0.ln1.weight": np.ones(128, np.float32)}))
    (tmp_path / "text").write_text("nothing of the kind")
    with pytest.raises(CheckpointError, match=r"neither a .pth or .bin nor a .safetensors"):
        merged(tmp_path / "text")
    with pytest.raises(CheckpointError, match="no such file"):
        merged(tmp_path / "none")


def test_numbers_that_cannot_be(tmp_path):
    path = write_torch(tmp_path / "x.pth", pairs(), "f32")
    for alpha in (0, float("nan"), float("inf"), 1e30):
        with pytest.raises(UsageError, match="lora_alpha"):
            merged(path, alpha)
    adapter = pairs()
    adapter["head.lora_B"][0, 0] = np.nan
    with pytest.raises(CheckpointError, match=r"leads to a NaN or an infinity in the tensor head.weight"):
        merged(write_torch(tmp_path / "y.pth", adapter, "f32")).tensor("head.weight")


def test_the_command(rwkv, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_pth(tmp_path / "base.pth", WEIGHTS)
    adapter = pairs()
    write_torch(tmp_path / "lora.pth", adapter, "f32")
    result = rwkv("quantize", "base.pth", "out", "--type", "fp32", "--lora", "lora.pth", "--lora-alpha", "8")
    assert result.code == 0
    model = ModelFile(tmp_path / "out")
    np.testing.assert_allclose(model.tensor("head.weight"), expected("head", adapter), atol=1e-5)
    assert model.info.source["lora"] == "lora.pth"
    assert rwkv("quantize", "base.pth", "plain", "--type", "fp32").code == 0
    plain = ModelFile(tmp_path / "plain").info.source
    assert plain["sha256"] == model.info.source["base_sha256"] != model.info.source["sha256"]
    assert "--lora-alpha is missing" in rwkv("quantize", "base.pth", "o", "--lora", "lora.pth").sentence
    assert (
        "is or holds"
        not in rwkv(
            "quantize", "base.pth", "lora.pth", "--force", "--lora", "lora.pth", "--lora-alpha", "8"
        ).sentence
    )
    model_file = rwkv("quantize", "out", "again", "--type", "fp32", "--lora", "lora.pth", "--lora-alpha", "8")
    assert model_file.code == 0


def folder(tmp_path, adapter, **settings):
    """A folder as the package peft writes it."""
    write_safetensors(tmp_path / "adapter_model.safetensors", adapter, "f32")
    fields = {"peft_type": "LORA", "r": RANK, "lora_alpha": 8, "bias": "none"} | settings
    (tmp_path / "adapter_config.json").write_text(json.dumps(fields))
    return tmp_path


A, B = ".lora_A.weight", ".lora_B.weight"


def changed(model, adapter, name):
    """By what the product of the pair is multiplied before it is added."""
    product = adapter[name + B] @ adapter[name + A]
    delta = model.tensor(f"{name}.weight") - WEIGHTS[f"{name}.weight"]
    np.testing.assert_allclose(delta, delta.flat[0] / product.flat[0] * product, atol=1e-3)
    return float(np.vdot(delta, product) / np.vdot(product, product))


@pytest.mark.parametrize(
    ("settings", "scales"),
    [
        ({"lora_alpha": 32}, (8, 8, 8, 8)),
        ({"lora_alpha": 32, "use_rslora": True}, (16, 16, 16, 16)),
        ({"lora_alpha": 32, "alpha_pattern": {"att.receptance": 4, "head": 2.0}}, (1, 8, 8, 0.5)),
        ({"alpha_pattern": {r"blocks\.1\..*": 4, "ffn.value": 40}}, (2, 1, 10, 2)),
        ({"alpha_pattern": {"ffn.value": 40, r"blocks\.\d+\.ffn.*": 4}}, (2, 1, 10, 2)),
        ({"alpha_pattern": {"^blocks.1.ffn.key": 4, "^ffn.value": 40, "key$": 20}}, (2, 1, 2, 2)),
        ({"alpha_pattern": {r"blocks\.(0|1)\..*\.(key|value)": 4}}, (2, 1, 2, 2)),
        ({"alpha_pattern": {"key|head": 4, "alue": 40}}, (2, 1, 2, 1)),
        (
            {"r": 8, "rank_pattern": dict.fromkeys(["receptance", "ffn.key", "value", "head"], 4)},
            (2, 2, 2, 2),
        ),
        ({"alpha_pattern": None, "rank_pattern": None, "init_lora_weights": "gaussian"}, (2, 2, 2, 2)),
    ],
)
def test_settings_of_peft_decide_the_scale(tmp_path, settings, scales):
    adapter = pairs(a=A, b=B)
    model = Merged(Weights(WEIGHTS), folder(tmp_path, adapter, **settings))
    assert [changed(model, adapter, name) for name in ADAPTED] == pytest.approx(scales, rel=1e-3)
    assert model.remark is None


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"r": 8}, "says rank 8 for 'blocks.0.att.receptance', but its lora_A and lora_B have 4"),
        ({"rank_pattern": {"ffn.key": 2}}, "says rank 2 for 'blocks.1.ffn.key'"),
        ({"use_dora": True}, "use_dora: DoRA"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"lora_bias": True}, "lora_bias"),
        ({"peft_type": "LOHA"}, "'LOHA': only LORA"),
        ({"init_lora_weights": "pissa"}, "'pissa', which changes the base model too"),
        ({"bias": "all"}, "says that biases were trained, but the adapter has none"),
        ({"bias": "some"}, "unknown bias"),
        ({"target_modules": ["receptance", "key", "value"]}, "does not have 'head' among its target_modules"),
        (
            {"target_modules": ["receptance", "key", "value", "head", "output"]},
            "'output' among its target_modules",
        ),
        ({"modules_to_save": ["ln1"]}, "'ln1' among its modules_to_save, but the adapter has no weights"),
        ({"modules_to_save": 3}, "not a list of names"),
        ({"lora_alpha": True}, "'True' in lora_alpha"),
        ({"lora_alpha": float("nan")}, "'nan' in lora_alpha"),
        ({"lora_alpha": 0}, "'0' in lora_alpha"),
        ({"r": 4.5}, "'4.5' in r"),
        ({"alpha_pattern": {"head": "9"}}, "'9' in alpha_pattern"),
        ({"alpha_pattern": [1]}, "not an object"),
        ({"alpha_pattern": {"(a*)*b": 1}}, "too complex"),
        ({"alpha_pattern": {".*.*.*.*x": 1}}, "too complex"),
        ({"alpha_pattern": {"(a|.)" * 30 + "x": 1}}, "too complex"),
        ({"alpha_pattern": {"(": 1}}, "too complex"),
        ({"use_rslora": "no"}, "use_rslora"),
    ],
)
def test_settings_that_cannot_be_followed(tmp_path, settings, said):
    path = folder(tmp_path, pairs(a=A, b=B), **settings)
    with pytest.raises(CheckpointError, match=re.escape(said)):
        Merged(Weights(WEIGHTS), path)


def test_settings_that_fit_the_file(tmp_path):
    adapter = pairs(a=A, b=B) | {"base_model.model.blocks.1.ln1.bias": np.full(128, 3, np.float32)}
    targets = ["receptance", "ffn.key", "value", "head", "q_proj"]  # the model has no q_proj
    path = folder(
        tmp_path, adapter, target_modules=targets, modules_to_save=["ln1", "classifier"], bias="all"
    )
    model = Merged(Weights(WEIGHTS), path)
    assert model.merged == 5
    np.testing.assert_array_equal(model.tensor("blocks.1.ln1.bias"), np.full(128, 3))


@pytest.mark.parametrize("content", ["", "[]", '{"r": 1' + "0" * 5000 + "}", "[" * 100_000])
def test_settings_that_are_damaged(tmp_path, content):
    path = folder(tmp_path, pairs(a=A, b=B))
    (path / "adapter_config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"adapter_config\.json"):
        Merged(Weights(WEIGHTS), path)


@pytest.mark.parametrize(
    "module",
    [
        "model.blocks.0.attention.receptance",
        "model.layers.0.linear_attn.r_proj",
        "_orig_mod.blocks.0.att.receptance",
        "rwkv7.layers.0.attn.r_proj.base_layer",
    ],
)
def test_every_layout_of_names(tmp_path, module):
    adapter = pairs(ADAPTED[:1], A, B)
    named = {
        f"base_model.model.{name.replace('blocks.0.att.receptance', module)}": value
        for name, value in adapter.items()
    }
    model = Merged(Weights(WEIGHTS), folder(tmp_path, named))
    assert changed(model, adapter, "blocks.0.att.receptance") == pytest.approx(2)


def test_an_adapter_of_the_embedding(tmp_path):
    rng = np.random.default_rng(3)
    n_vocab, n_embd = WEIGHTS["emb.weight"].shape
    down = rng.standard_normal((RANK, n_vocab)).astype(np.float32)
    up = rng.standard_normal((n_embd, RANK)).astype(np.float32)
    name = "base_model.model.model.embeddings.lora_embedding_"
    model = Merged(Weights(WEIGHTS), folder(tmp_path, {f"{name}A": down, f"{name}B": up}))
    np.testing.assert_allclose(
        model.tensor("emb.weight"), WEIGHTS["emb.weight"] + 2 * (up @ down).T, atol=1e-4
    )


def test_whole_matrices_are_taken_the_right_way_round(tmp_path):
    w1 = np.arange(WEIGHTS["blocks.1.att.w1"].size, dtype=np.float32).reshape(
        WEIGHTS["blocks.1.att.w1"].shape
    )
    for raw, stored in (
        ("blocks.1.att.w1", w1),
        ("model.layers.1.linear_attn.w1.weight", w1.T),
        ("model.layers.1.attn.w_lora.lora.0.modules_to_save.weight", w1.T),
    ):
        model = Merged(
            Weights(WEIGHTS), folder(tmp_path, pairs(a=A, b=B) | {raw: np.ascontiguousarray(stored)})
        )
        np.testing.assert_array_equal(model.tensor("blocks.1.att.w1"), w1)
    key = np.ascontiguousarray(WEIGHTS["blocks.0.ffn.key.weight"].T)
    with pytest.raises(CheckpointError, match="this model does not have"):
        Merged(Weights(WEIGHTS), folder(tmp_path, pairs(a=A, b=B) | {"blocks.0.ffn.key.weight": key}))


def test_which_file_of_a_folder(tmp_path):
    with pytest.raises(CheckpointError, match="has no adapter"):
        merged(tmp_path)
    write_torch(tmp_path / "one.pth", pairs(), "f32")
    assert merged(tmp_path).path == tmp_path / "one.pth"
    write_torch(tmp_path / "two.bin", pairs(), "f32")
    with pytest.raises(CheckpointError, match="2 files that could be the adapter"):
        merged(tmp_path)
    write_torch(tmp_path / "adapter_model.bin", pairs(), "f32")
    assert merged(tmp_path).path == tmp_path / "adapter_model.bin"


def test_the_command_reads_the_settings_and_tells_of_a_contradiction(rwkv, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_pth(tmp_path / "base.pth", WEIGHTS)
    (tmp_path / "lora").mkdir()
    adapter = pairs(a=A, b=B)
    folder(tmp_path / "lora", adapter, lora_alpha=32)
    quantize = ("quantize", "base.pth", "--force", "--type", "fp32", "--lora", "lora")
    assert "alpha" not in rwkv(*quantize, "out").err
    model = ModelFile(tmp_path / "out")
    assert changed(model, adapter, "head") == pytest.approx(8, rel=1e-3)
    assert model.info.source["lora_alpha"] == "32.0"
    settings = (tmp_path / "lora" / "adapter_config.json").read_bytes()
    source = model.info.source
    assert source["lora_config"] == hashlib.sha256(settings).hexdigest()
    parts = (source["base_sha256"], merged(tmp_path / "lora").sha256(), "32.0", source["lora_config"])
    assert source["sha256"] == hashlib.sha256(" ".join(parts).encode()).hexdigest()
    result = rwkv(*quantize, "out", "--lora-alpha", "16")
    assert result.code == 0
    assert "was trained with alpha 32; merging with 16, as you said" in " ".join(result.err.split())
    assert changed(ModelFile(tmp_path / "out"), adapter, "head") == pytest.approx(4, rel=1e-3)
    assert "as you said" not in rwkv(*quantize, "out", "--lora-alpha", "32").err
    assert "needs an adapter" in rwkv("quantize", "base.pth", "--lora-alpha", "32").sentence


@pytest.mark.parametrize(
    ("dtype", "quantized"),
    [
        *((kind, True) for kind in ("int8", "q4_k", "iq4_nl", "tq1_0", "mxfp4", "nvfp4")),
        ("bf16", False),
        ("f32", False),
    ],
)
def test_types_that_were_rounded_before(tmp_path, dtype, quantized):
    weights = Weights(WEIGHTS)
    assert Source(tmp_path, (), dtype, weights, weights).is_quantized is quantized
