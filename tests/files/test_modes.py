"""Who may read what is written: private text nobody else, and what is replaced those who could before."""

import os
import stat

import pytest

from rwkv_cli.files.atomic import replacing
from rwkv_cli.sessions import state_store

pytestmark = pytest.mark.skipif(os.name == "nt", reason="modes are others there")


@pytest.fixture(autouse=True)
def umask():
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(("private", "expected"), [(True, 0o600), (False, 0o644)])
def test_a_new_file(tmp_path, private, expected):
    with replacing(tmp_path / "x", private=private) as temporary:
        temporary.write_text("text")
        assert mode(temporary) == expected
    assert mode(tmp_path / "x") == expected


@pytest.mark.parametrize("before", [0o600, 0o640, 0o666])
@pytest.mark.parametrize("private", [True, False])
def test_what_replaces_another_is_read_by_the_same(tmp_path, before, private):
    (tmp_path / "x").touch()
    (tmp_path / "x").chmod(before)
    with replacing(tmp_path / "x", private=private) as temporary:
        temporary.write_text("text")
    assert mode(tmp_path / "x") == before


def test_what_a_link_points_to_is_replaced_and_not_the_link(tmp_path):
    (tmp_path / "real").write_text("before")
    (tmp_path / "real").chmod(0o640)
    (tmp_path / "link").symlink_to("real")
    with replacing(tmp_path / "link", private=True) as temporary:
        temporary.write_text("after")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "after"
    assert mode(tmp_path / "real") == 0o640


def test_states_are_private_and_stay_as_they_were_made(rwkv, tiny_model, tmp_path):
    for target in ("s", tmp_path / "s.safetensors"):
        command = ("generate", "-m", tiny_model, "-p", "secret", "-n", 2, "-q", "--save-state", target)
        assert rwkv(*command).code == 0
        path = state_store.find(str(target))
        assert mode(path) == 0o600
        path.chmod(0o640)
        assert rwkv(*command, "--force").code == 0
        assert mode(path) == 0o640


def test_a_model_file_that_is_replaced_stays_private(rwkv, tiny_model, tmp_path):
    target = tmp_path / "x.safetensors"
    assert rwkv("quantize", tiny_model, target, "--type", "int4").code == 0
    assert mode(target) == 0o644
    target.chmod(0o600)
    assert rwkv("quantize", tiny_model, target, "--type", "int4", "--force").code == 0
    assert mode(target) == 0o600
