"""config.toml and its variables: what is read, what is refused, and what is written."""

import dataclasses
import os
import re
import tomllib
from pathlib import Path

import pytest

from rwkv_cli import paths, settings
from rwkv_cli.errors import SettingsError, StorageError, UsageError
from rwkv_cli.sampling_settings import NUMERIC_FIELDS
from rwkv_cli.settings import KEYS, Settings


@pytest.fixture(autouse=True)
def file(tmp_path, monkeypatch):
    """The user's config.toml."""
    monkeypatch.setenv("RWKV_CONFIG_DIR", str(tmp_path / "config"))
    (tmp_path / "config").mkdir()
    return tmp_path / "config" / "config.toml"


def test_the_keys_are_the_fields():
    assert set(KEYS) == {each.name for each in dataclasses.fields(Settings)} - {"origins"}
    assert set(NUMERIC_FIELDS) < set(KEYS)
    for name, key in KEYS.items():
        assert key.default is None or key.checked(key.default) == key.default, name


def test_without_a_file_everything_is_built_in(file):
    assert not file.exists()
    found = settings.load()
    assert found == Settings()
    assert (found.device, found.history, found.model, found.chosen) == ("auto", True, None, {})


def test_a_variable_comes_before_the_file(file, monkeypatch):
    file.write_text('\ufeffmodel = "a"\r\ntop_p = 1\r\nhistory = false\r\n', encoding="utf-8")
    monkeypatch.setenv("RWKV_MODEL", "b")
    monkeypatch.setenv("RWKV_TOP_P", " ")  # counts as not set
    monkeypatch.setenv("RWKV_THREADS", "3")
    found = settings.load()
    assert found.chosen == {"model": "b", "top_p": 1.0, "history": False, "threads": 3}
    assert found.origins == {"model": "variable", "top_p": "file", "history": "file", "threads": "variable"}
    assert found.sampling == {"top_p": 1.0}


@pytest.mark.parametrize(("text", "value"), [("off", False), ("0", False), ("TRUE", True), ("yes", True)])
def test_a_switch_as_people_write_it(monkeypatch, text, value):
    monkeypatch.setenv("RWKV_HISTORY", text)
    assert settings.load().history is value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("temprature = 1", "line 1: unknown setting 'temprature'; did you mean temperature?"),
        ("temp = 1", "unknown setting 'temp'; did you mean temperature?"),
        ("# a\n\nxyz = 1", "line 3: unknown setting 'xyz'; there are model, device, threads"),
        ("top_p = 1\n[sampling]\ntemperature = 1", "line 2: unknown setting 'sampling'"),
        ("top_p = 1.5", "line 1: top_p is 1.5; it must be a number between 0 and 1"),
        ("top_p = true", "line 1: top_p is True; it must be a number"),
        ("top_k = 1.0", "line 1: top_k is 1.0; it must be a whole number"),
        ("temperature = nan", "temperature is nan; it must be a number from 0 up"),
        ("temperature = 0x" + "f" * 5000, "temperature is too large; it must be a number"),
        ("temperature = " + "9" * 5000, "has a number of too many digits"),
        ("threads = 0", "threads is 0; it must be a whole number above 0"),
        ("threads = " + "9" * 4000, "it must be a whole number above 0"),
        ("max_tokens = -2", "max_tokens is -2"),
        ("model = 7", "model is 7; it must be a path or a name"),
        ("model = ' '", "it must be a path or a name"),
        ('model = "a\\u001b[2J"', "it must be a path or a name"),
        ("device = 'gpu'", "device is 'gpu'; it must be auto, cuda, cpu or reference"),
        ("history = 'yes'", "history is 'yes'; it must be true or false"),
        ("editing = 'vim'", "it must be one of emacs, vi"),
        ("top_p = [" + "1," * 500_000 + "]", "line 1: top_p is [1, 1, 1,"),
        ("#" * 2_000_000, "is too large: it has more than 1 MB"),
        ("a" * 500_000 + " = 1", "line 1: unknown setting 'aaaa"),
        ("x = " + "[" * 5000, "is n"),  # nested too deeply, or not valid TOML
        ("model = ", "is not valid TOML: invalid value (at line 1, the last)"),
        ("top_p = 1\ntop_p = 1", "is not valid TOML"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_sentence(file, text, said):
    file.write_text(text)
    with pytest.raises(SettingsError) as raised:
        settings.load()
    assert said in str(raised.value)
    assert str(raised.value).startswith(str(file)) or f"{file} is" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_files_that_cannot_be_read(file):
    file.write_bytes(b"model = '\xff'")
    with pytest.raises(SettingsError, match=r"config\.toml is not valid UTF-8 text \(byte 9\)"):
        settings.load()
    file.unlink()
    file.mkdir()
    with pytest.raises(SettingsError, match=r"cannot read .*config\.toml: is a directory"):
        settings.load()


@pytest.mark.parametrize(
    ("variable", "text", "said"),
    [
        ("RWKV_THREADS", "two", "RWKV_THREADS is 'two': it must be a whole number above 0"),
        ("RWKV_THREADS", "9" * 5000, "it must be a whole number above 0"),
        ("RWKV_TOP_P", "2", "RWKV_TOP_P is '2': it must be a number between 0 and 1"),
        ("RWKV_TEMPERATURE", "inf", "it must be a number from 0 up"),
        ("RWKV_HISTORY", "maybe", "RWKV_HISTORY is 'maybe': it must be true or false"),
        ("RWKV_DEVICE", "tpu", "RWKV_DEVICE is 'tpu'"),
    ],
)
def test_what_is_wrong_with_a_variable_names_it(monkeypatch, variable, text, said):
    monkeypatch.setenv(variable, text)
    with pytest.raises(SettingsError) as raised:
        settings.load()
    assert said in str(raised.value)


def test_what_is_stored_is_loaded(file):
    assert settings.store("model", 'a "b" \\ ü') == file
    settings.store("top-p", 1)
    settings.store("history", False)
    assert settings.load().chosen == {"model": 'a "b" \\ ü', "top_p": 1.0, "history": False}
    settings.store("model", "c")
    settings.store("top_p", None)
    settings.store("top_k", None)  # which is not there
    assert file.read_text() == 'model = "c"\nhistory = false\n'


def test_the_rest_of_the_file_stays(file):
    file.write_text("# mine\n\ntop_k = 5  # few\nmodel = 'a'\n\n# end")
    settings.store("top_k", 7)
    settings.store("threads", 2)
    assert file.read_text() == "# mine\n\ntop_k = 7\nmodel = 'a'\n\n# end\nthreads = 2\n"


def test_the_folder_is_made(monkeypatch, tmp_path):
    monkeypatch.setenv("RWKV_CONFIG_DIR", str(tmp_path / "a" / "b"))
    path = settings.store("device", "cpu")
    assert path == paths.settings_file() == tmp_path / "a" / "b" / "config.toml"
    assert settings.load().device == "cpu"


@pytest.mark.skipif(os.name == "nt", reason="symbolic links need a right there")
def test_a_link_to_the_file_stays_one(file, tmp_path):
    (tmp_path / "dotfiles.toml").write_text("top_k = 5\n")
    file.symlink_to(tmp_path / "dotfiles.toml")
    settings.store("top_k", 6)
    assert file.is_symlink()
    assert (tmp_path / "dotfiles.toml").read_text() == "top_k = 6\n"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("modle", "a", "unknown setting 'modle'; did you mean model"),
        ("top_p", 2, "top_p is '2': it must be a number between 0 and 1"),
        ("threads", True, "threads is 'True'"),
    ],
)
def test_what_cannot_be_stored_is_refused(file, name, value, said):
    with pytest.raises(UsageError) as raised:
        settings.store(name, value)
    assert said in str(raised.value)
    assert not file.exists()


def test_a_file_that_cannot_be_changed_stays(file):
    for text in ('model = """\na"""\n', "model = 'a'\ntop_j = 1\n"):
        file.write_text(text)
        with pytest.raises(SettingsError):
            settings.store("model", "b")
        assert file.read_text() == text
    assert [each.name for each in file.parent.iterdir()] == ["config.toml"]


def test_a_folder_that_cannot_be_made(file, monkeypatch):
    file.write_text("")
    monkeypatch.setenv("RWKV_CONFIG_DIR", str(file / "inside"))
    with pytest.raises(StorageError, match="cannot write"):
        settings.store("model", "b")


def test_the_documents_have_every_setting():
    page = (Path(__file__).parents[2] / "docs" / "settings.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|(.*?)\| `(\w+)` \|", page, re.MULTILINE)
    assert [(name, variable) for name, _, variable in rows] == [
        (key.name, key.variable) for key in KEYS.values()
    ]
    for name, default, _ in rows:
        if KEYS[name].default is not None:
            assert tomllib.loads(f"x = {default.strip(' `')}")["x"] == KEYS[name].default, name
