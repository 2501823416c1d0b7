"""A cache of the hub that is another user's, read only, or no folder at all: downloads need none of it."""

import os
from pathlib import Path

import pytest
from huggingface_hub import constants

from rwkv_cli.catalog import hub as downloads
from rwkv_cli.catalog import reference
from rwkv_cli.catalog.hub import client, download
from rwkv_cli.errors import StorageError

DATA = b"a model" * 1000
pytestmark = pytest.mark.usefixtures("hub")
KINDS = (
    "a file",
    "below a file",
    "denied",
    pytest.param("read only", marks=pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")),
)


@pytest.fixture
def hub(local_hub):
    local_hub.files["owner/repo"] = {"model.pth": DATA}
    return local_hub


@pytest.fixture
def spoil(monkeypatch, tmp_path):
    """`spoil(kind)` has the cache of the hub be of that kind, with what it holds."""

    def call(kind):
        home = Path(constants.HF_ASSETS_CACHE).parent
        file = tmp_path / "file"
        file.touch()
        if kind == "denied":
            access = os.access
            monkeypatch.setattr(
                download.os,
                "access",
                lambda path, mode: not Path(path).is_relative_to(home) and access(path, mode),
            )
        elif kind == "read only":
            for folder in (home, *home.rglob("*")):
                if folder.is_dir():
                    folder.chmod(0o500)
        else:
            place = file if kind == "a file" else file / "x"
            for name in ("HF_ASSETS_CACHE", "HF_HUB_CACHE", "HF_TOKEN_PATH"):
                monkeypatch.setattr(constants, name, str(place / name if kind == "below a file" else place))

    yield call
    home = tmp_path / "hf"
    for folder in (home, *home.rglob("*")):
        if folder.is_dir():
            folder.chmod(0o700)


def found():
    return downloads.find(reference.parse("hf:owner/repo"), lambda _: None)


def fetched(note=lambda _: None):
    return downloads.fetch(found(), lambda *_: None, note)


@pytest.mark.parametrize("kind", KINDS)
def test_downloads_go_into_our_own_cache(hub, spoil, tmp_path, kind):
    (tmp_path / "hf" / "assets").mkdir(parents=True)
    spoil(kind)
    assert download.folder_of(found()) == tmp_path / "cache"
    assert download.missing_bytes(found()) == len(DATA)
    result = fetched()
    assert result.path.read_bytes() == DATA
    assert result.path.is_relative_to(tmp_path / "cache" / "downloads")
    assert download.missing_bytes(found()) == 0
    notes = []
    kept = downloads.keep(result, notes.append)
    if kind != "denied":  # that is an answer about our own folder alone
        assert kept == result
        assert notes[0].startswith(
            f"model.pth of owner/repo stays in {result.path.parent}: it cannot be put into"
        )
    downloads.discard(kept)
    assert not result.path.exists()
    assert len(hub.gets()) == 1


@pytest.mark.parametrize("kind", ["denied", KINDS[-1]])
@pytest.mark.parametrize("is_offline", [False, True])
def test_what_is_cached_is_used(hub, spoil, monkeypatch, kind, is_offline):
    kept = downloads.keep(fetched(), lambda note: pytest.fail(note))
    spoil(kind)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", is_offline)
    assert fetched().path == kept.path
    assert len(hub.gets()) == 1


def test_a_damaged_file_that_cannot_be_removed_is_downloaded(monkeypatch):
    kept = downloads.keep(fetched(), lambda note: pytest.fail(note))
    kept.path.write_bytes(DATA[:-1] + b"x")

    def refuse(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(download.cache, "remove_damaged", refuse)
    notes = []
    assert fetched(notes.append).path.read_bytes() == DATA
    assert notes[-1] == (
        "model.pth of owner/repo in the cache can be neither used nor removed (permission denied): downloading it"
    )


def test_where_nothing_can_be_written_the_variable_is_named(spoil, monkeypatch, tmp_path):
    spoil("a file")
    monkeypatch.setenv("RWKV_CACHE_DIR", str(tmp_path / "file" / "c"))
    with pytest.raises(StorageError) as raised:
        fetched()
    assert str(raised.value) == (
        f"downloads cannot be written to {tmp_path / 'file' / 'c'} (not a directory): "
        "set RWKV_CACHE_DIR to a folder that you may write to"
    )


@pytest.mark.parametrize("error", [PermissionError(13, "x"), NotADirectoryError(20, "x")])
def test_a_token_of_another_user_is_not_ours(hub, monkeypatch, error):
    token = Path("/somewhere/token")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(token))
    read = Path.read_text

    def refuse(path, *arguments, **options):
        if path == token:
            raise error
        return read(path, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", refuse)
    client.check_token()
    assert fetched().path.read_bytes() == DATA
    assert not any("authorization" in {name.lower() for name in headers} for _, _, headers in hub.requests)


def test_the_folder_of_another_user_is_not_searched_for_left_overs(spoil, rwkv, tmp_path):
    assets = Path(constants.HF_ASSETS_CACHE)
    assert assets / "rwkv" not in download.unfinished_folders(tmp_path)
    (assets / "rwkv").mkdir(parents=True, exist_ok=True)
    assert assets / "rwkv" in download.unfinished_folders(tmp_path)
    spoil("denied")
    assert assets / "rwkv" not in download.unfinished_folders(tmp_path)
    assert rwkv("cache").code == 0
