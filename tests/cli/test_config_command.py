"""`rwkv config`, and what the settings do to commands."""

import json
import sys

import pytest

from rwkv_cli.cli.terminal import ui
from rwkv_cli.settings import KEYS


@pytest.fixture(autouse=True)
def file(tmp_path, monkeypatch):
    """The user's config.toml."""
    monkeypatch.setenv("RWKV_CONFIG_DIR", str(tmp_path / "config"))
    return tmp_path / "config" / "config.toml"


def write(file, text):
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)


def test_all_settings_are_shown_with_where_they_come_from(rwkv, file, monkeypatch):
    write(file, "# mine\ntop_k = 5\nhistory = false\n")
    monkeypatch.setenv("RWKV_THREADS", "3")
    result = rwkv("config")
    rows = [line.split() for line in result.out.splitlines()]
    assert [row[0] for row in rows] == ["setting", *KEYS]
    assert [row[-1] for row in rows[1:]] == [f"RWKV_{name.upper()}" for name in KEYS]
    assert ["top_k", "5", "line", "2", "RWKV_TOP_K"] in rows
    assert ["threads", "3", "variable", "RWKV_THREADS"] in rows
    assert ["device", "auto", "built-in", "RWKV_DEVICE"] in rows
    assert result.err == f"3 settings of your own; the file is {file}\n"
    assert max(map(len, result.out.splitlines())) <= 80


def test_all_settings_as_json(rwkv, file):
    write(file, "top_p = 1\n")
    found = json.loads(rwkv("config", "--json").out)
    assert found["file"] == str(file)
    rows = {row["key"]: row for row in found["settings"]}
    assert list(rows) == list(KEYS)
    top_p = {"value": 1.0, "origin": "file", "line": 1, "variable": "RWKV_TOP_P"}
    assert rows["top_p"] == {"key": "top_p", "help": KEYS["top_p"].help, **top_p}
    assert (rows["model"]["value"], rows["model"]["origin"]) == (None, "default")


def test_a_setting_is_written_shown_and_removed(rwkv, file):
    assert rwkv("config", "top-p", "0.25").out == "0.25\n"
    assert file.read_text() == "top_p = 0.25\n"
    assert rwkv("config", "top_p").out == "0.25\n"
    assert json.loads(rwkv("config", "top_p", "--json").out)["value"] == 0.25
    assert rwkv("config", "top_p", "--unset").out == "the model's own\n"
    assert file.read_text() == ""


def test_a_variable_hides_what_is_written(rwkv, file, monkeypatch):
    monkeypatch.setenv("RWKV_TOP_K", "9")
    result = rwkv("config", "top_k", "5")
    assert (result.out, file.read_text()) == ("9\n", "top_k = 5\n")
    assert result.err == "RWKV_TOP_K is set, and comes before config.toml\n"


def test_the_path_is_told_even_if_the_file_is_broken(rwkv, file):
    write(file, "top_p = ")
    assert rwkv("config", "--path").out == f"{file}\n"
    assert json.loads(rwkv("config", "--path", "--json").out) == {"path": str(file)}
    assert rwkv("config").code == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("config", "temprature"), "unknown setting 'temprature'; did you mean temperature?"),
        (("config", "top_p", "2"), "top_p is '2': it must be a number between 0 and 1"),
        (("config", "device", "gpu"), "device is 'gpu': it must be auto, cuda, cpu or reference"),
        (("config", "top_p", "1", "--unset"), "--unset takes a KEY and no VALUE"),
        (("config", "--unset"), "--unset takes a KEY"),
        (("config", "top_p", "--path"), "give either KEY or --path"),
    ],
)
def test_what_cannot_be_is_one_sentence(rwkv, file, arguments, said):
    result = rwkv(*arguments)
    assert (result.code, said in result.sentence) == (2, True), result.sentence
    assert not file.exists()


def test_an_error_in_the_file_names_file_and_line(rwkv, file, tiny_model):
    write(file, "\ntemprature = 1\n")
    for command in (("generate", "-p", "a", "-m", tiny_model), ("info", tiny_model), ("config",)):
        result = rwkv(*command)
        assert result.code == 1
        assert result.sentence == f"{file}, line 2: unknown setting 'temprature'; did you mean temperature?"
    assert rwkv("generate", "--help").code == 0
    assert rwkv("models", "list").code == 0  # it has no use for settings


# ---------------------------------------------------------------------------------------------- what they do


def last(result):
    """The last object of a generation as JSON lines."""
    assert result.code == 0, result.err
    return json.loads(result.out.splitlines()[-1])


def test_options_come_before_variables_and_those_before_the_file(rwkv, file, tiny_model, monkeypatch):
    write(file, f'model = "{tiny_model.as_posix()}"\nmax_tokens = 3\ndevice = "reference"\n')
    command = ("generate", "-p", "a", "--json", "-t", "0", "--stop", "x" * 50, "--ban", "0")
    found = last(rwkv(*command))
    assert (found["model"], found["usage"]["generated_tokens"]) == (str(tiny_model), 3)
    monkeypatch.setenv("RWKV_MAX_TOKENS", "2")
    assert last(rwkv(*command))["usage"]["generated_tokens"] == 2
    assert last(rwkv(*command, "-n", "1"))["usage"]["generated_tokens"] == 1
    facts = json.loads(rwkv("info", "--json").out)
    assert "reference" in json.dumps(facts)


def test_sampling_comes_from_the_settings(rwkv, file, tiny_model):
    write(file, "temperature = 0\n")
    command = ("generate", "-p", "a", "-m", tiny_model, "-n", "8", "--json")
    one, other = (
        [json.loads(line)["token"] for line in rwkv(*command, "--seed", seed).out.splitlines()[:-1]]
        for seed in (1, 2)
    )
    assert one == other
    assert one != [
        json.loads(line)["token"]
        for line in rwkv(*command, "-t", "1", "--top-p", "1", "--seed", "1").out.splitlines()[:-1]
    ]


def test_a_conversation_keeps_the_settings_that_it_was_saved_with(rwkv, file, tiny_model):
    chat = ("chat", "-m", tiny_model, "--name", "k", "-q")
    rwkv(*chat, "-t", "0.5", "-n", "1", stdin=b"hello\n")
    write(file, "temperature = 0.25\nmax_tokens = 2\ntop_k = 7\n")
    shown = rwkv(*chat, stdin=b"/set\n").err
    settings = dict(line.split(maxsplit=1) for line in shown.splitlines())
    assert settings["temperature"] == "0.5 (set)"
    assert settings["max-tokens"] == "1"
    assert settings["top-k"] == "7 (set)"  # nothing else was chosen
    shown = rwkv("chat", "-m", tiny_model, "-q", stdin=b"/set\n").err
    settings = dict(line.split(maxsplit=1) for line in shown.splitlines())
    assert (settings["temperature"], settings["max-tokens"]) == ("0.25 (set)", "2")


def test_the_model_of_a_state_comes_before_that_of_the_settings(rwkv, file, tiny_model):
    assert rwkv("state", "save", "s", "-p", "Once", "-m", tiny_model).code == 0
    write(file, 'model = "gosling"\n')
    found = last(rwkv("generate", "--state", "s", "-p", "a", "-n", "1", "--json"))
    assert found["model"] == str(tiny_model)


def test_a_switch_of_the_screen(rwkv, file, tiny_model, monkeypatch):
    from rwkv_cli.cli.chat import start

    asked = []
    monkeypatch.setattr(start, "run", lambda request: asked.append(request) or 0)
    write(file, 'editing = "vi"\nshow_thinking = false\nmarkdown = false\n')
    rwkv("chat", "-m", tiny_model)
    rwkv("chat", "-m", tiny_model, "--emacs", "--show-thinking", "--markdown")
    switches = [(each.vi, each.show_thinking, each.markdown) for each in asked]
    assert switches == [(True, False, False), (False, True, True)]


def test_the_plain_theme_has_no_styles(rwkv, file, monkeypatch):
    monkeypatch.setattr(ui, "is_animated", lambda _: True)
    assert "\x1b[" in rwkv("config").out
    write(file, 'theme = "plain"\n')
    assert "\x1b[" not in rwkv("config").out
    assert ui.styled("a", ui.BOLD, sys.stdout) == "a"
