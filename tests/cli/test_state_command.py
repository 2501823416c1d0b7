"""`rwkv state`, and `rwkv generate` with states: one document and many questions, branches, and going on as before."""

import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import RWKV
from helpers.models import write_file
from helpers.writers import TINY, random_weights, write_pth, write_torch
from rich.console import Console

from rwkv_cli.cli.reports import heat_map
from rwkv_cli.config import ModelConfig
from rwkv_cli.engine.session import Snapshot
from rwkv_cli.engine.state import State
from rwkv_cli.model import load
from rwkv_cli.paths import EMBEDDED_MODEL
from rwkv_cli.sessions import resume, state_file, state_store
from rwkv_cli.sessions.model_identity import identify_file
from rwkv_cli.sessions.state_file import SavedState
from rwkv_cli.text.templates import get_template


@pytest.fixture
def tiny(rwkv, tiny_model):
    """`rwkv`, with the model that says random bytes."""

    def call(command, *arguments, stdin=b""):
        return rwkv(*command.split(), *arguments, "-m", tiny_model, stdin=stdin)

    return call


def lines(result):
    assert result.code == 0, result.err
    return [json.loads(line) for line in result.out.splitlines()]


def tokens(result):
    return [line["token"] for line in lines(result) if "token" in line]


# ------------------------------------------------------------------------------------------- going on as before


def test_two_halves_are_one_whole(tiny):
    options = ("--presence-penalty", 0.5, "--frequency-penalty", 0.3, "-t", 1.3, "--json")
    whole = tokens(tiny("generate -p abc -n 60 --seed 5", *options))
    first = tokens(tiny("generate -p abc -n 30 --seed 5 --save-state half", *options))
    second = tokens(
        tiny("generate --state half -n 30 --json")
    )  # settings and seed are those of the first half
    assert first + second == whole


@pytest.mark.parametrize("first", [1, 2, 3, 4])
def test_a_state_may_stand_within_a_character(rwkv, first):
    """On the embedded model, which says a space and the four bytes of a face."""

    def said(*arguments):
        result = rwkv("generate", *arguments, stdin=b"")
        assert result.code == 0, result.err
        return result.out.removesuffix("\n")

    faces = [token for token in range(1, 257) if token not in (221, 173, 254, 247, 233)]
    whole = (
        "--template",
        "dialogue",
        "-p",
        "你好👨‍👩‍👧",
        "--seed",
        "1",
        *(f"--ban={token}" for token in faces),
    )
    assert said(*whole, "-n", "5") == " 😊"
    assert said(*whole, "-n", first, "--save-state", "s") == " "
    saved = state_file.load(state_store.find("s"))
    assert saved.unfinished == "😊".encode()[: first - 1]
    assert saved.text.endswith("Assistant: ")
    assert said("--state", "s", "-n", 5 - first) == "😊"
    if first > 1:  # a turn that follows does not end the character
        said("--state", "s", "-p", "Well?", "-n", "0", "--save-state", "t")
        assert ": \ufffd\n\nUser: Well?" in state_file.load(state_store.find("t")).text


def test_two_halves_in_two_processes():
    """On the embedded model, in text."""

    def generate(*arguments):
        command = [*RWKV, "generate", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.removesuffix("\n")

    prompt = ("-p", "Once upon a time", "--seed", "4", "--temperature", "1.1")
    whole = generate(*prompt, "-n", "120")
    first = generate(*prompt, "-n", "60", "--save-state", "half")
    assert first + generate("--state", "half", "-n", "60") == whole
    assert first + generate("--state", "half", "-n", "60") == whole  # the state stayed as it was
    assert first + generate("--state", "half", "-n", "60", "--seed", "99") != whole


def test_halves_of_halves(tiny):
    """A state that is saved over itself goes on, with its text."""
    whole = tokens(tiny("generate -p abc -n 40 --seed 5 --json"))
    found = tokens(tiny("generate -p abc -n 10 --seed 5 --json --save-state s"))
    begun = state_file.load(state_store.find("s"))
    begun.created = "2020-02-02T02:02:02+00:00"
    state_file.save(state_store.find("s"), begun)
    for _ in range(3):
        found += tokens(tiny("generate --state s -n 10 --json --save-state s"))
    assert found == whole
    saved = state_file.load(state_store.find("s"))
    assert saved.snapshot.n_tokens == 3 + 40
    assert saved.created == "2020-02-02T02:02:02+00:00"
    expected = tiny("generate -p abc -n 40 --seed 5").out.removesuffix("\n")
    assert saved.text == "abc" + expected  # though it was cut in the middle of characters


def test_what_is_generated_after_a_stop_was_never_read(tiny):
    say_x = [f"--ban={token}" for token in range(300) if token != ord("x") + 1]
    tiny("generate -p ab --stop xx -n 9 --save-state s", *say_x)
    saved = state_file.load(state_store.find("s"))
    assert (saved.text, saved.snapshot.n_tokens) == ("ab", 2)


def test_nothing_generated_is_only_read(tiny):
    result = tiny("generate -p abc -n 0 --save-state s --seed 3")
    assert (result.code, result.out) == (0, "")
    both = [tokens(tiny(f"generate {each} -n 9 --json")) for each in ("--state s", "-p abc --seed 3")]
    assert both[0] == both[1]


def test_the_reference_goes_on_where_the_cpu_was(tiny):
    tiny("generate -p abc -n 5 --temperature 0 --save-state s")
    first, second = (tokens(tiny("generate --state s -n 5 --json", "-d", d)) for d in ("cpu", "reference"))
    assert first == second


# ------------------------------------------------------------------------------------------ many questions


def test_one_document_and_many_questions(rwkv, tmp_path):
    book = tmp_path / "book.txt"
    book.write_text("Once upon a time there was a fox. " * 20)
    result = rwkv("state", "save", "book", "-f", book)
    assert re.fullmatch(r"book: [\d,]+ tokens of gosling\.pth, 1\.3 MB\n", result.out)
    before = state_store.find("book").read_bytes()
    answers = {
        question: lines(rwkv("generate", "--state", "book", "-p", question, "-n", 5, "--json", "--seed", 1))
        for question in (" The fox", " One day, a bear")
    }
    assert state_store.find("book").read_bytes() == before
    document = state_file.load(state_store.find("book")).snapshot
    model = load()
    for question, answer in answers.items():
        assert answer[-1]["usage"]["prompt_tokens"] < 10
        own = model.generate(question, start=document, template="story", seed=1, max_tokens=5)
        assert [step.token for step in own] == [line["token"] for line in answer if "token" in line]


def test_a_document_is_read_as_a_document(tiny):
    tiny("state save s", stdin=b"abc\n")
    saved = state_file.load(state_store.find("s"))
    assert (saved.text, saved.snapshot.n_tokens, saved.template, saved.snapshot.memory) == (
        "abc",
        3,
        None,
        None,
    )
    tiny("state save s --state s -p de")
    assert state_file.load(state_store.find("s")).text == "abcde"
    tiny("state save t --template qa -p", "why?")
    saved = state_file.load(state_store.find("t"))
    assert (saved.text, saved.template) == ("Question: why?\n\nAnswer:", get_template("qa"))


def test_the_template_of_a_state_lays_out_the_next_turn(tiny):
    tiny("generate -p hi --template qa -n 3 --save-state s --seed 1")
    tiny("generate -p again --state s -n 0 --save-state t")
    text, before = (state_file.load(state_store.find(name)).text for name in ("t", "s"))
    assert before.startswith("Question: hi\n\nAnswer:")
    assert text == before + "\n\nQuestion: again\n\nAnswer:"
    tiny("generate -p again --raw --state s -n 0 --save-state u")
    assert state_file.load(state_store.find("u")).text == before + "again"


def test_text_is_kept_unless_it_is_not_wanted(tiny):
    tiny("state save s -p abc --no-text")
    tiny("generate --state s -p d -n 2 --save-state t")
    assert [state_file.load(state_store.find(name)).text for name in "st"] == [None, None]


def test_a_seed_leaves_the_penalties(tiny):
    options = ("--presence-penalty", 2, "--frequency-penalty", 2, "-t", 0)
    tiny("generate -p abc -n 20 --save-state s", *options)
    ways = [tokens(tiny("generate --state s -n 20 --json", *seed)) for seed in ((), ("--seed", 7))]
    assert ways[0] == ways[1]  # nothing is drawn at temperature 0


def test_state_load_answers_a_prompt(tiny):
    tiny("state save s -p abc")
    before = state_store.find("s").read_bytes()
    loaded = tiny("state load s -p d -n 9 --seed 2")
    assert loaded.out == tiny("generate --state s -p d -n 9 --seed 2").out
    assert state_store.find("s").read_bytes() == before
    assert "rwkv chat --state" in tiny("state load s --json").err


# ------------------------------------------------------------------------------------------------ which model


def test_the_model_of_a_state_is_found(tiny, rwkv, tiny_model, monkeypatch):
    tiny("state save s -p abc")
    result = rwkv("generate", "--state", "s", "-n", 3, "--json", stdin=b"")
    assert lines(result)[-1]["model"] == str(tiny_model)
    monkeypatch.setenv("RWKV_MODEL", str(EMBEDDED_MODEL))  # a default, and not the model of this state
    result = rwkv("generate", "--state", "s", "-n", 3, "--json", stdin=b"")
    assert lines(result)[-1]["model"] == str(tiny_model)


def test_a_model_that_is_gone(rwkv, tmp_path, byte_vocabulary):
    path = write_file(tmp_path / "m.safetensors", random_weights(seed=3), tokenizer=byte_vocabulary)
    rwkv("state", "save", "s", "-p", "abc", "-m", path)
    moved = path.rename(tmp_path / "moved.safetensors")
    gone = rwkv("generate", "--state", "s", "-p", "d").sentence
    assert gone == f"the model of this state, random, is no longer at {path}: give its new path with --model"
    assert rwkv("generate", "--state", "s", "-p", "d", "-n", 1, "-m", moved).code == 0
    write_file(path, random_weights(seed=4), tokenizer=byte_vocabulary)  # another one in its place
    assert "this state belongs to random" in rwkv("generate", "--state", "s", "-p", "d").sentence
    assert "not to gosling.pth" in rwkv("generate", "--state", "s", "-p", "d", "-m", "gosling").sentence


def test_a_state_calls_no_other_machine(rwkv, tiny):
    tiny("state save s -p abc")
    path = state_store.find("s")
    saved = state_file.load(path)
    for location in ("//evil/share/model.pth", "\\\\evil\\share\\model.pth", "../model.pth", ""):
        object.__setattr__(saved.model, "location", location)
        state_file.save(path, saved)
        assert "give its new path with --model" in rwkv("generate", "--state", "s", "-p", "d").sentence


@pytest.mark.parametrize("kind", ["model file", "checkpoint"])
def test_the_location_in_a_state_is_not_opened_before_the_users_own_model(tmp_path, byte_vocabulary, kind):
    """The model of RWKV_MODEL is the state's; where the state says that it is, there is something hostile."""
    weights = random_weights(seed=3)
    if kind == "model file":
        own = write_file(tmp_path / "own.safetensors", weights, tokenizer=byte_vocabulary)
    else:
        own = write_pth(tmp_path / "own.pth", weights)
    path = tmp_path / "s.safetensors"
    saved = SavedState(Snapshot(State.zeros(TINY), None, 3), identify_file(own)[0])
    hostile = tmp_path / "hostile.pth"
    hostile.write_bytes(b"PK")
    object.__setattr__(saved.model, "location", str(hostile))
    state_file.save(path, saved)
    assert resume._model_of(state_file.load(path), str(own)) == str(own)
    assert resume._model_of(state_file.load(path), None) == str(hostile)


def test_a_model_and_a_state_mixed_up(rwkv, tiny):
    tiny("state save s -p abc")
    assert "is a saved state and not a model: use it as --state" in (
        rwkv("generate", "-p", "a", "-m", state_store.find("s")).sentence
    )
    assert "it is a model file: pass it with --model" in (
        rwkv("generate", "-p", "a", "--state", EMBEDDED_MODEL).sentence
    )


# ------------------------------------------------------------------------------------------ what cannot be right


@pytest.mark.parametrize(
    ("arguments", "said", "code"),
    [
        ("generate -p a --state missing", "unknown state missing", 1),
        ("generate -p a --state ./missing", "there is no state file missing", 1),
        ("generate -p a -n 1 --save-state s", "the state s exists already: use --force", 2),
        (
            "generate -p a -n 1 --save-state text.safetensors",
            "exists and is not a state: it is not replaced",
            2,
        ),
        ("generate -p a -n 1 --save-state text.safetensors --force", "exists and is not a state", 2),
        ("generate -p a -n 1 --save-state folder/x", "the folder folder does not exist", 1),
        ("generate -p a -n 1 --save-state .x", "cannot be named '.x'", 2),
        ("generate -p a -n 1 --no-text", "--no-text, --compact and --force need --save-state", 2),
        ("generate -p a --state s --template world --system b", "a system prompt comes first", 2),
        ("state save s -p a", "the state s exists already", 2),
        ("state save t", "no prompt given", 2),
        ("state save t -p", "requires an argument", 2),
        ("state show missing", "unknown state missing", 1),
        ("state show text.safetensors", "is not a state that can be used", 1),
        ("state show s --png text.safetensors", "is not a PNG, so it is not replaced", 2),
        ("state fork s s", "are the same state", 2),
        ("state fork missing t", "unknown state missing", 1),
        ("state fork s t", "the state t exists already", 2),
        ("state rename s t", "a state named t exists", 2),
        ("state rename s ./t", "only named states can be renamed", 2),
        ("state rename missing u", "unknown state missing", 1),
        ("state rm s", "to remove s without confirmation, use --yes", 2),
        ("state rm -y s missing", "unknown state missing", 1),
        ("state import missing.pth u", "there is no file missing.pth", 1),
        ("state import text.safetensors u", "is not a state that can be used", 1),
        ("state import model.pth u", "is not a trained state: it contains the tensor 'emb.weight'", 1),
        ("state import trained.pth u -m gosling", "has 3 layers of [2, 64, 64], and gosling.pth has 12", 1),
        ("state import trained.pth s", "the state s exists already", 2),
        ("state export missing x.safetensors", "unknown state missing", 1),
        ("state export s text.safetensors", "exists and is not a state", 2),
        ("state cache clean", "for 'clear'", 2),
        ("state nonsense", "no such command", 2),
    ],
)
def test_what_cannot_be_right_is_one_sentence(rwkv, tiny, tmp_path, monkeypatch, arguments, said, code):
    monkeypatch.chdir(tmp_path)
    tiny("state save s -p abc"), tiny("state save t -p abc")
    Path("text.safetensors").write_text("no state at all")
    write_pth(tmp_path / "model.pth", random_weights())
    write_torch(tmp_path / "trained.pth", trained())
    before = {name: state_store.find(name).read_bytes() for name in state_store.names()}
    stdin = b"" if arguments.startswith("state rm") else None
    result = rwkv(*arguments.split(), stdin=stdin)
    assert said.lower() in result.sentence.lower()
    assert result.code == code
    assert {name: state_store.find(name).read_bytes() for name in state_store.names()} == before
    assert Path("text.safetensors").read_text() == "no state at all"


def test_two_at_once_are_told(rwkv, tiny):
    with state_store.lock(state_store.resolve("s")):
        for arguments in ("generate -p a --save-state s", "state save s -p a"):
            result = rwkv(*arguments.split())
            assert f"is open in another rwkv (process {os.getpid()})" in result.sentence
    assert tiny("state save s -p a").code == 0


def test_a_full_disk_after_the_text(tiny, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    result = tiny("generate -p a -n 3 --save-state s")
    assert result.code == 1
    assert result.out  # the text was shown
    assert "no space left on the disk" in result.err
    assert state_store.names() == []


# ------------------------------------------------------------------------------------------------------- Ctrl-C


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
def test_ctrl_c_saves_what_is_shown(tiny_model):
    command = [*RWKV, "generate", "-m", tiny_model, "-p", "ab", "-n", "-1", "--save-state", "s"]
    command += ["--ban", "0", "--seed", "1"]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.read(200)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, b"")
    saved = state_file.load(state_store.find("s"))
    model = load(tiny_model)
    assert saved.snapshot.n_tokens > 100
    # The state has read exactly as much of what such a generation gives.
    generation = model.generate(
        "ab", template="raw", seed=1, max_tokens=saved.snapshot.n_tokens, banned=frozenset({0})
    )
    read = [ord("a") + 1, ord("b") + 1, *(step.token for step in generation)]
    expected = State.zeros(model.config)
    model.backend.forward(read[:2], expected)
    for token in read[2 : saved.snapshot.n_tokens]:
        model.backend.forward([token], expected)
    np.testing.assert_array_equal(saved.snapshot.state.wkv, expected.wkv)


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
def test_ctrl_c_while_the_prompt_is_read_saves_nothing(terminal, tmp_path):
    prompt = tmp_path / "long.txt"
    prompt.write_text("Once upon a time " * 30_000)
    for command in (("generate", "--save-state", "s"), ("state", "save", "s")):
        with terminal(*command, "-f", prompt) as it:
            it.read_until("reading the prompt")
            os.kill(it.process.pid, signal.SIGINT)
            assert it.finish() == 130
            assert "Traceback" not in it.shown
        assert state_store.names() == []


# ---------------------------------------------------------------------------------------------- the other commands


def test_list(rwkv, tiny):
    empty = rwkv("state", "list")
    assert (empty.out, "no states yet" in empty.err) == ("", True)
    assert json.loads(rwkv("state", "list", "--json").out) == []
    tiny("state save b -p abc"), tiny("state save A --compact -p abc")
    (state_store.folder() / "broken.safetensors").write_bytes(b"x")
    shown = rwkv("state", "list").out.splitlines()
    assert [line.split()[0] for line in shown] == ["name", "A", "b", "broken"]
    assert re.fullmatch(r"b +document +random +3 +\d+\.\d kB +\d{4}-\d\d-\d\d \d\d:\d\d", shown[2])
    rows = json.loads(rwkv("state", "list", "--json").out)
    assert [row["name"] for row in rows] == ["A", "b", "broken"]
    assert (rows[0]["compact"], rows[1]["compact"], rows[1]["tokens"]) == (True, False, 3)
    assert "too short" in rows[2]["error"]


def test_kinds(rwkv, tiny, tmp_path):
    """What a state was made of is told, and that of a trained one from a document that goes on from it."""
    tiny("state save document -p abc")
    tiny("generate -n 3 --save-state text -p abc")
    assert tiny("chat --quiet --name talk", stdin=b"hello\n").code == 0
    write_torch(tmp_path / "tuned.pth", trained())
    tiny("state import", tmp_path / "tuned.pth", "tuned")
    tiny("state save after --state tuned -p abc")
    kinds = {row["name"]: row["kind"] for row in json.loads(rwkv("state", "list", "--json").out)}
    assert kinds == {
        "after": "document",
        "document": "document",
        "talk": "chat",
        "text": "text",
        "tuned": "trained",
    }
    assert json.loads(rwkv("state", "show", "talk", "--json").out)["kind"] == "chat"


def test_a_list_fits_the_terminal_and_has_everything(terminal, tiny):
    tiny("state save", "a" * 20, "-p", "abc")
    with terminal("state", "list", COLUMNS="80") as it:
        assert it.finish() == 0
    assert [len(line.split()) for line in it.shown.splitlines()] == [6, 8]
    with terminal("state", "list", COLUMNS="40", NO_COLOR="1") as it:
        assert it.finish() == 0
    lines = it.shown.splitlines()
    assert lines[0] == "a" * 20
    assert [line.split()[0] for line in lines[1:]] == ["kind", "model", "tokens", "size", "modified"]
    assert max(map(len, lines)) <= 40


def test_show(rwkv, tiny):
    tiny("generate -n 3 --seed 1 --save-state s -p", "abc\x1b[31m")
    shown = rwkv("state", "show", "s")
    assert "random, int8 weights" in shown.out
    assert "11 tokens" in shown.out
    assert "last text\nabc␛[31m" in shown.out
    assert "\x1b" not in shown.out
    assert "3 layers from left to right, 2 heads; norms from" in shown.out
    facts = json.loads(rwkv("state", "show", "s", "--json").out)
    assert np.array(facts["norms"]).shape == (3, 2)
    assert (facts["tokens"], facts["settings"]["seed"], facts["turns"]) == (11, 1, None)
    wkv = state_file.load(state_store.find("s")).snapshot.state.wkv
    np.testing.assert_allclose(facts["norms"][1][1], np.linalg.norm(wkv[1, 1]), rtol=1e-5, atol=1e-6)


def test_no_terminal_obeys_the_name_of_a_file(rwkv, tiny, tmp_path):
    path = tmp_path / "\x1b[31m雪.safetensors"
    tiny("state save", path, "-p", "abc")
    shown = rwkv("state", "show", path, "--png", tmp_path / "s.png")
    assert (shown.code, "\x1b" in shown.out) == (0, False)
    assert "\x1b" not in rwkv("state", "fork", path, tmp_path / "\x1b[32m").out


def test_show_on_a_terminal(terminal, tiny):
    tiny("state save s -p abc")
    for environment, colours in (
        ({"COLORTERM": "truecolor"}, "38;2;"),
        ({"TERM": "xterm-256color", "COLORTERM": ""}, "38;5;"),
        ({"NO_COLOR": "1"}, None),
    ):
        with terminal("state", "show", "s", **environment) as it:
            assert it.finish() == 0
            picture = it.shown[it.shown.index("last text") :]
            assert ("▀" in picture) == (colours is not None)
            assert ("█" in picture) == (colours is None)
            assert colours is None or colours in picture


def test_show_writes_a_png(rwkv, tiny, tmp_path):
    from PIL import Image

    tiny("state save s -p abc")
    for _ in range(2):  # a picture may be replaced
        assert rwkv("state", "show", "s", "--png", tmp_path / "s.png").code == 0
    with Image.open(tmp_path / "s.png") as image:
        assert image.format == "PNG"
        assert len(image.convert("RGB").getcolors(100_000)) > 50  # cells, text and the scale
    assert "the folder" in rwkv("state", "show", "s", "--png", tmp_path / "missing" / "s.png").sentence


@pytest.mark.parametrize(("L", "H", "width"), [(61, 64, 40), (12, 6, 80), (1, 1, 20), (24, 33, 200)])
@pytest.mark.parametrize("colours", ["truecolor", None])
def test_a_picture_fits(L, H, width, colours):
    values = np.exp(np.random.default_rng(0).uniform(-3, 6, (L, H)))
    values[0, 0] = 0
    file = io.StringIO()
    console = Console(
        file=file, width=width, color_system=colours, force_terminal=bool(colours), no_color=not colours
    )
    heat_map.print_map(values, console)
    *rows, _ = re.sub(r"\x1b\[[0-9;]*m", "", file.getvalue()).splitlines()
    rows = [row for row in rows if "layers" not in row]
    assert len(rows) >= (-(-H // 2) if colours else H)
    assert max(map(len, rows[:H])) <= width
    assert heat_map._drawn(values, "title").startswith(heat_map.PNG)


def test_a_picture_of_nothing():
    file = io.StringIO()
    heat_map.print_map(np.zeros((3, 2)), Console(file=file, width=40))
    assert "norms from 0 to 0" in file.getvalue()
    assert "█" not in file.getvalue()


def test_fork_rename_and_rm(rwkv, tiny):
    tiny("state save a -p abc")
    assert rwkv("state", "fork", "a", "b").out.startswith("b: 3 tokens of random")
    assert state_file.load(state_store.find("b")).text == "abc"
    assert rwkv("state", "rename", "b", "c d").code == 0
    assert state_store.names() == ["a", "c d"]
    assert rwkv("state", "rm", "--yes", "a", "c d").code == 0
    assert state_store.names() == []


def test_rm_asks(terminal, tiny):
    for answer, left in (("n\r", ["s"]), ("y\r", [])):
        tiny("state save s --force -p abc")
        with terminal("state", "rm", "s") as it:
            it.read_until("[y/N] ")
            os.write(it._master, answer.encode())
            assert it.finish() == 0
        assert state_store.names() == left


def test_export_and_import(rwkv, tiny, tmp_path):
    tiny("state save s -p abc")
    file = tmp_path / "out.safetensors"
    assert rwkv("state", "export", "s", file, "--no-text", "--compact").out.startswith(str(file))
    assert state_file.peek(file).compact
    assert state_file.load(file).text is None
    assert rwkv("state", "export", "s", tmp_path).code == 0
    assert state_file.load(tmp_path / "s.safetensors").text == "abc"
    assert rwkv("state", "import", tmp_path / "s.safetensors", "t").code == 0
    both = [state_file.load(state_store.find(name)) for name in "st"]
    np.testing.assert_array_equal(both[0].snapshot.state.wkv, both[1].snapshot.state.wkv)
    assert "exists already" in rwkv("state", "export", "s", tmp_path).sentence
    assert rwkv("state", "export", "s", tmp_path, "--force").code == 0


def trained(L=3, H=2, N=64):
    """What state tuning gives: a tensor a layer, [H, N, N] with keys before values."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((L, H, N, N)).astype(np.float32)
    return {f"blocks.{layer}.att.time_state": values[layer] for layer in range(L)}


def test_a_trained_state(rwkv, tiny_model, tmp_path):
    file = write_torch(tmp_path / "trained.pth", trained(), "f32")
    result = rwkv("state", "import", file, "tuned", "-m", tiny_model)
    assert result.out.startswith("tuned: 0 tokens of random")
    assert result.out.endswith("a trained state\n")
    saved = state_file.load(state_store.find("tuned"))
    assert saved.snapshot.logits is None
    for layer, values in enumerate(trained().values()):
        np.testing.assert_array_equal(saved.snapshot.state.wkv[layer], values.swapaxes(-1, -2))
    assert not saved.snapshot.state.shift_att.any()
    assert "the prompt is empty" in rwkv("generate", "--state", "tuned", stdin=b"").sentence
    found = tokens(rwkv("generate", "--state", "tuned", "-p", "abc", "-n", 5, "--json", "-t", 0))
    model = load(tiny_model)
    start = [step.token for step in model.generate("abc", template="raw", max_tokens=5, temperature=0)]
    tuned = model.generate("abc", template="raw", max_tokens=5, temperature=0, start=saved.snapshot)
    assert found == [step.token for step in tuned] != start
    assert "read      0 tokens" in rwkv("state", "show", "tuned").out


def test_a_trained_state_with_a_nan(rwkv, tiny_model, tmp_path):
    tensors = trained()
    tensors["blocks.1.att.time_state"][0, 0, 0] = np.nan
    file = write_torch(tmp_path / "trained.pth", tensors, "f32")
    assert "contains NaN or infinity" in rwkv("state", "import", file, "tuned", "-m", tiny_model).sentence


def test_the_cache_command(rwkv, tmp_path, monkeypatch):
    monkeypatch.setattr("rwkv_cli.sessions.prompt_cache.folder", lambda: tmp_path / "prompts")
    monkeypatch.setenv("RWKV_CACHE_SIZE", "100MB")
    prompt = "Once upon a time there was a fox. " * 100
    plain = rwkv("generate", "-p", prompt, "-n", 5, "--seed", 1, "--json", "--no-cache")
    assert not (tmp_path / "prompts").exists()
    first, again = (rwkv("generate", "-p", prompt, "-n", 5, "--seed", 1, "--json") for _ in range(2))
    assert tokens(plain) == tokens(first) == tokens(again)
    usage = lines(again)[-1]["usage"]
    assert usage["cached_tokens"] == usage["prompt_tokens"] > 512
    assert "cached_tokens" not in lines(first)[-1]["usage"]
    shown = rwkv("state", "cache").out
    assert str(tmp_path) in shown
    assert re.search(r"\d\.\d MB of at most 100\.0 MB", shown)
    assert re.fullmatch(r"removed \d\.\d MB\n", rwkv("state", "cache", "clear").out)
    assert re.search(r"states +0\n", rwkv("state", "cache").out)


def test_the_terminal_tells_what_came_from_the_cache(terminal, tmp_path):
    from rwkv_cli import paths

    cache = tmp_path / "cache"
    cache.mkdir()
    for folder in paths.cache_folder().glob("kernels-*"):
        (cache / folder.name).symlink_to(folder)
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("Once upon a time there was a fox. " * 100)
    environment = {"RWKV_CACHE_DIR": str(cache), "RWKV_CACHE_SIZE": "1GB"}
    for said in (r"; prompt \d+ tokens, ", r"; ([\d,]+) of \1 prompt tokens came from the cache"):
        with terminal("generate", "-f", prompt, "-n", 1, **environment) as it:
            assert it.finish() == 0
            assert re.search(said, " ".join(it.shown.split()))  # it is wrapped at the terminal's width


def test_help_of_every_state_command():
    import typer

    from rwkv_cli.cli.main import app

    group = typer.main.get_command(app).commands["state"]
    for name, command in group.commands.items():
        assert command.help, name
        assert all(parameter.help for parameter in command.params), name


def test_the_program_understands_the_commands_of_the_guide():
    import shlex

    import typer

    from rwkv_cli.cli.main import app

    guide = (Path(__file__).parents[2] / "docs" / "states.md").read_text()
    found = re.findall(r"(?:^|\| |^ +)rwkv ((?:state|generate) [^|&>`#<\n]*)", guide, re.MULTILINE)
    assert len(found) > 20
    for line in found:
        command, arguments = typer.main.get_command(app), shlex.split(line)
        while hasattr(command, "commands"):
            command = command.commands[arguments.pop(0)]
        command.make_context("rwkv", arguments)  # parses, does not run


def test_help_imports_nothing_heavy():
    code = "import sys; sys.argv = ['rwkv', 'state', 'save', '--help']; from rwkv_cli.cli.main import main\n"
    code += "try: main()\nfinally: print(sorted({'numpy', 'PIL', 'filelock', 'rich'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.endswith("[]\n")


def test_one_model_of_one_layer_has_a_picture(rwkv, tmp_path, byte_vocabulary):
    config = ModelConfig(
        n_layer=1, n_embd=64, n_ffn=64, vocab_size=300, rank_w=8, rank_a=8, rank_v=0, rank_g=8
    )
    path = write_file(tmp_path / "small.safetensors", random_weights(config), tokenizer=byte_vocabulary)
    rwkv("state", "save", "s", "-p", "abc", "-m", path)
    assert "1 layers from left to right, 1 heads" in rwkv("state", "show", "s").out


@pytest.mark.parametrize(
    "line",
    ["state show b", "state fork b", "state rename b", "state rm b", "generate --state b", "chat --name b"],
)
def test_names_of_states_are_completed(tiny, line):
    for name in ("book", "bird", "cat"):
        assert tiny("state", "save", name, "--prompt", "Once").code == 0
    words = f"rwkv {line}"
    environment = os.environ | {
        "_RWKV_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    code = "from rwkv_cli.cli.main import run; run([])"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert sorted(done.stdout.split()) == ["bird", "book"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_nobody_waits_for_a_pipe(tiny, rwkv, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert tiny("state", "save", "kept", "--prompt", "Once").code == 0
    for command in (("state", "export", "kept", pipe), ("state", "fork", "kept", pipe)):
        result = rwkv(*command)
        assert "it is not replaced" in result.sentence
        assert result.code == 2
    assert "it is not replaced" in tiny("state", "save", pipe, "--prompt", "Once").sentence
    for command in (("state", "show", pipe), ("state", "load", pipe), ("state", "import", pipe, "new")):
        assert "not a regular file" in rwkv(*command).sentence


def test_a_loaded_state_may_be_replaced(tiny):
    for name in ("one", "two"):
        assert tiny("state", "save", name, "--prompt", "Once").code == 0
    again = ("state", "load", "one", "--prompt", "x", "-n", "2", "--save-state", "two")
    assert "--force" in tiny(*again).sentence
    assert tiny(*again, "--force").code == 0
