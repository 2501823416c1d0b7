"""The tokens that end a document are those that the files of a model name, and no guess."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.models import byte_tokenizer
from helpers.writers import TINY, random_weights, write_gguf, write_hf

from rwkv_cli.files.checkpoints import open_checkpoint
from rwkv_cli.files.model_file import ModelFile
from rwkv_cli.model import load
from rwkv_cli.text.tokenizer import load_tokenizer

WEIGHTS = random_weights(TINY)
DATA = byte_tokenizer().data or b""
A, B = (
    65 - 33 + 1,
    66 - 33 + 1,
)  # the ids of "A" and "B": id 0 is <|endoftext|>, and printable bytes come first


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = write_hf(tmp_path / "model", WEIGHTS)
    (path / "tokenizer.json").write_bytes(DATA)
    return path


def ends(folder: Path, **files: object) -> tuple[int, ...]:
    """What is found with these files beside the weights."""
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    tokenizer = open_checkpoint(folder).tokenizer
    assert tokenizer is not None
    return tokenizer.ends


def test_ids_of_the_pieces() -> None:
    spec = byte_tokenizer()
    assert load_tokenizer(spec, 512).encode("AB") == [A, B]


def test_nothing_said_is_the_usual_token(folder: Path) -> None:
    assert ends(folder) == ()
    assert load_tokenizer(byte_tokenizer(), 512).end_of_document == 0


def test_the_more_particular_file_is_believed(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert ends(folder, config=config | {"eos_token_id": 9}) == (
        9,
    )  # the default of a class, perhaps, but all there is
    assert ends(folder, special_tokens_map={"eos_token": {"content": "B", "lstrip": False}}) == (B,)
    assert ends(folder, generation_config={"eos_token_id": [A, B, A]}) == (A, B)
    assert ends(folder, tokenizer_config={"eos_token": "B"}) == (B,)


@pytest.mark.parametrize("value", ["no such piece", None, 5.5, [], {}, {"content": 7}, True])
def test_what_says_nothing_is_passed_over(folder: Path, value: object) -> None:
    assert ends(folder, tokenizer_config={"eos_token": value}, generation_config={"eos_token_id": A}) == (A,)
    assert ends(folder, tokenizer_config={}, generation_config={"eos_token_id": value}) == ()


@pytest.mark.parametrize("token", [-1, 10**9, 2**70])
def test_ids_outside_the_model_are_left_out(folder: Path, token: int) -> None:
    assert ends(folder, generation_config={"eos_token_id": [token, A]}) == (A,)


def test_a_gguf_file(tmp_path: Path) -> None:
    pieces = json.loads(DATA)["model"]["vocab"]
    tokens = {"model": "gpt2", "tokens": sorted(pieces, key=pieces.__getitem__), "merges": []}
    path = write_gguf(
        tmp_path / "x.gguf",
        WEIGHTS,
        tokenizer=tokens,
        values={"tokenizer.ggml.eos_token_id": B, "tokenizer.ggml.eot_token_id": A},
    )
    tokenizer = open_checkpoint(path).tokenizer
    assert tokenizer is not None
    assert tokenizer.ends == (B, A)


def test_the_text_ends_there_also_from_a_model_file(folder: Path, tmp_path: Path, rwkv) -> None:  # type: ignore[no-untyped-def]
    ends(folder, generation_config={"eos_token_id": [A, B]})
    assert rwkv("quantize", folder, tmp_path / "x.safetensors").code == 0
    model_file = ModelFile(tmp_path / "x.safetensors")
    assert model_file.info.tokenizer is not None
    assert model_file.info.tokenizer.ends == (A, B)
    model = load(tmp_path / "x.safetensors", "cpu")
    for token, finish in ((A, "end"), (B, "stop"), (0, None)):
        generation = model.generate("C", temperature=0, logit_bias={token: 1000.0}, max_tokens=3)
        assert next(generation).finish == finish
