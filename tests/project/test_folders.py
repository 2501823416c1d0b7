"""The folders of the user."""

from pathlib import Path

import pytest

from rwkv_cli import paths
from rwkv_cli.errors import StorageError

FOLDERS = {
    "RWKV_CACHE_DIR": paths.cache_folder,
    "RWKV_DATA_DIR": paths.data_folder,
    "RWKV_CONFIG_DIR": lambda: paths.user_registry_file().parent,
}


@pytest.mark.parametrize("variable", FOLDERS)
def test_a_folder_may_be_in_a_home(monkeypatch, tmp_path, variable):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(variable, "~/rwkv")
    assert FOLDERS[variable]() == tmp_path / "rwkv"
    monkeypatch.setenv(variable, "relative/\udcff")
    assert FOLDERS[variable]() == Path("relative/\udcff")


@pytest.mark.parametrize("variable", FOLDERS)
@pytest.mark.parametrize("empty", ["", " "])
def test_an_empty_variable_is_none(monkeypatch, variable, empty):
    monkeypatch.delenv(variable, raising=False)
    default = FOLDERS[variable]()
    monkeypatch.setenv(variable, empty)
    assert FOLDERS[variable]() == default


@pytest.mark.parametrize("variable", FOLDERS)
def test_the_home_of_nobody(monkeypatch, variable):
    monkeypatch.setenv(variable, "~nobody-of-this-name/rwkv")
    with pytest.raises(
        StorageError, match=f"^{variable} is '~nobody-of-this-name/rwkv', the home of a user who is"
    ):
        FOLDERS[variable]()


def test_a_state_is_saved_where_the_data_folder_cannot_be(rwkv, monkeypatch, tmp_path, tiny_model):
    (tmp_path / "file").touch()
    monkeypatch.setenv("RWKV_DATA_DIR", str(tmp_path / "file"))
    state = tmp_path / "s.safetensors"
    assert rwkv("state", "save", state, "-p", "a", "-m", tiny_model, "-q").code == 0
    assert state.stat().st_mode & 0o777 == 0o600
    assert "cannot write" in rwkv("state", "save", "named", "-p", "a", "-m", tiny_model, "-q").sentence
