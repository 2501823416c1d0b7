"""The chat templates that files bring are found and never run."""

import json

import pytest
from helpers.ports import write_port, write_st
from helpers.writers import random_weights, write_gguf, write_hf, write_pth

from rwkv_cli.config import ModelConfig
from rwkv_cli.errors import CheckpointError
from rwkv_cli.files.checkpoints import ChatTemplate, open_checkpoint

SMALL = random_weights(ModelConfig(1, 64, 64, 8, rank_w=4, rank_a=4, rank_v=0, rank_g=4))
TEXT = "{% for message in messages %}{{ message.content }}✿\r\n{% endfor %}"
LIMIT = 64 << 10


@pytest.fixture
def folder(tmp_path):
    return write_hf(tmp_path / "m", SMALL)


def found(path):
    with open_checkpoint(path) as checkpoint:
        return checkpoint.chat_template


def settings(folder, template):
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    return found(folder)


def test_a_file_of_its_own(folder):
    assert found(folder) is None
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "other"}))
    (folder / "chat_template.jinja").write_bytes(TEXT.encode())
    assert found(folder) == ChatTemplate(TEXT, "chat_template.jinja")
    assert found(folder / "model.safetensors") == ChatTemplate(TEXT, "chat_template.jinja")


def test_a_setting_of_the_tokenizer(folder):
    assert settings(folder, TEXT) == ChatTemplate(TEXT, "tokenizer_config.json")
    (folder / "tokenizer_config.json").write_text("{}")
    assert found(folder) is None


@pytest.mark.parametrize("template", [None, "", " \n", [], [{"name": "tool_use", "template": TEXT}]])
def test_none(folder, template):
    assert settings(folder, template) is None


def test_one_of_several(folder):
    several = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": TEXT}]
    assert settings(folder, several) == ChatTemplate(TEXT, "tokenizer_config.json")


@pytest.mark.parametrize(
    "template",
    [
        7,
        {"default": TEXT},
        ["x"],
        [{"name": 1, "template": TEXT}],
        [{"name": "default"}],
        [{"name": "default", "template": 1}],
        [{"name": "default", "template": ["x"]}],
        "\ud800",
    ],
)
def test_a_damaged_setting_is_refused(folder, template):
    with pytest.raises(CheckpointError, match=r"tokenizer_config.json has a damaged chat template"):
        settings(folder, template)


def test_damaged_files_are_refused(folder):
    (folder / "tokenizer_config.json").write_bytes(b'{"chat_template": ')
    with pytest.raises(CheckpointError, match=r"tokenizer_config.json is not a JSON object"):
        found(folder)
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(
        CheckpointError, match=r"chat_template.jinja has a damaged chat template: it is not text"
    ):
        found(folder)


def test_the_limit(folder):
    (folder / "chat_template.jinja").write_text("x" * LIMIT)
    assert found(folder) == ChatTemplate("x" * LIMIT, "chat_template.jinja")
    (folder / "chat_template.jinja").write_text("x" * (LIMIT + 1))
    with pytest.raises(
        CheckpointError, match=r"chat_template.jinja has 65,537 bytes, more than any chat template"
    ):
        found(folder)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(CheckpointError, match=r"has a chat template of 65,538 bytes; at most 65,536"):
        settings(folder, "é" * (LIMIT // 2 + 1))


def test_inside_a_gguf(tmp_path):
    def inside(template):
        return found(write_gguf(tmp_path / "x.gguf", SMALL, values={"tokenizer.chat_template": template}))

    assert inside(TEXT) == ChatTemplate(TEXT, "tokenizer.chat_template")
    assert inside("x" * LIMIT) is not None
    assert inside("") is None
    for damaged in (b"\xff", 7):
        with pytest.raises(CheckpointError, match=r"x.gguf has a damaged chat template"):
            inside(damaged)
    with pytest.raises(CheckpointError, match=r"x.gguf has a chat template of 65,537 bytes"):
        inside("x" * (LIMIT + 1))


def test_files_that_bring_none(tmp_path):
    (tmp_path / "chat_template.jinja").write_text(TEXT)  # whose it is, nothing says
    assert found(write_gguf(tmp_path / "x.gguf", SMALL)) is None
    assert found(write_st(tmp_path / "x.st", SMALL)) is None
    assert found(write_pth(tmp_path / "x.pth", SMALL)) is None
    port = write_port(tmp_path / "m", SMALL, "RwkvForCausalLM")
    (port / "chat_template.jinja").write_text(TEXT)
    assert found(port) == ChatTemplate(TEXT, "chat_template.jinja")
