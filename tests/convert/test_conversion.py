"""From one model file to another, what it costs, and what it would."""

import json

import numpy as np
import pytest
from helpers.models import byte_tokenizer, fine_weights, write_file
from helpers.writers import TINY, random_weights, write_gguf, write_pth

from rwkv_cli.convert import conversion, quantization_loss
from rwkv_cli.files import weight_layouts
from rwkv_cli.files.model_file import ModelFile
from rwkv_cli.files.weight_layouts import WEIGHT_TYPES
from rwkv_cli.reporting import Reporter

WEIGHTS = fine_weights(TINY, seed=3)
TEXT = "Once upon a time there was a little fox, and it had no friends at all. " * 3


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A model file of each type, of the same weights, in the current folder."""
    monkeypatch.chdir(tmp_path)
    for kind in WEIGHT_TYPES:
        write_file(tmp_path / f"m-{kind}.safetensors", WEIGHTS, kind, byte_tokenizer())
    return tmp_path


@pytest.mark.parametrize("before", WEIGHT_TYPES)
@pytest.mark.parametrize("after", WEIGHT_TYPES)
def test_from_every_type_to_every_type(rwkv, files, before, after):
    result = rwkv("quantize", f"m-{before}.safetensors", "out", "--type", after)
    if before == after:
        assert "already: choose another --type" in result.sentence
        return
    assert result.code == 0
    assert ("rounds a second time" in result.err) == (before in ("int8", "int4"))
    old, new = ModelFile(files / f"m-{before}.safetensors"), ModelFile(files / "out")
    assert new.info.weight_type == after
    assert (new.info.template, new.info.sampling) == (old.info.template, old.info.sampling)
    assert new.info.source == {"name": "random", "converted_from": before}
    assert new.info.tokenizer == old.info.tokenizer
    worst = quantization_loss.tensor_errors(old, new)[0].relative
    assert worst < {"fp32": 1e-7, "fp16": 1e-3, "int8": 0.02, "int4": 0.2}[after]


@pytest.mark.usefixtures("files")
def test_the_name_of_the_new_file(rwkv):
    assert rwkv("quantize", "m-fp32.safetensors", "--type", "int4", "--force").out.endswith(
        "; m-int4.safetensors\n"
    )


def test_fp32_in_between_loses_nothing(rwkv, files):
    """int8 made of fp32 is the int8 that was made at once, to the bit."""
    assert rwkv("quantize", "m-fp32.safetensors", "out").code == 0
    direct, indirect = ModelFile(files / "m-int8.safetensors"), ModelFile(files / "out")
    for name in TINY.tensor_shapes():
        np.testing.assert_array_equal(direct.stored(name), indirect.stored(name))


@pytest.mark.parametrize("kind", WEIGHT_TYPES)
def test_sizes_are_known_before(files, kind):
    source = conversion.open_source(files / "m-fp32.safetensors")
    real = (files / f"m-{kind}.safetensors").stat().st_size
    assert abs(conversion.file_bytes(source, kind) - real) < 0.02 * real + 2000


def test_bytes_per_token_are_those_of_the_backend(files):
    from rwkv_cli.engine.backends.cpu import CpuBackend

    for kind in WEIGHT_TYPES:
        model = ModelFile(files / f"m-{kind}.safetensors")
        embedding = sum(model.stored(name).nbytes for name in model.names if name.startswith("emb.weight"))
        read = model.weight_bytes - embedding + embedding // TINY.vocab_size + 2 * TINY.state_bytes
        assert weight_layouts.bytes_per_token(TINY, kind) == CpuBackend(model).bytes_per_token == read


def test_a_dry_run_writes_nothing(rwkv, files):
    before = sorted(files.iterdir())
    result = rwkv("quantize", "m-fp32.safetensors", "--dry-run")
    assert result.code == 0
    lines = result.out.splitlines()
    assert lines[0].startswith("m-fp32.safetensors: fp32, ")
    assert [line.split()[0] for line in lines[1:]] == ["type", *WEIGHT_TYPES]
    facts = json.loads(rwkv("quantize", "m-fp32.safetensors", "--dry-run", "--json").out)
    assert [row["type"] for row in facts["types"]] == list(WEIGHT_TYPES)
    assert all(row["tokens_per_second"] > 0 for row in facts["types"])
    assert sorted(files.iterdir()) == before


@pytest.mark.parametrize("source", ["m-fp32.safetensors", "m.pth"])
def test_what_it_has_cost(rwkv, files, source):
    if source.endswith(".pth"):
        tokens_alone = rwkv("quantize", str(write_pth(files / "m.pth", WEIGHTS)), "out", "--compare", TEXT)
        assert "has no tokenizer" in tokens_alone.sentence
        source = write_gguf(files / "m.gguf", WEIGHTS, tokenizer=gguf_tokenizer())
    result = rwkv("quantize", source, "out", "--type", "int4", "--compare", TEXT)
    assert result.code == 0
    lines = result.out.splitlines()
    assert lines[1].startswith("perplexity ")
    assert " predictions" in lines[1]
    assert [line.split()[0] for line in lines[2:6]] == ["bits", "KL", "same", "greedy"]
    assert lines[7].split() == [
        "worst",
        "of",
        str(len(TINY.tensor_shapes())),
        "tensors",
        "type",
        "relative",
        "error",
    ]
    assert len(lines) == 18
    assert sorted(path.name for path in files.iterdir() if path.name.startswith(".")) == []
    (files / "text.txt").write_text(TEXT)
    facts = json.loads(rwkv("quantize", source, "out", "--force", "--compare", "text.txt", "--json").out)
    assert facts["perplexity"]["before"] == pytest.approx(facts["perplexity"]["after"], rel=0.1)
    assert 0 < facts["tensors"][0]["relative_error"] < 0.02
    assert facts["perplexity"]["tokens"] > 100


def gguf_tokenizer():
    tokens = [*json.loads(byte_tokenizer().data)["model"]["vocab"], "th"]
    return {
        "model": "gpt2",
        "tokens": [*tokens, *(f"[PAD{i}]" for i in range(len(tokens), 300))],
        "merges": ["t h"],
    } | {"types": [3] + [1] * 299}


@pytest.mark.parametrize(
    ("text", "said"),
    [("x", "too short"), ("", "too short")],
)
@pytest.mark.usefixtures("files")
def test_texts_that_cannot_be_compared(rwkv, text, said):
    assert said in rwkv("quantize", "m-fp32.safetensors", "out", "--compare", text).sentence


def test_a_measured_error_is_the_one_that_was_made(files):
    weights = {name: tensor.copy() for name, tensor in WEIGHTS.items()}
    weights["blocks.1.att.key.weight"] *= np.float32(1.5)
    made = ModelFile(files / "m-fp32.safetensors")
    changed = conversion.open_source(write_file(files / "changed", weights, "fp32"))
    worst, second, *_ = quantization_loss.tensor_errors(changed.weights, made)
    assert worst.name == "blocks.1.att.key.weight"
    assert worst.relative == pytest.approx(1 / 3)
    assert second.relative == 0


def test_huge_and_tiny_weights_are_measured(files):
    weights = random_weights(TINY)
    weights["blocks.0.att.w1"][:] = 1e-30
    weights["blocks.0.ln1.bias"][:] = 0
    source = conversion.open_source(write_file(files / "odd", weights, "fp32"))
    conversion.convert(source, files / "out", "fp16", Reporter())
    errors = {
        error.name: error.relative
        for error in quantization_loss.tensor_errors(source.weights, ModelFile(files / "out"))
    }
    assert errors["blocks.0.att.w1"] == pytest.approx(1)  # nothing is left of it in fp16
    assert errors["blocks.0.ln1.bias"] == 0
