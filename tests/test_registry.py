import re
from pathlib import Path

import pytest

from rwkv_cli import paths, registry
from rwkv_cli.errors import CheckpointError, UsageError
from rwkv_cli.registry import Entry, entries, locate


def test_every_entry_is_whole():
    assert registry.DEFAULT in entries()
    for entry in entries().values():
        assert entry.description
        if entry.repository is None:
            assert entry.name == registry.DEFAULT
            continue
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", entry.repository)
        assert entry.file is not None
        assert entry.file.endswith(".pth")
        assert entry.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", entry.sha256)
        assert entry.bytes is None or entry.bytes > 100e6


def test_names_and_aliases_are_distinct():
    models = {entry.name: entry for entry in entries().values()}
    names = [name for entry in models.values() for name in (entry.name, *entry.aliases)]
    assert len(names) == len(set(names)) == len(entries())
    assert all(name == name.lower() for name in names)


def test_the_format_of_the_file(tmp_path, monkeypatch):
    file = tmp_path / "models.toml"
    file.write_text(
        '[small]\ndescription = "d"\nrepository = "o/r"\nfile = "f.pth"\nbytes = 1_000\naliases = ["s"]\n'
    )
    monkeypatch.setattr(paths, "registry_file", lambda: file)
    entries.cache_clear()
    try:
        expected = Entry("small", "d", "o/r", "f.pth", 1000, None, ("s",))
        assert entries() == {"small": expected, "s": expected}
    finally:
        entries.cache_clear()


@pytest.mark.parametrize("name", [None, "gosling", "Gosling", "default"])
def test_the_model_that_comes_with_the_program(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert locate(name) == paths.EMBEDDED_MODEL
    assert paths.EMBEDDED_MODEL.is_file()


def test_a_path_comes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("gosling").touch()
    assert locate("gosling") == Path("gosling")
    assert locate(tmp_path / "gosling") == tmp_path / "gosling"
    assert locate(str(tmp_path)) == tmp_path


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "x.pth").touch()
    assert locate("~/x.pth") == tmp_path / "x.pth"


@pytest.mark.parametrize("name", ["world-0.1b", "0.1b", "WORLD-0.1B"])
def test_a_known_model_that_is_not_here_says_where_it_is(name):
    with pytest.raises(CheckpointError) as caught:
        locate(name)
    message = str(caught.value)
    assert "the model world-0.1b is not on this machine" in message
    assert "RWKV-x070-World-0.1B-v2.8-20241210-ctx4096.pth" in message
    assert "https://huggingface.co/BlinkDL/rwkv-7-world" in message


@pytest.mark.parametrize(
    ("name", "near"), [("goslin", "gosling"), ("wolrd-0.1b", "world-0.1b"), ("G1-0.1", "g1-0.1b")]
)
def test_a_name_with_a_slip_is_put_right(name, near):
    with pytest.raises(UsageError, match=f"there is no model named {name}; did you mean {near}"):
        locate(name)


def test_a_name_like_no_other_gets_the_list():
    with pytest.raises(
        UsageError, match=r"no model named xyzzy: give a path or one of .*gosling.*world-2\.9b"
    ):
        locate("xyzzy")


@pytest.mark.parametrize("path", ["model.pth", "folder/model", "/no/where", "./gosling"])
def test_what_looks_like_a_path_is_a_missing_file(path):
    with pytest.raises(CheckpointError, match=f"there is no file {path}"):
        locate(path)
    if "/" not in path or path.startswith("/"):
        with pytest.raises(CheckpointError, match=f"there is no file {path}"):
            locate(Path(path))
