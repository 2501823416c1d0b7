"""The store: names that stay inside their folder, and locks that tell who holds them."""

import os
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from test_statefile import some_state

from rwkv_cli import statefile, store
from rwkv_cli.errors import StateError, StorageError, UsageError


def keep(name, seed=0):
    """Save a state under a name."""
    path = store.resolve(name)
    store.prepare(path)
    statefile.save(path, some_state(seed))
    return path


# ------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    "name", ["book", "a b.c_d-e", "_x", "7", "Ünïcödé", "雪", "हिन्दी", "v1.2", "a" * 100]
)
def test_good_names(name):
    path = store.resolve(name)
    assert path.parent == store.folder()
    assert keep(name) == path
    assert store.names() == [unicodedata.normalize("NFC", name)]
    assert store.find(name) == path
    assert store.name_of(path) == unicodedata.normalize("NFC", name)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "the name is empty"),
        ("a" * 101, "at most 100 characters"),
        ("雪" * 90, "and 200 bytes"),
        (".hidden", "begins with"),
        ("..", "begins with"),
        ("-rf", "begins with"),
        (" a", "begins with"),
        ("a ", "ends with none of space and dot"),
        ("a.", "ends with none of space and dot"),
        ("\u0301a", "begins with"),
        ("a\nb", "is no letter"),
        ("a\x00b", "is no letter"),
        ("a:b", "':' is no letter"),
        ("a*b", "'*' is no letter"),
        ("\x1b[31m", "is no letter"),
        ("a\u202eb", "is no letter"),
        ("a\udcffb", "is no letter"),
        ("con", "Windows has a device"),
        ("NUL.txt", "Windows has a device"),
        ("com1", "Windows has a device"),
    ],
)
def test_bad_names(name, said):
    with pytest.raises(UsageError, match=re.escape(said)) as error:
        store.resolve(name)
    assert "\n" not in str(error.value)


@given(st.text(max_size=120))
@example("../../etc/passwd")
@example("..\\..\\x")
@example("\u2024\u2024")  # dots that NFKC would make real ones
@example("a/../b.safetensors")
def test_no_name_leaves_the_folder(name):
    try:
        path = store.resolve(name)
    except UsageError:
        return
    if store.is_path(name):
        return  # a path is the user's own
    assert path.parent == store.folder()
    assert path.resolve().parent == store.folder().resolve()
    assert path.name not in (".", "..")
    assert len(os.fsencode(path.name)) <= 255


def test_paths_are_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert store.resolve("a.safetensors") == Path("a.safetensors")
    assert store.resolve("./a") == Path("a")
    assert store.resolve("~/a") == Path.home() / "a"
    assert store.resolve("a").parent == store.folder()
    statefile.save(Path("a"), some_state())
    assert store.resolve("a") == Path("a")  # a state file that is here, and nothing of that name in the store
    keep("./a")
    path = store.folder() / "a.safetensors"
    store.prepare(path)
    statefile.save(path, some_state())
    assert store.resolve("a") == path
    Path("text").write_text("no state")
    assert store.resolve("text").parent == store.folder()


def test_names_are_found_in_any_case_and_spelling():
    path = keep("Book of Ä")
    assert store.resolve("book of ä") == path
    assert store.resolve("book of A\u0308") == path
    assert keep("BOOK OF Ä") == path
    assert store.names() == ["Book of Ä"]


def test_a_file_in_another_spelling_is_found():
    store.prepare(path := store.folder() / (unicodedata.normalize("NFD", "ä") + ".safetensors"))
    statefile.save(path, some_state())
    assert store.names() == ["ä"]
    assert store.find("ä").samefile(path)


def test_what_is_not_there():
    with pytest.raises(StateError, match="there is no state named book: rwkv state list"):
        store.find("book")
    keep("my-book")
    with pytest.raises(StateError, match=r"there is no state named my_book; did you mean my-book\?"):
        store.find("my_book")
    with pytest.raises(StateError, match=r"there is no state file x"):
        store.find("./x")


def test_only_names_are_listed():
    assert store.names() == []
    for name in ("b", "A", "c"):
        keep(name)
    for name in (".hidden.safetensors", "a:b.safetensors", "notes.txt", ".b.safetensors.tmp"):
        (store.folder() / name).touch()
    assert store.names() == ["A", "b", "c"]


@pytest.mark.skipif(sys.platform == "win32", reason="has other permissions")
def test_nobody_else_reads_the_store():
    keep("a")
    assert store.folder().stat().st_mode & 0o777 == 0o700


def test_a_data_folder_that_is_a_file(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("RWKV_DATA_DIR", str(tmp_path / "file"))
    assert store.names() == []
    with pytest.raises(StorageError):
        store.prepare(store.resolve("a"))
    with pytest.raises(StorageError), store.lock(store.resolve("a")):
        pass


# -------------------------------------------------------------------------------------------- renamed, removed


def test_rename():
    before = keep("a").read_bytes()
    path = store.rename("a", "b c")
    assert (store.names(), path.read_bytes()) == (["b c"], before)
    assert store.rename("B C", "B c").exists()
    assert store.names() == ["B c"]
    keep("d")
    with pytest.raises(UsageError, match="there is a state named B c already"):
        store.rename("d", "b C")
    with pytest.raises(StateError, match="there is no state named missing"):
        store.rename("missing", "e")
    with pytest.raises(UsageError, match="is no letter"):
        store.rename("d", "../e")
    assert store.names() == ["B c", "d"]


def test_remove(tmp_path):
    keep("a")
    store.remove("A")
    assert store.names() == []
    with pytest.raises(StateError, match="there is no state named a"):
        store.remove("a")
    (tmp_path / "precious.safetensors").write_text("precious")
    with pytest.raises(StateError, match="is no state file: it stays"):
        store.remove(str(tmp_path / "precious.safetensors"))
    statefile.save(tmp_path / "b", some_state())
    store.remove(str(tmp_path / "b"))
    assert list(tmp_path.iterdir()) == [tmp_path / "precious.safetensors"]


def test_a_damaged_state_can_be_removed():
    keep("a").write_bytes(b"damaged")
    store.remove("a")
    assert store.names() == []


# ------------------------------------------------------------------------------------------------------- locks

HOLDER = """
import sys
from rwkv_cli import store
with store.lock(store.resolve(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def assert_is_held(path, by):
    with pytest.raises(StateError, match=rf"is open in another rwkv \(process {by}\)"), store.lock(path):
        pass


def test_a_lock_tells_who_has_it():
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, "A"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        for _ in range(2):  # the second one to ask takes nothing away
            assert_is_held(store.resolve("a"), holder.pid)
        with pytest.raises(StateError, match="is open in another rwkv"):
            store.remove(str(keep("a")))
        with store.lock(store.resolve("b")):
            pass
    finally:
        holder.kill()
        holder.wait()
    with store.lock(store.resolve("a")):  # whoever was killed has given up
        pass


def test_a_lock_is_for_one_at_a_time_also_within_a_program(tmp_path):
    path = tmp_path / "a.safetensors"
    with store.lock(path):
        assert_is_held(tmp_path / "." / "a.safetensors", os.getpid())
    with store.lock(path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_rename_and_remove_wait_for_nobody():
    keep("a"), keep("b")
    with store.lock(store.resolve("a")):
        for act in (lambda: store.rename("a", "c"), lambda: store.remove("a")):
            with pytest.raises(StateError, match="is open in another rwkv"):
                act()
    with store.lock(store.resolve("c")), pytest.raises(StateError, match="the state c is open"):
        store.rename("a", "c")
    assert store.names() == ["a", "b"]
