"""LoRA adapters: what is merged is what the formula says, and what does not fit is refused."""

import numpy as np
import pytest
from helpers.models import Weights
from helpers.writers import TINY, random_weights, write_pth, write_safetensors, write_torch

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
    with pytest.raises(CheckpointError, match=r"neither a .pth nor a .safetensors"):
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
    assert (
        "--lora-alpha is missing: no adapter_config.json beside the adapter says"
        in rwkv("quantize", "base.pth", "o", "--lora", "lora.pth").sentence
    )
    assert (
        "is or holds"
        not in rwkv(
            "quantize", "base.pth", "lora.pth", "-f", "--lora", "lora.pth", "--lora-alpha", "8"
        ).sentence
    )
    model_file = rwkv("quantize", "out", "again", "--type", "fp32", "--lora", "lora.pth", "--lora-alpha", "8")
    assert model_file.code == 0
