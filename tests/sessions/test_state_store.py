"""The store: names that stay inside their folder, and locks that tell who holds them."""

import os
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from helpers.saved import some_state
from hypothesis import example, given
from hypothesis import strategies as st

from rwkv_cli.errors import StateError, StorageError, UsageError
from rwkv_cli.sessions import state_file, state_store


def keep(name, seed=0):
    """Save a state under a name."""
    path = state_store.resolve(name)
    state_store.prepare(path)
    state_file.save(path, some_state(seed))
    return path


# ------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    "name", ["book", "a b.c_d-e", "_x", "7", "Ünïcödé", "雪", "हिन्दी", "v1.2", "a" * 100]
)
def test_good_names(name):
    path = state_store.resolve(name)
    assert path.parent == state_store.folder()
    assert keep(name) == path
    assert state_store.names() == [unicodedata.normalize("NFC", name)]
    assert state_store.find(name) == path
    assert state_store.name_of(path) == unicodedata.normalize("NFC", name)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "the name is empty"),
        ("a" * 101, "at most 100 characters"),
        ("雪" * 90, "and 200 bytes"),
        (".hidden", "names begin with"),
        ("..", "names begin with"),
        ("-rf", "names begin with"),
        (" a", "names begin with"),
        ("a ", "do not end with a space or dot"),
        ("a.", "do not end with a space or dot"),
        ("\u0301a", "names begin with"),
        ("a\nb", "may contain only letters"),
        ("a\x00b", "may contain only letters"),
        ("a:b", "names may contain only letters, digits, spaces and . - _ (found ':')"),
        ("a*b", "(found '*')"),
        ("\x1b[31m", "may contain only letters"),
        ("a\u202eb", "may contain only letters"),
        ("a\udcffb", "may contain only letters"),
        ("con", "reserved by Windows"),
        ("NUL.txt", "reserved by Windows"),
        ("com1", "reserved by Windows"),
    ],
)
def test_bad_names(name, said):
    with pytest.raises(UsageError, match=re.escape(said)) as error:
        state_store.resolve(name)
    assert "\n" not in str(error.value)


@given(st.text(max_size=120))
@example("../../etc/passwd")
@example("..\\..\\x")
@example("\u2024\u2024")  # dots that NFKC would make real ones
@example("a/../b.safetensors")
def test_no_name_leaves_the_folder(name):
    try:
        path = state_store.resolve(name)
    except UsageError:
        return
    if state_store.is_path(name):
        return  # a path is the user's own
    assert path.parent == state_store.folder()
    assert path.resolve().parent == state_store.folder().resolve()
    assert path.name not in (".", "..")
    assert len(os.fsencode(path.name)) <= 255


def test_paths_are_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert state_store.resolve("a.safetensors") == Path("a.safetensors")
    assert state_store.resolve("./a") == Path("a")
    assert state_store.resolve("~/a") == Path.home() / "a"
    assert state_store.resolve("a").parent == state_store.folder()
    state_file.save(Path("a"), some_state())
    assert state_store.resolve("a") == Path(
        "a"
    )  # a state file that is here, and nothing of that name in the store
    keep("./a")
    path = state_store.folder() / "a.safetensors"
    state_store.prepare(path)
    state_file.save(path, some_state())
    assert state_store.resolve("a") == path
    Path("text").write_text("no state")
    assert state_store.resolve("text").parent == state_store.folder()


def test_names_are_found_in_any_case_and_spelling():
    path = keep("Book of Ä")
    assert state_store.resolve("book of ä") == path
    assert state_store.resolve("book of A\u0308") == path
    assert keep("BOOK OF Ä") == path
    assert state_store.names() == ["Book of Ä"]


def test_a_file_in_another_spelling_is_found():
    state_store.prepare(path := state_store.folder() / (unicodedata.normalize("NFD", "ä") + ".safetensors"))
    state_file.save(path, some_state())
    assert state_store.names() == ["ä"]
    assert state_store.find("ä").samefile(path)


def test_what_is_not_there():
    with pytest.raises(StateError, match="unknown state book: `rwkv state list`"):
        state_store.find("book")
    keep("my-book")
    with pytest.raises(StateError, match=r"unknown state my_book; did you mean my-book\?"):
        state_store.find("my_book")
    with pytest.raises(StateError, match=r"there is no state file x"):
        state_store.find("./x")


def test_only_names_are_listed():
    assert state_store.names() == []
    for name in ("b", "A", "c"):
        keep(name)
    for name in (".hidden.safetensors", "a:b.safetensors", "notes.txt", ".b.safetensors.tmp"):
        (state_store.folder() / name).touch()
    assert state_store.names() == ["A", "b", "c"]


@pytest.mark.skipif(sys.platform == "win32", reason="has other permissions")
def test_nobody_else_reads_the_store():
    keep("a")
    assert state_store.folder().stat().st_mode & 0o777 == 0o700


def test_a_data_folder_that_is_a_file(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("RWKV_DATA_DIR", str(tmp_path / "file"))
    assert state_store.names() == []
    with pytest.raises(StorageError):
        state_store.prepare(state_store.resolve("a"))
    with pytest.raises(StorageError), state_store.lock(state_store.resolve("a")):
        pass


# -------------------------------------------------------------------------------------------- renamed, removed


def test_rename():
    before = keep("a").read_bytes()
    path = state_store.rename("a", "b c")
    assert (state_store.names(), path.read_bytes()) == (["b c"], before)
    assert state_store.rename("B C", "B c").exists()
    assert state_store.names() == ["B c"]
    keep("d")
    with pytest.raises(UsageError, match=r"a state named B c exists: .*rwkv state rm 'B c'"):
        state_store.rename("d", "b C")
    with pytest.raises(StateError, match="unknown state missing"):
        state_store.rename("missing", "e")
    with pytest.raises(UsageError, match="may contain only letters"):
        state_store.rename("d", "../e")
    assert state_store.names() == ["B c", "d"]


def test_remove(tmp_path):
    keep("a")
    state_store.remove("A")
    assert state_store.names() == []
    with pytest.raises(StateError, match="unknown state a"):
        state_store.remove("a")
    (tmp_path / "precious.safetensors").write_text("precious")
    with pytest.raises(StateError, match="is not a state file, so it is not deleted"):
        state_store.remove(str(tmp_path / "precious.safetensors"))
    state_file.save(tmp_path / "b", some_state())
    state_store.remove(str(tmp_path / "b"))
    assert list(tmp_path.iterdir()) == [tmp_path / "precious.safetensors"]


def test_a_damaged_state_can_be_removed():
    keep("a").write_bytes(b"damaged")
    state_store.remove("a")
    assert state_store.names() == []


# ------------------------------------------------------------------------------------------------------- locks

HOLDER = """
import sys
from rwkv_cli.sessions import state_store
with state_store.lock(state_store.resolve(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def assert_is_held(path, by):
    with (
        pytest.raises(StateError, match=rf"is open in another rwkv \(process {by}\)"),
        state_store.lock(path),
    ):
        pass


def test_a_lock_tells_who_has_it():
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, "A"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        for _ in range(2):  # the second one to ask takes nothing away
            assert_is_held(state_store.resolve("a"), holder.pid)
        with pytest.raises(StateError, match="is open in another rwkv"):
            state_store.remove(str(keep("a")))
        with state_store.lock(state_store.resolve("b")):
            pass
    finally:
        holder.kill()
        holder.wait()
    with state_store.lock(state_store.resolve("a")):  # whoever was killed has given up
        pass


def test_a_lock_is_for_one_at_a_time_also_within_a_program(tmp_path):
    path = tmp_path / "a.safetensors"
    with state_store.lock(path):
        assert_is_held(tmp_path / "." / "a.safetensors", os.getpid())
    with state_store.lock(path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_rename_and_remove_wait_for_nobody():
    keep("a"), keep("b")
    with state_store.lock(state_store.resolve("a")):
        for act in (lambda: state_store.rename("a", "c"), lambda: state_store.remove("a")):
            with pytest.raises(StateError, match="is open in another rwkv"):
                act()
    with state_store.lock(state_store.resolve("c")), pytest.raises(StateError, match="the state c is open"):
        state_store.rename("a", "c")
    assert state_store.names() == ["a", "b"]
