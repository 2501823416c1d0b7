"""The folders of the user."""

import errno
from pathlib import Path

import pytest

from rwkv_cli import paths
from rwkv_cli.errors import StorageError
from rwkv_cli.files.atomic import storage_error

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


@pytest.mark.parametrize("variable", FOLDERS)
def test_a_file_that_cannot_be_written_names_the_folder_and_its_variable(monkeypatch, tmp_path, variable):
    monkeypatch.setenv(variable, str(tmp_path / "here"))
    path = FOLDERS[variable]() / "inside" / "file"
    error = storage_error(path, PermissionError(errno.EACCES, "Permission denied"))
    assert (
        str(error)
        == f"cannot write {path}: no permission to write in {path.parent}; {variable} sets another folder"
    )
    full = storage_error(path, OSError(errno.ENOSPC, "No space left on device"), 1000)
    assert str(full).endswith(
        f"file: no space left on the disk (needs 1.0 kB); {variable} sets another folder"
    )


def test_a_file_of_the_user_has_no_variable(tmp_path):
    path = tmp_path / "file"
    assert str(storage_error(path, OSError(errno.EIO, "Input/output error"))) == (
        f"cannot write {path}: input/output error"
    )


def test_the_folder_of_the_hub_has_the_variable_of_the_hub(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert paths.variable_of(tmp_path / "hub" / "x") == "HF_HOME"
    monkeypatch.setenv("HF_HOME", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert paths.variable_of(tmp_path / "xdg" / "huggingface" / "x") == "HF_HOME"
    assert paths.variable_of(tmp_path / "hub" / "x") is None


def test_no_home_has_no_variable(monkeypatch, tmp_path):
    for variable in FOLDERS:
        monkeypatch.setenv(variable, "~nobody-of-this-name/rwkv")
    assert paths.variable_of(tmp_path / "x") is None
