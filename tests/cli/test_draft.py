"""`--draft`: the text stays the same, and what cannot propose tokens is told in one sentence."""

import json

import pytest
from helpers.models import byte_tokenizer, fine_weights, write_file
from helpers.writers import TINY

from rwkv_cli import paths
from rwkv_cli.engine import speculation


@pytest.fixture(autouse=True)
def always(monkeypatch, tmp_path):
    """Tokens are proposed all the time; the int4 form is made anew."""
    monkeypatch.setattr(speculation._Pace, "length", lambda _self: 4)
    monkeypatch.setattr(paths, "cache_folder", lambda: tmp_path / "cache")


def summary(result):
    assert result.code == 0
    return json.loads(result.out.splitlines()[-1])


@pytest.mark.parametrize("options", [("-t", "0"), ("--seed", "3", "--presence-penalty", "0.5")])
@pytest.mark.parametrize("draft", ["lookup", "self", "model"])
def test_the_text_stays_the_same(rwkv, tiny_model, draft, options):
    command = ("generate", "-m", tiny_model, "ab abc ab abc ab", "-n", "60", "--ban", "0", "--json", *options)
    expected = summary(rwkv(*command))
    result = rwkv(*command, "--draft", tiny_model if draft == "model" else draft)
    found = summary(result)
    assert found["text"] == expected["text"]
    usage = found["usage"]
    if draft != "lookup" or "drafted_tokens" in usage:  # which finds nothing in text at random
        assert 0 <= usage["accepted_tokens"] <= usage["drafted_tokens"] > 0
    if draft == "model":  # the same weights are right about everything
        assert usage["accepted_tokens"] > 30
    assert "drafted_tokens" not in expected["usage"]
    assert ("to int4, once, into" in result.err) == (draft == "self")


def test_the_int4_form_is_made_once(rwkv, tiny_model):
    command = ("generate", "-m", tiny_model, "ab", "-n", "5", "--draft", "self")
    assert "once" in rwkv(*command).err
    assert "once" not in rwkv(*command).err
    [file] = (paths.cache_folder() / "models").iterdir()
    assert file.name.startswith("tiny-int4-")


def test_a_state_after_a_draft_is_the_same(rwkv, tiny_model):
    for name, draft in (("plain", ()), ("drafted", ("--draft", "lookup"))):
        command = ("generate", "-m", tiny_model, "ab abc ab abc", "-n", "30", "--seed", "1", "--ban", "0")
        assert rwkv(*command, *draft, "--save-state", name).code == 0
    texts = [rwkv("generate", "--state", name, "-n", "20").out for name in ("plain", "drafted")]
    assert texts[0] == texts[1] != ""


def test_a_chat_is_the_same(rwkv, tiny_model):
    chat = ("chat", "-m", tiny_model, "-q", "-n", "20", "--seed", "1")
    lines = b"one two one two\nthree\n"
    assert rwkv(*chat, "--draft", "lookup", stdin=lines).out == rwkv(*chat, stdin=lines).out != ""


def test_what_cannot_propose(rwkv, tiny_model, tmp_path):
    other = write_file(tmp_path / "other.safetensors", fine_weights(TINY), tokenizer=byte_tokenizer())
    small = write_file(tmp_path / "small.safetensors", fine_weights(TINY), "int4")
    for arguments, said in (
        (("-m", tiny_model, "--draft", other), f"{other} has another vocabulary than {tiny_model}"),
        (("-m", small, "--draft", "self"), "--draft is self, which is int4, and the model is int4 itself"),
        (("-m", tiny_model, "--draft", "nothing-like-it"), "unknown model nothing-like-it"),
        (("-m", tiny_model, "--draft", ""), "the name of the model is empty"),
        (("-m", tiny_model, "--draft", "lookup", "--batch", "-"), "either --batch or --draft, not both"),
    ):
        words = () if "--batch" in arguments else ("a",)
        result = rwkv("generate", *arguments, *words, stdin=b"a")
        assert said in result.sentence
        assert result.code == 2
