"""`rwkv chat`: keys, commands, files, pipes, and what happens when it is interrupted or killed."""

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.talker import talking
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from rwkv_cli.cli.chat import commands, view
from rwkv_cli.cli.chat import input as chat_input
from rwkv_cli.cli.chat.input import Reader, TerminalReader, is_unfinished, unblocked
from rwkv_cli.cli.chat.loop import Chat
from rwkv_cli.cli.chat.view import TerminalView
from rwkv_cli.engine.session import Snapshot
from rwkv_cli.errors import StateError, StorageError, UsageError
from rwkv_cli.sessions import state_file, state_store
from rwkv_cli.sessions.autosave import AutosavedConversation, Choices, open_conversation
from rwkv_cli.sessions.conversation import Conversation
from rwkv_cli.text.templates import get_template, templates
from rwkv_cli.text.thinking import Part

RWKV = (sys.executable, "-m", "rwkv_cli")
FULL = Path("/dev/full")


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    """A store of its own."""
    monkeypatch.setenv("RWKV_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


# ------------------------------------------------------------------------------------------------- a chat in a test


class Script(Reader):
    """A reader that plays lines; a line that is an exception is raised."""

    is_editor = True

    def __init__(self, *lines):
        self.lines = list(lines)
        self.defaults = []

    def read(self, default=""):
        self.defaults.append(default)
        if not self.lines:
            raise EOFError
        line = self.lines.pop(0)
        if isinstance(line, type):
            raise line
        return default if line is None else line


@pytest.fixture
def play(capsys):
    """Run a chat with these lines: the chat, what it showed, and what it noted."""

    def run(*lines, model=None, session=None, view=None, **choices):
        model = model or talking({"hi\n\nAssistant:": " Hello.", "bye\n\nAssistant:": " Farewell."})
        choices = Choices(**{"sampling": {"seed": 1}, "max_tokens": 12} | choices)
        session = session or AutosavedConversation(choices.begin(model))
        chat = Chat(session, Script(*lines), view or TerminalView(), commands.dispatch)
        capsys.readouterr()
        with contextlib.closing(session):
            assert chat.run() == 0
        shown = capsys.readouterr()
        return chat, shown.out, shown.err

    return run


def users(chat):
    return [turn.user for turn in chat.conversation.turns]


def test_a_conversation(play):
    chat, out, err = play("hi", "", "  \t ", "bye")
    assert out == "Hello.\n\nFarewell.\n\n"
    assert "talker (int8, talker), template dialogue. /help lists commands" in err
    assert users(chat) == ["hi", "bye"]
    assert "(not saved; to keep a conversation use /save NAME" in err


def test_a_slash_may_be_sent(play):
    chat, _, _ = play("//help me", "/ help")
    assert users(chat) == ["/help me"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/udno", "unknown command /udno; did you mean /undo?"),
        ("/xyzzy", "unknown command /xyzzy (/help lists them"),
        ("/undo", "nothing was said yet"),
        ("/undo x", "/undo takes a number, not 'x'"),
        ("/retry", "nothing was said yet"),
        ("/edit", "nothing was said yet"),
        ("/edit x", "nothing was said yet"),
        ("/save", "the conversation has no name yet: /save NAME"),
        ("/save a/../b", "cannot write"),
        ("/save a:b", "a state cannot be named 'a:b'"),
        ("/load", "give a name or a file"),
        ("/load nothing", "unknown state nothing"),
        ("/fork", "give the branch a name"),
        ("/system Be brief.", "no place for a system prompt"),
        ("/set temprature 5", "unknown setting 'temprature' (did you mean temperature?)"),
        ("/set top-p 5", "top-p is 5: it must be between 0 and 1"),
        ("/set top-p x", "top-p is 'x': it must be a number, or default"),
        ("/set top-k 1.5", "top-k is '1.5': it must be a whole number"),
        ("/set top-p", "give it a value: /set top-p NUMBER"),
        ("/set markdown perhaps", "it must be one of on, off"),
        ("/set think hard", "no thinking modes"),
        ("/reset x", "/reset takes no argument"),
        ("/export talk", "ends in .md or .json"),
        ("/export /nowhere/talk.md", "the folder /nowhere does not exist"),
        ("/export ~nobodyhere/talk.md", "~nobodyhere/talk.md: there is no home folder of that user"),
        ("/save ~nobodyhere/talk", "there is no home folder of that user"),
        ("/load ~nobodyhere/talk", "there is no home folder of that user"),
        ("/fork ~nobodyhere/talk", "there is no home folder of that user"),
        ("/export a\0b.md", "a␀b.md is not a path: it contains a null character"),
        ("/save a\0/b", "a␀/b is not a path"),
        ("/load a\0b.safetensors", "is not a path"),
        ("/load a\0b", "a state cannot be named"),
        ("/export " + "a" * 5000 + ".md", "cannot write"),
        ("/save " + "a/" * 5000 + "b", "file name too long"),
        ("/load " + "a" * 5000 + ".safetensors", "file name too long"),
        ("/undo " + "9" * 5000, "/undo takes a number"),
        ("/set seed " + "9" * 400, "seed is too large"),
        ("/set seed " + "9" * 5000, "it must be a whole number"),
        ("/set top-k " + "9" * 400, "top-k is too large"),
        ("/set temperature " + "9" * 400, "temperature is inf"),
        ("/set max-tokens -" + "9" * 400, "max-tokens is -9"),
        ("/set top-p nan", "top-p is nan"),
    ],
    ids=lambda text: text[:30],
)
def test_what_cannot_be_is_one_sentence_and_the_chat_goes_on(play, tmp_path, monkeypatch, line, said):
    monkeypatch.chdir(tmp_path)
    chat, out, err = play(line, "hi")
    assert f"rwkv: {said}" in err or re.search(f"rwkv: .*{re.escape(said)}", err)
    assert users(chat) == ["hi"]
    assert out.endswith("Hello.\n\n")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(5, "Input/output error", "talk.md"), "talk.md: input/output error"),
        (PermissionError(13, "Permission denied"), "permission denied"),
        (UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"), "surrogates not allowed"),
        (MemoryError(), "not enough memory"),
        (RecursionError("too deep"), "RecursionError: too deep"),
        *((kind("odd"), f"{kind.__name__}: ") for kind in (ValueError, RuntimeError, TypeError, KeyError)),
    ],
)
def test_whatever_a_command_raises_the_chat_goes_on(play, monkeypatch, error, said):
    def fail(_chat, _argument):
        raise error

    monkeypatch.setitem(commands.COMMANDS, "stats", replace(commands.COMMANDS["stats"], run=fail))
    chat, out, err = play("hi", "/stats", "bye")
    assert said in err
    assert users(chat) == ["hi", "bye"]
    assert out == "Hello.\n\nFarewell.\n\n"


def test_whatever_an_answer_raises_the_chat_goes_on(play):
    class Odd(type(talking().backend)):
        def forward(self, tokens, state, progress=None):
            if ord("x") + 1 in tokens:
                raise RuntimeError("odd")
            return super().forward(tokens, state, progress)

    model = talking()
    model.backend = Odd({"hi\n\nAssistant:": " Hello."})
    chat, _, err = play("hi", "x", "hi", model=model)
    assert "RuntimeError: odd" in err
    assert users(chat) == ["hi", "hi"]


def test_a_reader_that_goes_away_ends_a_chat(play, monkeypatch):
    def fail(_chat, _argument):
        raise BrokenPipeError

    monkeypatch.setitem(commands.COMMANDS, "stats", replace(commands.COMMANDS["stats"], run=fail))
    with pytest.raises(BrokenPipeError):
        play("/stats", "hi")


def test_undo_retry_edit_reset(play):
    chat, out, _ = play("hi", "two", "bye", "/undo 2", "/edit hi", "/retry")
    assert users(chat) == ["hi"]
    assert "undid 2 turns; 1 left\n> hi\nHello." in out
    chat, out, _err = play("hi", "/reset", "/undo", "bye")
    assert users(chat) == ["hi", "bye"]
    assert "new conversation; /undo restores the previous one" in out
    assert "restored the previous conversation" in out
    chat, _, _ = play("hi", "/reset", "bye", "/undo", "/undo")
    assert users(chat) == ["hi"]


def test_edit_opens_the_last_message(play):
    chat, _, _ = play("hi", "/edit", "bye")
    assert chat.reader.defaults == ["", "", "hi", ""]
    assert users(chat) == ["bye"]
    chat, _, _ = play("hi", "/edit", "", "bye")  # nothing comes of it
    assert users(chat) == ["hi", "bye"]


def test_system(play):
    chat, out, _ = play("/system", "hi", "/system Be brief.", "/system", model=talking(template="g1"))
    assert chat.conversation.system == "Be brief."
    assert users(chat) == []
    assert "no system prompt: set one with /system TEXT" in out
    assert out.endswith("Be brief.\n")


def test_set_and_show(play):
    chat, out, _ = play(
        "/set temperature 0.25",
        "/set top-k 3",
        "/set max-tokens 5",
        "/set show-thinking off",
        "/set markdown off",
        "/set top_k default",
        "/set",
        "/show",
        "/stats",
    )
    assert chat.conversation.settings.temperature == 0.25
    assert (chat.conversation.settings.top_k, chat.conversation.max_tokens) == (0, 5)
    assert (chat.view.show_thinking, chat.view.markdown) == (False, False)
    assert re.search(r"^temperature +0\.25 \(set\)$", out, re.MULTILINE)
    assert re.search(r"^think +not in this template$", out, re.MULTILINE)
    assert re.search(r"^template +dialogue: ", out, re.MULTILINE)
    assert re.search(r"^since the start +0 answers", out, re.MULTILINE)


def test_help_lists_every_command(play):
    _, out, _ = play("/help")
    for command in commands.COMMANDS.values():
        assert f"/{command.name}" in out
        assert command.help


@pytest.mark.parametrize("line", ["/bye", "/exit", "/quit", "exit", "Quit", " exit "])
def test_every_way_to_leave(play, line):
    chat, _, _ = play("hi", line, "bye")
    assert users(chat) == ["hi"]


def test_a_message_may_begin_with_such_a_word(play):
    chat, _, _ = play("exit now", "quit?")
    assert users(chat) == ["exit now", "quit?"]


def test_in_a_pipe_such_a_word_is_a_message(rwkv, tiny_model):
    rwkv("chat", "-m", tiny_model, "--name", "k", "-n", "1", stdin=b"exit\nbye\n")
    assert [turn["user"] for turn in state_file.load(state_store.find("k")).conversation["turns"]] == [
        "exit",
        "bye",
    ]


def test_verbose_tells_how_fast_every_answer_was(rwkv, tiny_model):
    chat = ("chat", tiny_model, "-n", "2", "--logit-bias", f"{ord('x') + 1}=100", "-q")
    told = rwkv(*chat, "--verbose", stdin=b"hi\nbye\n").err.splitlines()
    assert len(told) == 3  # the settings, and a line for every answer
    assert all(re.fullmatch(r"\(2 tokens, \d+/s; message \d+ tokens, \d+/s\)", line) for line in told[1:])
    assert rwkv(*chat, stdin=b"hi\nbye\n").err == ""


def test_commands_as_other_programs_call_them(play):
    _, out, _ = play("/?")
    assert out == play("/help")[1]
    chat, out, _ = play("hi", "/clear", "bye")
    assert users(chat) == ["bye"]
    assert "/undo restores" in out


def test_another_model_continues(play, monkeypatch):
    other = talking({"hi\n\nAssistant: Hello.\n\nUser: bye\n\nAssistant:": " So long."})
    asked = []
    monkeypatch.setattr(
        "rwkv_cli.model.load", lambda name, device, **_: asked.append((name, device)) or other
    )
    chat, out, _ = play("hi", "/model other", "bye")
    assert asked == [("other", "talker")]
    assert chat.conversation.model is other
    assert users(chat) == ["hi", "bye"]
    assert out.endswith("So long.\n\n")  # it has read what the first one said
    assert "talker (int8, talker), template dialogue, has read 1 turn, and continues" in out


def test_another_model_has_its_own_template(play, monkeypatch):
    reasoning = talking({"<think": ">Hm.</think>\n\nYes."}, "g1")
    plain = talking({"User: Is it?\n\nAssistant: Yes.\n\nUser: bye\n\nAssistant:": " So long."})
    monkeypatch.setattr("rwkv_cli.model.load", lambda *_, **__: plain)
    chat, out, _ = play("Is it?", "/model plain", "bye", model=reasoning, think="on", max_tokens=40)
    assert chat.conversation.template.name == "dialogue"
    assert chat.conversation.turns[0].text == " Yes."
    assert out.endswith("So long.\n\n")


def test_the_model_stays_where_another_cannot_continue(rwkv, tiny_model):
    rwkv("state", "save", "s", "-p", "Once", "-m", tiny_model)
    chat = ("chat", "-m", tiny_model, "-q", "-n", "1")
    result = rwkv(*chat, stdin=b"/model nothing-like-it\n/model\n")
    assert result.err.splitlines() == [
        "rwkv: unknown model nothing-like-it: give a path, a name from `rwkv models list --known`, or hf:OWNER/REPO",
        f"{tiny_model}; to talk with another model: /model NAME",
    ]
    result = rwkv(*chat, "--state", "s", stdin=b"/model gosling\n/model\n")
    assert "this conversation began with a saved state" in result.err
    assert result.err.splitlines()[-1].startswith(f"{tiny_model};")


def test_the_model_is_an_argument(rwkv, tiny_model):
    named = rwkv("chat", tiny_model, "-n", "2", "--seed", "1", stdin=b"hi\n")
    assert (named.code, named.out) == (
        0,
        rwkv("chat", "-m", tiny_model, "-n", "2", "--seed", "1", stdin=b"hi\n").out,
    )
    assert "give either MODEL or --model" in rwkv("chat", tiny_model, "-m", "gosling").sentence


def test_the_name_of_a_conversation_is_not_one_of_a_model(rwkv, tiny_model):
    rwkv("chat", "-m", tiny_model, "--name", "my ideas", "-n", "1", stdin=b"hi\n")
    result = rwkv("chat", "my ideas")
    assert result.code == 2
    assert result.sentence.endswith("a conversation: continue it with `rwkv chat --name 'my ideas'`")
    assert "unknown model" in rwkv("chat", "my-other").sentence


def test_quit(play):
    chat, _, _ = play("hi", "/quit", "bye")
    assert users(chat) == ["hi"]


def test_export(play, tmp_path):
    model = talking({"<think": ">Hm.</think>\n**Yes.**"}, "g1")
    _, out, _ = play(
        "Is it?",
        f"/export {tmp_path}/a.md",
        f"/export '{tmp_path}/b c.json'",
        model=model,
        think="on",
        max_tokens=99,
    )
    assert f"wrote {tmp_path}/a.md: 1 turn\n" in out
    markdown = (tmp_path / "a.md").read_text()
    assert "**You:**\n\nIs it?\n\n**talker:**\n\n<details>" in markdown
    assert "\n\n**Yes.**\n" in markdown
    exported = json.loads((tmp_path / "b c.json").read_text())
    assert exported["turns"] == [{"user": "Is it?", "answer": "**Yes.**", "thought": "Hm.", "finish": "end"}]


# ---------------------------------------------------------------------------------------------------------- keeping


def opened(**options):
    """A session as a command line opens it."""
    choices = options.pop("choices", None) or Choices(max_tokens=8)
    own = options.pop("own", "story")
    return open_conversation(lambda _: talking(template=own), choices, **options)


def test_a_named_conversation_goes_on(play):
    _, _, err = play("one", "two", session=opened(name="talk"))
    assert "talk: new conversation, saved after every answer." in err
    assert "not saved" not in err
    store_file = state_store.find("talk")
    assert state_file.load(store_file).name == "talk"


def test_a_named_conversation_resumes_where_it_was():
    with contextlib.closing(opened(name="talk")) as session:
        for message in ("one", "two"):
            list(session.conversation.ask(message))
            session.keep()
        stayed = session.conversation.fork()
    with contextlib.closing(opened(name="talk")) as session:
        assert session.conversation.turns == stayed.turns
        again = "".join(part.text for part in session.conversation.ask("three"))
    assert again == "".join(part.text for part in stayed.ask("three"))


def test_a_setting_is_saved_with_the_conversation(play):
    play("one", "/set temperature 0.25", session=opened(name="talk"))
    assert state_file.load(state_store.find("talk")).settings["temperature"] == 0.25


def test_the_last_exchange_is_shown(play):
    play("hi", session=opened(name="talk"))
    _, out, err = play(session=opened(name="talk"))
    assert out.startswith("> hi\n")
    assert re.search(r"talk: 1 turn, \d+ tokens, saved", err)


def test_two_chats_on_one_name():
    with contextlib.closing(opened(name="talk")), pytest.raises(StateError, match=f"process {os.getpid()}"):
        opened(name="TALK")
    opened(name="talk").close()


def test_what_is_settled_cannot_be_chosen_again(play):
    g1 = {"own": "g1"}
    play("hi", session=opened(name="talk", choices=Choices(system="S", max_tokens=5), **g1))
    with contextlib.closing(
        opened(name="talk", choices=Choices(system="S", think="on", sampling={"top_p": 0.125}), **g1)
    ) as session:
        conversation = session.conversation
        assert (conversation.think, conversation.settings.top_p, conversation.max_tokens) == ("on", 0.125, 5)
    for choices in (Choices(system="other"), Choices(templates()["world"])):
        with pytest.raises(UsageError, match="leave out"):
            opened(name="talk", choices=choices, **g1)
    opened(name="talk", **g1).close()  # the lock was given back
    with pytest.raises(UsageError, match="exists already"):
        opened(name="talk", state="talk", **g1)


def document(path, text="A book."):
    """A state in which a talker has read a text."""
    model = talking(template="story")
    logits, state = model.forward([0, *model.tokenizer.encode(text)])
    position = Snapshot(state, logits, 1 + len(text))
    state_store.prepare(path)
    state_file.save(
        path,
        state_file.SavedState(
            position, state_file.identify(model), template=get_template("story"), text=text
        ),
    )


def test_a_chat_on_a_document_leaves_it_alone(play):
    document(state_store.resolve("book"))
    before = state_store.find("book").read_bytes()
    chat, _, err = play("hi", session=opened(state="book"))
    assert "Resuming from a saved state: 0 turns, 8 tokens." in err
    assert chat.conversation.text.startswith("A book.\n\nUser: hi")
    assert state_store.find("book").read_bytes() == before
    play("hi", session=opened(name="questions", state="book"))
    assert state_store.find("book").read_bytes() == before
    with contextlib.closing(opened(name="questions")) as session:
        assert session.conversation.text.startswith("A book.\n\nUser: hi")


def test_save_gives_a_name(play):
    chat, out, _ = play("one", "/save talk", "two")
    assert "saved talk, and after every answer from now on" in out
    assert chat.session.name == "talk"
    with contextlib.closing(opened(name="talk")) as session:
        assert [turn.user for turn in session.conversation.turns] == ["one", "two"]


def test_save_of_a_copy(play, tmp_path):
    session = opened(name="talk")
    copy = tmp_path / "copy.safetensors"
    chat, out, _ = play(
        "one", f"/save {copy}", "two", "/save other", f"/save {copy}", "three", session=session
    )
    assert chat.session.name == "talk"
    assert out.count(f"saved {copy}\n") == 2
    assert len(state_file.load(copy).conversation["turns"]) == 2
    assert len(state_file.load(state_store.find("other")).conversation["turns"]) == 2
    _, _, err = play("one", "/save other")
    assert "named other exists; choose another name" in err


def test_fork_goes_on_in_a_copy(play):
    chat, out, _ = play("one", "/fork branch", "two", "/list", session=opened(name="talk"))
    assert "continuing in branch; talk is unchanged" in out
    assert re.search(r"^branch .*, this one$", out, re.MULTILINE)
    assert chat.session.name == "branch"
    opened(name="talk").close()  # is free again
    assert len(state_file.load(state_store.find("talk")).conversation["turns"]) == 1
    assert len(state_file.load(state_store.find("branch")).conversation["turns"]) == 2


def test_load(play):
    document(state_store.resolve("book"))
    play("hi", "/save talk")
    chat, _out, err = play("/load talk", "two", "/load talk", "/load book", "/load nothing", "three")
    assert chat.session.path is None
    assert chat.conversation.text.startswith("A book.\n\nUser: three")
    assert "talk: 1 turn" in err
    assert "talk is the current conversation" in err
    assert len(state_file.load(state_store.find("talk")).conversation["turns"]) == 2
    opened(name="talk").close()


def test_load_of_what_another_has_open_keeps_what_is_there(play):
    with contextlib.closing(opened(name="talk")) as other:
        list(other.conversation.ask("one"))
        other.keep()
        chat, _, err = play("hi", "/load talk", "bye")
        assert "is open in another rwkv" in err
        assert users(chat) == ["hi", "bye"]


def test_a_disk_that_is_full_is_shown_and_the_chat_goes_on(play, monkeypatch):
    save, full = state_file.save, [False, True, False]

    def fail(path, saved):
        if full.pop(0):
            raise StorageError(f"cannot write {path}: no space left on the disk")
        save(path, saved)

    monkeypatch.setattr(state_file, "save", fail)
    chat, _, err = play("one", "two", "three", session=opened(name="talk"))
    assert err.count("no space left on the disk") == 1
    assert users(chat) == ["one", "two", "three"]
    assert len(state_file.load(state_store.find("talk")).conversation["turns"]) == 3


def test_what_could_not_be_saved_is_tried_again_at_the_end(play, monkeypatch):
    save, full = state_file.save, [True, False]

    def fail(path, saved):
        if full.pop(0):
            raise StorageError("no space left on the disk")
        save(path, saved)

    monkeypatch.setattr(state_file, "save", fail)
    play("one", session=opened(name="talk"))
    assert len(state_file.load(state_store.find("talk")).conversation["turns"]) == 1


def test_without_text_a_conversation_can_be_gone_on_with(play):
    play("secret words", session=opened(name="talk", keep_text=False))
    assert b"secret" not in state_store.find("talk").read_bytes()
    chat, _, err = play("two", session=opened(name="talk", keep_text=False))
    assert "talk: 0 turns" in err
    assert users(chat) == ["two"]


# ------------------------------------------------------------------------------------------------------ the screen


def shown(capsys, *parts, **options):
    TerminalView(**options).show_parts(
        [Part(*part) if isinstance(part, tuple) else Part(part) for part in parts]
    )
    return capsys.readouterr().out


def test_the_space_around_an_answer_is_not_shown(capsys):
    assert shown(capsys, " ", "\n", " One", "\n", "\n", "two.", "\n\n", " ") == "One\n\ntwo.\n"


def test_control_characters_of_a_model_are_pictures(capsys):
    assert shown(capsys, "a\x1b[2", "Jb\x07\r\n\x9bc") == "a␛[2Jb␇\n\ufffdc\n"


def test_thoughts_come_before_the_answer(capsys):
    parts = [("\nHm.", True), ("\n\n", True), "\n", "Yes."]
    assert shown(capsys, *parts) == "Hm.\n\nYes.\n"
    assert shown(capsys, *parts, show_thinking=False) == "(thinking…)\nYes.\n"
    assert shown(capsys, ("Hm.", True)) == "Hm.\n"


def test_how_long_a_thought_was_is_told(capsys):
    model = talking({"<think": ">Hm.</think>\nYes."}, "g1")
    answer = Conversation(model, think="on", temperature=0).ask("Is it?")
    TerminalView(show_thinking=False).show(answer)
    assert capsys.readouterr().out == "(thinking… 11 tokens)\nYes.\n"


def test_an_answer_that_is_none(capsys):
    assert shown(capsys, " ") == ""
    view.TerminalView().show_parts([])
    assert capsys.readouterr().err == "(no answer)\n"


def test_ctrl_c_stops_an_answer(play):
    model = talking({"go\n\nAssistant:": " one two three four"})
    backend, said = model.backend.forward, []

    def forward(tokens, state, progress=None):
        said.append(tokens)
        if len(said) == 6:
            signal.raise_signal(signal.SIGINT)
        return backend(tokens, state, progress)

    model.backend.forward = forward
    chat, out, err = play("go", model=model, max_tokens=100)
    turn = chat.conversation.turns[0]
    assert turn.finish == "stopped"
    assert " one two three four".startswith(turn.text)
    assert 3 < len(turn.text) < 10
    assert out.strip() == turn.text.strip()
    assert "(stopped)" in err


def test_ctrl_c_while_a_message_is_read_gives_it_back(play):
    model = talking()
    backend, interrupted = model.backend.forward, []

    def forward(tokens, state, progress=None):
        if not interrupted:
            interrupted.append(True)
            signal.raise_signal(signal.SIGINT)
        return backend(tokens, state, progress)

    model.backend.forward = forward
    chat, _, err = play("hi", None, model=model)
    assert chat.reader.defaults[:2] == ["", "hi"]
    assert "(interrupted)" in err
    assert users(chat) == ["hi"]


def test_ctrl_c_with_nothing_typed_gives_a_hint(play):
    _, _, err = play(KeyboardInterrupt, "hi")
    assert "(Ctrl-D or /quit to leave)" in err


# ------------------------------------------------------------------------------------------------------------ keys


@pytest.fixture
def typed():
    """What a reader gives for keys."""
    readers = []

    def type_(keys, default="", **options):
        with create_pipe_input() as pipe:
            pipe.send_text(keys)
            words = options.pop("words", lambda _: ())
            reader = TerminalReader(words, **options, input=pipe, output=DummyOutput())
            readers.append(reader)
            return reader.read(default)

    return type_


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ("hello\r", "hello"),
        ("hello\n", "hello"),
        ("one\x1b\rtwo\r", "one\ntwo"),
        ("one\\\rtwo\r", "one\ntwo"),
        ("a\\b\r", "a\\b"),
        ('"""one\rtwo"""\r', "one\ntwo"),
        ('"""\rone\r\rtwo\r"""\r', "one\n\ntwo"),
        ("\x1b[200~one\n/two\r\nthree\x1b[201~\r", "one\n/two\nthree"),
        ("helo\x1b[Dl\r", "hello"),
        ("hello\x01> \r", "> hello"),
        ("wrong\x03right\r", "right"),
        ("ä世🦢\r", "ä世🦢"),
    ],
)
def test_keys(typed, keys, text):
    assert typed(keys) == text


def test_vi_keys(typed):
    assert typed("helo\x1b0flal\x1b\r", vi=True) == "hello"


def test_the_end_and_interruptions(typed):
    with pytest.raises(EOFError):
        typed("\x04")
    with pytest.raises(KeyboardInterrupt):
        typed("\x03")
    assert typed("x\r", default="old ") == "old x"


def test_the_history_is_kept_for_the_user_alone(typed, data):
    typed("first message\r")
    typed("second\r")
    assert typed("\x1b[A\x1b[A\r") == "first message"
    assert typed("\x12fir\r\r") == "first message"  # Ctrl-R
    assert (data / "history").stat().st_mode & 0o077 == 0


@pytest.mark.skipif(os.name == "nt", reason="folders have other permissions there")
def test_a_history_that_cannot_be_written_is_no_matter(typed, data):
    data.write_text("a file where the folder should be")
    assert typed("hello\r") == "hello"


def test_tab_completes(typed, play):
    chat, _, _ = play("hi", "/save talk one", "/save other", model=talking(template="g1"))

    def complete(keys):
        return typed(keys, words=lambda line: commands.words(chat, line))

    assert complete("/un\t\r") == "/undo"
    assert complete("/set temp\t 1\r") == "/set temperature 1"
    assert complete("/set think lo\t\r") == "/set think long"
    assert complete("/load oth\t\r") == "/load other"
    assert complete("no\t\r") == "no"


def test_blocks():
    assert is_unfinished('"""')
    assert is_unfinished('"""a')
    assert is_unfinished('"""a\n"')
    assert not is_unfinished('"""a"""')
    assert not is_unfinished('a """')
    assert unblocked('"""a') == '"""a'
    assert unblocked(' """\n a\n"""') == " a"


# ----------------------------------------------------------------------------------------------------------- pipes


def test_a_pipe_gives_a_message_a_line(rwkv):
    result = rwkv("chat", "--seed", "1", stdin=b"hello\r\n\nhow are you?")
    assert (result.code, result.err) == (0, "")
    assert len(result.out.splitlines()) == 2
    assert ">" not in result.out
    again = rwkv("chat", "--seed", "1", stdin=b"hello\n")
    assert result.out.startswith(again.out)


def test_commands_in_a_pipe_speak_on_stderr(rwkv):
    result = rwkv("chat", "--seed", "1", stdin=b"/set top-k 1\n/nonsense\n//hello\n/edit\n/quit\nno\n")
    assert "top-k: 1 (set)" in result.err
    assert "unknown command /nonsense" in result.err
    assert "/edit TEXT" in result.err
    assert len(result.out.splitlines()) == 1
    assert result.code == 1


@pytest.mark.parametrize(
    ("arguments", "stdin", "said", "code"),
    [
        ((), b"x" * 4_000_001, "line 1 has more than 4,000,000 bytes", 1),
        ((), b"\n" + b"ok\xff\n", "line 2 is not valid UTF-8 text (byte 2)", 1),
        (("--ban", "99999999"), b"", "there is no token 99999999", 2),
        (("--name", "nowhere/talk"), b"", "the folder nowhere does not exist", 1),
        (("--template", "wrld"), b"", "did you mean world?", 2),
        (("--template", "./none.toml"), b"", "cannot read the template none.toml", 2),
        (("--think", "on"), b"", "no thinking modes", 2),
        (("--system", "x"), b"", "no place for a system prompt", 2),
        (("--top-p", "2"), b"", "--top-p is 2", 2),
        (("--name", "a:b"), b"", "cannot be named 'a:b'", 2),
        (("--state", "none"), b"", "unknown state none", 1),
        (("--no-text",), b"", "--no-text needs --name", 2),
        (("-m", "missing.pth"), b"", "there is no file", 1),
    ],
)
def test_what_cannot_be_right_is_one_sentence(rwkv, tmp_path, monkeypatch, arguments, stdin, said, code):
    monkeypatch.chdir(tmp_path)
    result = rwkv("chat", *arguments, stdin=stdin)
    assert said in result.sentence
    assert result.code == code


@pytest.mark.parametrize("bad", [b"\xff\n", b"x" * 9_000_000 + b"\n"])
def test_a_line_that_is_no_message_does_not_end_a_pipe(rwkv, bad):
    both = rwkv("chat", "--seed", "5", stdin=b"hello\nI like music.\n").out
    result = rwkv("chat", "--seed", "5", stdin=b"hello\n" + bad + b"I like music.\n")
    assert (result.out, result.code) == (both, 1)


def test_a_line_without_an_end_ends_a_pipe(rwkv, monkeypatch):
    monkeypatch.setattr(chat_input, "_MOST_SKIPPED", 20_000_000)
    result = rwkv("chat", "--max-tokens", "2", stdin=b"hi\n" + b"a" * 25_000_000 + b"\nhi\n")
    assert (result.code, result.err) == (1, "rwkv: line 2 has no end: nothing more is read\n")
    assert result.out.count("\n") == 1


def test_an_empty_answer_is_said_to_be_one(rwkv):
    """The embedded model does not know questions and answers in this form."""
    result = rwkv("generate", "-p", "Who is it?", "--template", "qa", "-t", "0")
    assert (result.code, result.out) == (0, "")
    assert "no text: the model ended" in result.err
    assert rwkv("generate", "-p", "Who is it?", "--template", "qa", "-t", "0", "--quiet").err == ""


def test_a_pipe_may_have_a_name(rwkv):
    for _ in range(2):
        assert rwkv("chat", "--name", "piped", "--seed", "1", stdin=b"hello\n").code == 0
    assert len(state_file.load(state_store.find("piped")).conversation["turns"]) == 2


def test_a_template_of_the_users_own(rwkv, tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('base = "dialogue"\nanswer = "Assistant: Hi"\n')
    result = rwkv("chat", "--template", file, "--name", "own", "--seed", "1", stdin=b"hello\n")
    assert result.code == 0
    saved = state_file.load(state_store.find("own"))
    assert saved.text.startswith("User: hello\n\nAssistant: Hi")
    file.unlink()
    assert rwkv("chat", "--name", "own", stdin=b"hello\n").code == 0


def test_a_generation_takes_such_a_template_too(rwkv, tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('begin = true\nuser = "Once {prompt}"\nstop = ["."]\n')
    plain = rwkv(
        "generate", "-p", "Once upon", "--template", "story", "--seed", "1", "--stop", ".", "--top-p", "0.8"
    )
    own = rwkv("generate", "-p", "upon", "--template", file, "--seed", "1", "-t", "0.8", "--top-p", "0.8")
    assert (own.code, own.out) == (0, plain.out)


@pytest.mark.skipif(not FULL.exists(), reason="there is no device without room here")
def test_a_reader_without_room():
    command = f"printf 'hello\\n' | {sys.executable} -m rwkv_cli chat > {FULL}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=120)
    assert "no space left" in done.stderr
    assert done.returncode == 1


def test_the_same_words_as_if_one_had_stayed(rwkv):
    stayed = rwkv("chat", "--name", "a", "--seed", "5", stdin=b"hello\nI like music.\nbye\n").out
    first = rwkv("chat", "--name", "b", "--seed", "5", stdin=b"hello\nI like music.\n").out
    assert first + rwkv("chat", "--name", "b", stdin=b"bye\n").out == stayed


# ------------------------------------------------------------------------------------------------------- terminals

READY = re.escape("\x1b[?2004h") + r"[\s\S]*" + re.escape("\x1b[?25h")  # a prompt has been drawn
STORY = ("chat", "--template", "story", "-d", "reference", "--seed", "1", "--name", "tale")


def wait_for(it, pattern, start=0):
    """Read until the pattern was shown after a place; gives the place behind it."""
    while not (found := re.compile(pattern).search(it.shown, start)):
        ready, _, _ = select.select([it._master], [], [], 20)
        assert ready and it._read(), f"no {pattern!r} in {it.shown[start:]!r}"  # noqa: PT018
    return found.end()


def finish(it):
    """Read to the end: the exit code."""
    with contextlib.suppress(AssertionError):
        wait_for(it, "(?!)")
    return it.process.wait(10)


def visible(text):
    """What is left of output without escape sequences and line ends."""
    return "".join(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).split())


def test_ctrl_c_on_a_terminal_keeps_what_is_on_the_screen(terminal):
    with terminal(*STORY) as it:
        wait_for(it, "Ctrl-D")
        it.send("Once upon a time\r")
        place = wait_for(it, r"there was[^\r]*\r\n")
        it.process.send_signal(signal.SIGINT)  # that is how Ctrl-C arrives
        end = wait_for(it, r"\(stopped\)", place)
        it.send("\x04")
        assert finish(it) == 0
    saved = state_file.load(state_store.find("tale"))
    turn = saved.conversation["turns"][0]
    assert turn["finish"] == "stopped"
    answer = visible(it.shown[:end].rpartition("a time")[2].removesuffix("(stopped)"))
    assert answer == visible(turn["text"])


def test_a_chat_that_was_killed_goes_on_from_its_last_answer(terminal):
    with terminal(*STORY[:-1], "killed") as it:
        wait_for(it, "Ctrl-D")
        it.send("/set max-tokens 5\r")
        wait_for(it, "max-tokens: 5")
        it.send("Once upon a time\r")
        place = wait_for(it, r"/set max-tokens changes")
        it.send("/set max-tokens 500\r")
        place = wait_for(it, "max-tokens: 500", place)
        it.send(" and then\r")
        wait_for(it, r"then[^>]*\w+ \w+ \w+", place)
        it.process.kill()
    with contextlib.closing(
        open_conversation(lambda _: __import__("rwkv_cli").load(), Choices(), name="killed")
    ) as session:
        assert [turn.user for turn in session.conversation.turns] == ["Once upon a time"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_end_a_chat_in_order(terminal, number):
    with terminal("chat", "--name", "talk") as it:
        place = wait_for(it, READY)
        it.send("hello\r")
        wait_for(it, READY, place)
        time.sleep(0.1)
        it.process.send_signal(number)
        assert finish(it) == 128 + number
        assert "Traceback" not in it.shown
    assert len(state_file.load(state_store.find("talk")).conversation["turns"]) == 1


def test_a_terminal_without_colours(terminal):
    with terminal("chat", NO_COLOR="1", COLUMNS="40") as it:
        wait_for(it, "to leave")
        it.send("hello\r")
        it.send("\x04")
        assert finish(it) == 0
    assert not re.search(r"\x1b\[[0-9;]*[1-9][0-9;]*m", it.shown)


def test_a_dumb_terminal(terminal):
    with terminal("chat", TERM="dumb") as it:
        wait_for(it, "to leave")
        it.send("hello\r")
        wait_for(it, r"hello[\s\S]*\w+")
        for line in ("/help", "/edit", "/set", "two \\", "lines", '"""', "and", 'three"""', "/show"):
            it.send(f"{line}\r")
        it.send("\x04")
        assert finish(it) == 0
    assert "\x1b" not in it.shown
    assert "give the new message: /edit TEXT" in it.shown
    assert re.search(r"turns +3", it.shown)


def test_a_message_differs_from_its_answer(terminal):
    """In bold type, or by an empty line where there is none; and a line of it that was wrapped is indented."""
    message = "Hello there, my dear friend, I hope that you are well"
    with terminal("chat", "--quiet", "--name", "talk", COLUMNS="40") as it:
        place = wait_for(it, READY)
        it.send(f"{message}\r")
        wait_for(it, READY, place)
        it.send("\x04")
        assert finish(it) == 0
    assert "\x1b[0;1m> " in it.shown
    for environment, apart in (({}, ""), ({"NO_COLOR": "1"}, "\n"), ({"TERM": "dumb"}, "\n")):
        with terminal("chat", "--name", "talk", COLUMNS="40", **environment) as it:
            wait_for(it, "to leave")
            it.send("\x04")
            assert finish(it) == 0
        shown = it.shown.replace("\r", "")
        bold, plain = ("", "") if environment else ("\x1b[1m", "\x1b[0m")
        typed = f"{bold}> Hello there, my dear friend, I hope\n  that you are well{plain}\n"
        turn = state_file.load(state_store.find("talk")).conversation["turns"][0]
        assert f"{typed}{apart}{turn['text'].split()[0]}" in shown


@pytest.mark.parametrize("term", ["dumb", "unknown", "DUMB"])
@pytest.mark.parametrize(
    "command",
    [
        ("generate", "-p", "Once upon", "-n", "3"),
        ("generate", "--template", "g1", "-p", "Once upon", "-n", "3"),
        ("info",),
        ("models",),
        ("--help",),
        ("generate", "--help"),
        ("generate", "--nothing"),
        ("bench", "--prefill", "2", "--decode", "2", "--repeat", "1"),
        ("state", "save", "s", "-p", "Once upon a time"),
        ("quantize", "gosling", "--type", "int4", "copy.safetensors"),
        ("state", "list"),
    ],
    ids=" ".join,
)
def test_a_dumb_terminal_gets_no_escape_sequence(terminal, tmp_path, monkeypatch, term, command):
    monkeypatch.chdir(tmp_path)
    with terminal(*command, TERM=term, PYTHONPATH=os.pathsep.join(sys.path)) as it:
        finish(it)
    assert it.shown
    assert "\x1b" not in it.shown


def test_a_heat_map_on_a_dumb_terminal(rwkv, terminal):
    rwkv("state", "save", "s", "-p", "Once upon a time", stdin=b"")
    with terminal("state", "show", "s", TERM="dumb") as it:
        assert finish(it) == 0
    assert "memory" in it.shown
    assert "\x1b" not in it.shown


def test_help_imports_nothing_heavy():
    code = "import sys; sys.argv = ['rwkv', 'chat', '--help']; from rwkv_cli.cli.main import main\n"
    code += "try: main()\nfinally: print(sorted({'numpy', 'prompt_toolkit', 'rich', 'filelock'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.endswith("[]\n")
