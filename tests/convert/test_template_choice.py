"""Which template a model gets: what its files bring comes before what its name implies."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Rwkv
from helpers.writers import TINY, random_weights, write_gguf, write_hf, write_pth

from rwkv_cli.convert.template_choice import ChosenTemplate, choose_template
from rwkv_cli.files.checkpoints import open_checkpoint
from rwkv_cli.text.template import Template
from rwkv_cli.text.templates import get_template

WORLD = random_weights(dataclasses.replace(TINY, vocab_size=65_536))
BRACKETS = "{% for m in messages %}[{{ m.content }}]{% endfor %}{% if add_generation_prompt %}>{% endif %}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a World-sized model, without a template."""
    return write_hf(tmp_path_factory.mktemp("hf") / "RWKV7-G1k-1.5B-20260930", WORLD)


@pytest.fixture
def beside(folder: Path) -> Any:
    """Chooses a template with files beside the weights, which are removed afterwards."""

    def choose(**files: object) -> ChosenTemplate:
        paths = []
        try:
            for name, content in files.items():
                path = folder / name.replace("__", ".")
                path.write_text(content if isinstance(content, str) else json.dumps(content))
                paths.append(path)
            return choose_template(open_checkpoint(folder))
        finally:
            for path in paths:
                path.unlink()

    return choose


def test_without_a_template_the_name_decides(beside: Any) -> None:
    assert beside() == (get_template("g1h"), "the name RWKV7-G1k-1.5B-20260930")


def test_the_template_of_a_folder_wins(beside: Any) -> None:
    by_file = beside(chat_template__jinja=BRACKETS)
    by_settings = beside(tokenizer_config__json={"chat_template": BRACKETS})
    assert by_file.template == by_settings.template
    assert by_file.template.render("Hi") == "[Hi]>"
    assert (by_file.origin, by_settings.origin) == ("chat_template.jinja", "tokenizer_config.json")
    assert beside(chat_template__jinja=BRACKETS, tokenizer_config__json={"chat_template": "no"}) == by_file


def test_a_template_that_cannot_be_used_is_passed_over_and_told(beside: Any) -> None:
    template, origin = beside(chat_template__jinja="{% for m in messages %}")
    assert template == get_template("g1h")
    assert origin.startswith("the name RWKV7-G1k-1.5B-20260930, since the chat template cannot be used: ")
    assert origin.endswith("(chat_template.jinja)")


def test_sampling_by_mode_that_a_folder_brings(beside: Any) -> None:
    thought = {"do_sample": True, "temperature": 0.5, "top_k": 7, "max_new_tokens": 9, "penalty_decay": 0.9}
    plain = {"do_sample": True, "top_p": 0.125}
    template = beside(generation_config__json=thought, fake_think_generation_config__json=plain).template
    assert template.name == "g1h"
    on, off = template.sampling_for("on"), template.sampling_for("off")
    assert (on["temperature"], on["top_k"], on["penalty_decay"], on["presence_penalty"]) == (0.5, 7, 0.9, 1.0)
    assert (off["top_p"], off["temperature"]) == (0.125, 1.0)
    assert beside(generation_config__json={"temperature": 0.5}).template == get_template(
        "g1h"
    )  # it is greedy
    assert beside(generation_config__json={"do_sample": True, "top_p": 7}).template == get_template("g1h")
    assert beside(generation_config__json="[").template == get_template("g1h")


def gguf(folder: Path, template: str | None, name: str = "rwkv7-g1k-1.5b.gguf") -> Template:
    """The template of a GGUF file with a chat template of its own."""
    keys = {} if template is None else {"tokenizer.chat_template": template}
    return choose_template(open_checkpoint(write_gguf(folder / name, WORLD, values=keys))).template


def test_the_template_of_a_gguf_file(tmp_path: Path) -> None:
    assert gguf(tmp_path, BRACKETS).render("Hi") == "[Hi]>"
    assert gguf(tmp_path, None) == get_template("g1h")


def test_the_name_that_llama_cpp_gives_every_world_vocabulary_says_nothing(tmp_path: Path) -> None:
    assert gguf(tmp_path, "rwkv-world") == get_template("g1h")
    assert gguf(tmp_path, "rwkv-world", "mine.gguf") == get_template("world")


def test_the_template_travels(folder: Path, tmp_path: Path, rwkv: Rwkv) -> None:
    """From a folder into a model file, which is copied elsewhere; and `rwkv info` says why."""
    path = folder / "chat_template.jinja"
    path.write_text(BRACKETS)
    try:
        assert rwkv("quantize", folder, tmp_path / "copy.safetensors").code == 0
    finally:
        path.unlink()
    facts = json.loads(rwkv("info", tmp_path / "copy.safetensors", "--json").out)["model"]
    assert (facts["template"], facts["template_from"]) == ("chat_template", "chat_template.jinja")
    assert facts["prompts"] == {"default": "[{prompt}]>"}
    assert rwkv("quantize", folder, tmp_path / "own.safetensors", "--template", "qa").code == 0
    facts = json.loads(rwkv("info", tmp_path / "own.safetensors", "--json").out)["model"]
    assert (facts["template"], facts["template_from"]) == ("qa", "--template")


def test_a_name_alone(tmp_path: Path) -> None:
    for name, template in (
        ("rwkv7-g1g-1.5b-20260526-ctx8192", "g1"),
        ("RWKV7_G1M_7.2B", "g1h"),
        ("x", "raw"),
    ):
        assert (
            choose_template(open_checkpoint(write_pth(tmp_path / f"{name}.pth", WORLD))).template.name
            == template
        )
