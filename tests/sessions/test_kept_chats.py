"""The last chats without a name: their slots, their locks, and which of them is the last."""

import contextlib
import os
import stat

import pytest
from helpers.talker import talking

from rwkv_cli.errors import StorageError, UsageError
from rwkv_cli.sessions import kept_chats, state_file
from rwkv_cli.sessions.autosave import AutosavedConversation, Choices, open_conversation
from rwkv_cli.sessions.conversation import Conversation
from rwkv_cli.sessions.kept_chats import MOST, KeptChat


def said(*messages):
    """A conversation with these messages."""
    conversation = Conversation(talking(template="dialogue"), max_tokens=4, seed=1)
    for message in messages:
        list(conversation.ask(message))
    return conversation


def keep(*messages):
    """Keep a chat with these messages, and leave it: its file."""
    chat = KeptChat()
    chat.write(said(*messages))
    path = chat.path
    chat.leave()
    return path


def users(path):
    return [turn["user"] for turn in state_file.load(path).conversation["turns"]]


def opened(**options):
    options = {"kept": KeptChat()} | options
    return open_conversation(lambda _: talking(template="dialogue"), Choices(max_tokens=4), **options)


def test_a_chat_is_kept_for_its_user_alone():
    path = keep("hello", "how are you?")
    assert users(path) == ["hello", "how are you?"]
    assert path.parent == kept_chats.folder()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_nothing_is_kept_of_a_chat_in_which_nothing_was_said():
    chat = KeptChat()
    chat.write(said())
    assert chat.path is None
    assert not kept_chats.folder().exists()


def test_what_was_taken_back_is_not_kept():
    chat = KeptChat()
    conversation = said("hello")
    chat.write(conversation)
    conversation.undo()
    chat.write(conversation)
    assert kept_chats.kept() == []
    chat.write(said("again"))
    assert [users(path) for path in kept_chats.kept()] == [["again"]]
    chat.release()


def test_the_oldest_gives_way_and_the_last_comes_first():
    for number in range(MOST + 3):
        path = keep(f"chat {number}")
        os.utime(path, ns=(number, number))
    found = [users(path) for path in kept_chats.kept()]
    assert found == [[f"chat {number}"] for number in reversed(range(3, MOST + 3))]


def test_chats_at_the_same_time_have_files_of_their_own():
    chats = [KeptChat() for _ in range(MOST + 2)]
    for number, chat in enumerate(chats):
        chat.write(said(f"chat {number}"))
    assert len({chat.path for chat in chats}) == len(chats)
    assert [users(chat.path) for chat in chats] == [[f"chat {number}"] for number in range(len(chats))]
    with pytest.raises(UsageError, match=r"^the last chat is still open in another rwkv"):
        KeptChat().open_last()
    first = chats[0].path
    for chat in reversed(chats):
        chat.leave()
        assert KeptChat().open_last()
    assert kept_chats.kept()[0] == first


def test_one_that_is_open_is_passed_over():
    older, newer = KeptChat(), KeptChat()
    older.write(said("older"))
    newer.write(said("newer"))
    path = older.path
    older.leave()
    newer.write(said("newer", "and newest"))
    again = KeptChat()
    assert again.open_last() == path
    for chat in (newer, again):
        chat.release()


def test_no_lock_is_left_for_each_chat(tmp_path, monkeypatch):
    monkeypatch.setenv("RWKV_DATA_DIR", str(tmp_path))
    for _ in range(2 * MOST):
        keep("hello")
    assert len(list((tmp_path / "locks").iterdir())) <= MOST


def test_what_others_put_there_is_left_alone():
    keep("hello")
    other = kept_chats.folder() / "notes.safetensors"
    other.write_text("mine")
    for _ in range(2 * MOST):
        keep("hello")
    assert other.read_text() == "mine"
    assert other not in kept_chats.kept()


def test_the_last_chat_goes_on_in_its_file():
    path = keep("one")
    with contextlib.closing(opened(last=True)) as session:
        assert [turn.user for turn in session.conversation.turns] == ["one"]
        list(session.conversation.ask("two"))
        session.keep()
    assert users(path) == ["one", "two"]
    assert kept_chats.kept() == [path]


def test_without_a_place_to_keep_it_the_last_chat_stays_as_it_was():
    path = keep("one")
    before = path.read_bytes()
    with contextlib.closing(opened(last=True, kept=None)) as session:
        list(session.conversation.ask("two"))
        session.keep()
        assert not session.is_saved
        assert KeptChat().open_last() == path  # nothing holds it
    assert path.read_bytes() == before


def test_there_may_be_no_last_chat():
    with pytest.raises(UsageError, match=r"^there is no chat to continue"):
        opened(last=True)


def test_a_chat_that_gets_a_name_is_kept_under_that_alone():
    with contextlib.closing(opened()) as session:
        list(session.conversation.ask("one"))
        session.keep()
        assert session.is_saved
        path = session.save("talk")
        assert (kept_chats.kept(), users(path)) == ([], ["one"])


def test_a_fork_leaves_the_chat_that_it_came_from():
    with contextlib.closing(opened()) as session:
        list(session.conversation.ask("one"))
        session.keep()
        session.fork("branch")
        list(session.conversation.ask("two"))
        session.keep()
    assert [users(path) for path in kept_chats.kept()] == [["one"]]


def test_a_disk_that_is_full_is_told_once(monkeypatch):
    def full(path, _):
        raise StorageError(f"cannot write {path}: no space left on the disk")

    session = AutosavedConversation(said("one"), kept=KeptChat())
    monkeypatch.setattr(state_file, "save", full)
    with pytest.raises(StorageError, match=r"^this chat cannot be kept: cannot write .*no space left"):
        session.keep()
    session.keep()
    assert not session.is_saved
