"""adapter_config.json beside a LoRA adapter: what it says is applied, checked or refused."""

import json
import math

import numpy as np
import pytest
from helpers.models import Weights
from helpers.writers import TINY, random_weights, write_safetensors, write_torch

from rwkv_cli.convert.lora import Merged
from rwkv_cli.errors import CheckpointError, UsageError

WEIGHTS = random_weights(TINY, seed=7)
MODULES = {  # the names of flash-linear-attention, and ours
    "model.layers.0.attn.r_proj": "blocks.0.att.receptance.weight",
    "model.layers.1.ffn.key": "blocks.1.ffn.key.weight",
}
CONFIG = {
    "peft_type": "LORA",
    "r": 4,
    "lora_alpha": 8,
    "target_modules": ["r_proj", "key"],
    "bias": "none",
    "use_dora": False,
    "init_lora_weights": True,
    "rank_pattern": {},
    "alpha_pattern": {},
    "modules_to_save": None,
}


@pytest.fixture
def adapter(tmp_path):
    """Writes an adapter: `adapter(ranks, more, **settings)` -> its folder and its pairs."""

    def write(
        ranks=(4, 4), more=None, writer=write_safetensors, name="adapter_model.safetensors", **settings
    ):
        rng = np.random.default_rng(1)
        tensors, pairs = dict(more or {}), {}
        for (module, ours), rank in zip(MODULES.items(), ranks, strict=True):
            n_out, n_in = WEIGHTS[ours].shape
            pairs[ours] = [
                rng.standard_normal(shape).astype(np.float32) for shape in ((rank, n_in), (n_out, rank))
            ]
            for side, values in zip("AB", pairs[ours], strict=True):
                tensors[f"base_model.model.{module}.lora_{side}.weight"] = values
        writer(tmp_path / name, tensors, "f32")
        (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG | settings))
        return tmp_path, pairs

    return write


def check(folder, pairs, scales, alpha=None):
    model = Merged(Weights(WEIGHTS), folder, alpha)
    for (name, (A, B)), scale in zip(pairs.items(), scales, strict=True):
        np.testing.assert_allclose(model.tensor(name), WEIGHTS[name] + scale * B @ A, atol=1e-4)


@pytest.mark.parametrize("alpha", [None, 8.0])
def test_alpha_comes_from_the_file(adapter, alpha):
    folder, pairs = adapter()
    check(folder, pairs, (2, 2), alpha)
    check(folder / "adapter_model.safetensors", pairs, (2, 2), alpha)


def test_the_file_of_pytorch(adapter):
    check(*adapter(writer=write_torch, name="adapter_model.bin"), (2, 2))


def test_a_folder_without_an_adapter_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"has no adapter_model\.safetensors; name the file itself"):
        Merged(Weights(WEIGHTS), tmp_path)


def test_another_alpha_is_told(adapter):
    folder, _ = adapter()
    with pytest.raises(
        UsageError, match=r"^lora_alpha is 16, but .*adapter_config\.json says 8: leave it out"
    ):
        Merged(Weights(WEIGHTS), folder, 16)


@pytest.mark.parametrize(
    ("settings", "ranks", "scales"),
    [
        ({"use_rslora": True}, (4, 4), (4, 4)),  # 8 / sqrt(4)
        ({"use_rslora": True, "r": 3}, (3, 3), (8 / math.sqrt(3),) * 2),
        ({"alpha_pattern": {"r_proj": 16}}, (4, 4), (4, 2)),
        ({"alpha_pattern": {"ffn.key": 16}}, (4, 4), (2, 4)),
        ({"alpha_pattern": {"^model\\.layers\\.1\\.ffn\\.key$": 1}}, (4, 4), (2, 0.25)),
        ({"alpha_pattern": {"proj": 16, "^ffn.key": 16}}, (4, 4), (2, 2)),  # neither is a name here
        ({"rank_pattern": {"key": 2}}, (4, 2), (2, 4)),
        ({"rank_pattern": {"key": 1}, "alpha_pattern": {"key": 3}, "use_rslora": True}, (4, 1), (4, 3)),
        ({"target_modules": "all-linear"}, (4, 4), (2, 2)),
    ],
)
def test_what_is_said_of_scales_is_applied(adapter, settings, ranks, scales):
    check(*adapter(ranks, **settings), scales)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r": 8}, "has the rank 8, but the adapter has 4"),
        ({"rank_pattern": {"key": 2}}, "model.layers.1.ffn.key has the rank 2, but the adapter has 4"),
        ({"r": 0}, "no valid r"),
        ({"r": True}, "no valid r"),
        ({"lora_alpha": None}, "no valid lora_alpha"),
        ({"lora_alpha": math.inf}, "no valid lora_alpha"),
        ({"lora_alpha": 10**400}, "no valid lora_alpha"),
        ({"alpha_pattern": {"key": "8"}}, "no valid alpha_pattern"),
        ({"alpha_pattern": {"(a|a)*b": 8}}, "only names of modules can be followed"),
        ({"rank_pattern": [1]}, "no valid rank_pattern"),
        ({"peft_type": "LOHA"}, "an adapter of the kind 'LOHA': only LORA can be merged"),
        ({"use_dora": True}, "has use_dora, which cannot be merged here"),
        ({"fan_in_fan_out": True}, "has fan_in_fan_out"),
        ({"lora_bias": True}, "has lora_bias"),
        ({"layer_replication": [[0, 1]]}, "has layer_replication"),
        ({"init_lora_weights": "pissa_niter_16"}, "began with 'pissa_niter_16', which changes the model"),
        ({"target_modules": ["r_proj"]}, "does not list model.layers.1.ffn.key in target_modules"),
        ({"target_modules": ["r_proj", "key", "value"]}, "lists 'value', which the adapter lacks"),
        ({"modules_to_save": ["lm_head"]}, "lists 'lm_head', which the adapter lacks"),
        ({"target_modules": [1]}, "no valid target_modules"),
    ],
)
def test_what_cannot_be_done_or_does_not_fit_is_refused(adapter, settings, message):
    folder, _ = adapter(**settings)
    with pytest.raises(CheckpointError, match=message):
        Merged(Weights(WEIGHTS), folder)


def test_modules_that_were_trained_as_a_whole(adapter):
    head = WEIGHTS["head.weight"] + 1
    folder, _ = adapter(more={"base_model.model.lm_head.weight": head}, modules_to_save=["lm_head"])
    np.testing.assert_allclose(Merged(Weights(WEIGHTS), folder).tensor("head.weight"), head)


@pytest.mark.parametrize("content", [b"", b"[1]", b"\xff", b"[" * 100_000, b" " * 1_000_001])
def test_a_file_that_is_none_is_refused(adapter, content):
    folder, _ = adapter()
    (folder / "adapter_config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match="is not the JSON of an adapter"):
        Merged(Weights(WEIGHTS), folder)


def test_another_config_makes_another_model(adapter):
    folder, _ = adapter()
    before = Merged(Weights(WEIGHTS), folder).sha256()
    adapter(use_rslora=True)
    assert Merged(Weights(WEIGHTS), folder).sha256() != before
