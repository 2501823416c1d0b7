"""Nothing that was said is lost: the last chat comes back, and what ends a program in an answer keeps it."""

import re
import signal
import stat
import subprocess
import sys

import pytest
from conftest import RWKV

from rwkv_cli.sessions import kept_chats, state_file, state_store

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs pseudo-terminals and signals")

# A prompt has been drawn.
READY = re.escape("\x1b[?2004h") + r"[\s\S]*" + re.escape("\x1b[?25h")
COMES_BACK = "(to come back: rwkv chat --continue)"
# Slow enough to be interrupted: the reference backend.
SLOW = ("--template", "story", "-d", "reference", "--seed", "1", "-n", "2000")


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    """A data folder of its own."""
    monkeypatch.setenv("RWKV_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


def say(it, message, place=0):
    """Send a message, and wait for the end of its answer."""
    place = it.wait_for(READY, place)
    it.send(f"{message}\r")
    return it.wait_for(READY, place)


def turns(path):
    return state_file.load(path).conversation["turns"]


def messages(path):
    return [turn["user"] for turn in turns(path)]


def leftovers(folder):
    """Temporary files."""
    return list(folder.rglob("*.tmp"))


def plain(text):
    """What is left of output without escape sequences, line ends and the wrapping of lines."""
    return "".join(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).split())


# --------------------------------------------------------------------------------------------------- the last chat


def test_the_last_chat_comes_back(terminal):
    with terminal("chat", "--seed", "1") as it:
        say(it, "hello")
        it.send("\x04")
        assert it.finish() == 0
        assert plain(COMES_BACK) in plain(it.shown)
    (path,) = kept_chats.kept()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with terminal("chat", "--continue") as it:
        it.wait_for(r"last chat: 1 turn")
        say(it, "bye")
        it.send("\x04")
        assert it.finish() == 0
        assert "hello" in it.shown
    assert kept_chats.kept() == [path]
    assert messages(path) == ["hello", "bye"]


def test_the_last_chat_comes_back_with_its_form(terminal):
    with terminal("chat", "--seed", "1") as it:
        it.wait_for(READY)
        it.send("/set choice yes|no\r")
        say(it, "hello", it.wait_for("choice: yes"))
        it.send("\x04")
        assert it.finish() == 0
    with terminal("chat", "--continue") as it:
        say(it, "bye")
        it.send("\x04")
        assert it.finish() == 0
        assert plain("Answers follow its choice: /set choice default ends that.") in plain(it.shown)
    (path,) = kept_chats.kept()
    assert messages(path) == ["hello", "bye"]
    assert {turn["text"].strip() for turn in turns(path)} <= {"yes", "no"}


def test_nothing_was_said_and_nothing_is_kept(terminal, data):
    with terminal("chat") as it:
        it.wait_for(READY)
        it.send("\x04")
        assert it.finish() == 0
        assert "come back" not in it.shown
    assert not (data / "chats").exists()


@pytest.mark.parametrize(
    ("arguments", "variables"),
    [(["--no-history"], {}), ([], {"RWKV_HISTORY": "off"})],
    ids=["option", "setting"],
)
def test_nothing_is_kept_where_that_is_not_wanted(terminal, data, arguments, variables):
    with terminal("chat", *arguments, **variables) as it:
        say(it, "hello")
        it.send("\x04")
        assert it.finish() == 0
        assert plain("(not saved;") in plain(it.shown)
    assert not (data / "chats").exists()
    assert not (data / "history").exists()


def test_the_command_of_a_named_chat_comes_back(terminal):
    with terminal("chat", "--name", "my talk") as it:
        say(it, "hello")
        it.send("/quit\r")
        assert it.finish() == 0
        assert plain("(to come back: rwkv chat --name 'my talk')") in plain(it.shown)
    assert kept_chats.kept() == []


def test_two_chats_at_once_keep_both_and_the_one_left_last_is_the_last(terminal):
    with terminal("chat") as one, terminal("chat") as other:
        say(one, "first window")
        place = say(other, "second window")
        other.send("\x04")
        other.wait_for("come back", place)
        assert other.finish() == 0
        with terminal("chat", "--continue") as again:  # as was promised, although the first one is open
            again.wait_for("second window")
            again.send("\x04")
            assert again.finish() == 0
        one.send("\x04")
        assert one.finish() == 0
    assert [messages(path) for path in kept_chats.kept()] == [["first window"], ["second window"]]


def test_what_a_script_says_is_not_the_last_chat(rwkv, data):
    assert rwkv("chat", "-q", stdin=b"hello\n").code == 0
    assert not (data / "chats").exists()


def test_a_script_may_continue_the_last_chat(rwkv, terminal):
    with terminal("chat", "-n", "5") as it:
        say(it, "hello")
        it.send("\x04")
        assert it.finish() == 0
    assert rwkv("chat", "-c", stdin=b"bye\n").code == 0
    assert [messages(path) for path in kept_chats.kept()] == [["hello", "bye"]]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "there is no chat to continue: none without a name has been kept"),
        (("--name", "x"), "--continue"),
        (("--state", "x"), "--continue"),
    ],
)
def test_what_cannot_be_continued_is_one_sentence(rwkv, arguments, said):
    result = rwkv("chat", "--continue", *arguments, stdin=b"")
    assert result.code == 2
    assert said in result.sentence


def test_the_list_of_states_tells_of_kept_chats(rwkv, terminal):
    with terminal("chat", "-n", "5") as it:
        say(it, "hello")
        it.send("\x04")
        assert it.finish() == 0
    result = rwkv("state", "list")
    assert result.code == 0
    assert (
        f"1 chat without a name in {kept_chats.folder()}; the last one: rwkv chat --continue\n" in result.err
    )
    assert rwkv("state", "list", "--json").err == ""


# ------------------------------------------------------------------------------------------ in the middle of an answer


def ended(it, number):
    """End a command with a signal; that of a terminal that is closed comes with its closing. Gives the exit code."""
    if number == signal.SIGHUP:
        return it.hang_up()
    it.process.send_signal(number)
    return it.finish()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("name", ["tale", None])
def test_a_chat_keeps_an_answer_that_a_signal_stopped(terminal, data, number, name):
    with terminal("chat", *SLOW, *(["--name", name] if name else [])) as it:
        it.wait_for(READY)
        it.send("Once upon a time\r")
        it.wait_for(r"there was[^\r]*\r\n")
        assert ended(it, number) == 128 + number
    path = state_store.find(name) if name else kept_chats.kept()[0]
    (turn,) = turns(path)
    assert (turn["user"], turn["finish"]) == ("Once upon a time", "stopped")
    assert "there was" in " ".join(turn["text"].split())
    if number == signal.SIGTERM:
        shown = plain(it.shown.rpartition("a time")[2].partition("(stopped)")[0])
        assert shown == plain(turn["text"])
        assert plain("(to come back: rwkv chat --") in plain(it.shown)
    assert not leftovers(data)
    back = subprocess.run(
        [*RWKV, "chat", *(["--name", name] if name else ["--continue"]), "-d", "reference", "-n", "3"],
        input=b" and then\n",
        capture_output=True,
    )
    assert (back.returncode, back.stderr) == (0, b"")
    assert len(turns(path)) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_generation_saves_what_a_signal_stopped(terminal, data, number):
    arguments = ("generate", "Once upon a time", *SLOW, "--save-state", "tale")
    with terminal(*arguments) as it:
        it.wait_for(r"there was[^\r]*\r\n")
        assert ended(it, number) == 128 + number
    saved = state_file.load(state_store.find("tale"))
    assert saved.text.startswith("Once upon a time")
    assert "there was" in " ".join(saved.text.split())
    if number == signal.SIGTERM:
        assert plain(saved.text) in plain(it.shown)
    assert not leftovers(data)
    whole = subprocess.run(
        [*RWKV, "generate", "Once upon a time", *SLOW[:-1], "40", "-q"],
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    rest = subprocess.run(
        [*RWKV, "generate", "--state", "tale", "-d", "reference", "-n", "5", "-q"],
        capture_output=True,
        text=True,
    )
    assert rest.returncode == 0
    more = saved.text + rest.stdout.rstrip("\n")
    assert more.startswith(("Once upon a time" + whole.rstrip("\n"))[: len(more)])


def test_a_pipe_ends_with_the_signal_too(data):
    with subprocess.Popen(
        [*RWKV, "generate", "Once upon a time", *SLOW, "--save-state", "tale"], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.read(5)
        process.send_signal(signal.SIGTERM)
        process.communicate()
        assert process.returncode == 128 + signal.SIGTERM
    assert state_file.load(state_store.find("tale")).text.startswith("Once upon a time")
    assert not leftovers(data)


def test_a_second_signal_does_not_wait():
    program = """
import os, signal
from rwkv_cli.cli.terminal.interrupts import Termination
with Termination(lambda: True):
    os.kill(os.getpid(), signal.SIGTERM)
    print("still here", flush=True)
    os.kill(os.getpid(), signal.SIGHUP)
    print("not here")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (128 + signal.SIGHUP, "still here\n")


def test_without_an_answer_a_signal_ends_at_once():
    program = """
import os, signal
from rwkv_cli.cli.terminal.interrupts import Termination
with Termination(lambda: False):
    os.kill(os.getpid(), signal.SIGTERM)
    print("not here")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (128 + signal.SIGTERM, "")


def test_a_terminal_that_is_closed_does_not_end_what_nohup_protects():
    program = """
import os, signal
from rwkv_cli.cli.terminal.interrupts import Termination
signal.signal(signal.SIGHUP, signal.SIG_IGN)
with Termination(lambda: True):
    os.kill(os.getpid(), signal.SIGHUP)
print("here")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "here\n")
