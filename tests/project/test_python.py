"""What a person meets who types Python: one line for everything, what is public, and what a slip leads to."""

import io
import re
import subprocess
import sys

import numpy as np
import pytest
from helpers.actor import Actor, generated, spoken
from helpers.saved import some_state
from helpers.talker import talking
from helpers.writers import random_weights, write_pth

import rwkv_cli
from rwkv_cli import reporting
from rwkv_cli.engine.state import State
from rwkv_cli.errors import StateError, UsageError
from rwkv_cli.reporting import LineReporter, Reporter, default_reporter
from rwkv_cli.sampling_settings import SamplingSettings


@pytest.fixture(scope="module")
def model():
    return rwkv_cli.load(device="cpu")


# ---------------------------------------------------------------------------------------------------------- one line


def test_everything_is_one_line(model):
    generation = model.generate("Once upon a time", template="story", seed=1, max_tokens=100)
    begun = repr(generation)
    for _ in generation:
        pass
    conversation = rwkv_cli.Conversation(model, max_tokens=3, seed=1)
    list(conversation.ask("hi"))
    shown = {
        type(each).__name__: repr(each)
        for each in (
            model,
            model.backend,
            model.tokenizer,
            model.info.tokenizer,
            generation,
            generation.session,
            generation.commit(),
            generation.session.state,
            conversation,
            conversation.to_saved("talk"),
        )
    }
    assert all(len(line) < 200 and "\n" not in line for line in shown.values()), shown
    assert shown["Model"].startswith(
        "<Model 'gosling': 29.9 M parameters in int8, 12 layers, template story, on cpu"
    )
    assert shown["State"] == "<State: 12 layers of 6 heads of 64×64, 1.2 MB>"
    assert shown["Conversation"] == "<Conversation with 'gosling': 1 turn, template dialogue>"
    assert shown["SavedState"].startswith("<SavedState 'talk': ")
    assert begun == f"<Generation: not begun, {generation.usage.prompt_tokens} tokens of prompt>"
    assert re.match(r"<Generation: 100 tokens, length: '…", shown["Generation"])
    assert shown["JsonTokenizer"].startswith(
        "<JsonTokenizer: byte-level BPE (tokenizer.json), 8,192 tokens, "
    )
    assert len(repr(model.info)) < 2000


def test_a_line_break_in_a_name_or_a_text_stays_in_the_line():
    model = talking({"x": "a\nb"})
    assert "\n" not in repr(model)
    generation = model.generate("x", max_tokens=3)
    assert "\n" in generation.text
    assert "\n" not in repr(generation)


# -------------------------------------------------------------------------------------------- the text of a generation


def generation_of(said, **options):
    model = talking()
    backend = Actor(spoken(said))
    session = rwkv_cli.Session(backend, model.sampler(SamplingSettings(temperature=0)))
    return generated(session, spoken("x"), model.tokenizer, **options)


def test_the_text_is_generated_where_nobody_iterated():
    assert generation_of("hello there").text == "hello there"


def test_within_a_loop_it_is_what_has_come():
    generation = generation_of("hello")
    seen = [(generation.text, step.text) for step in generation]
    assert [text for text, _ in seen] == ["h", "he", "hel", "hell", "hello", "hello"]
    assert generation.text == "hello"


def test_after_an_early_end_it_is_what_has_come_with_what_was_held_back():
    generation = generation_of("hello stop", stop=["stuff"])
    for _ in zip(range(8), generation, strict=False):
        pass
    assert generation.text == "hello "
    assert generation.flush() == "st"
    assert generation.text == "hello st"
    assert generation.usage.generated_tokens == 8


def test_a_stop_string_is_not_in_it():
    assert generation_of("hello. And", stop=[". "]).text == "hello"


def test_once_committed_nothing_more_is_generated():
    generation = generation_of("hello")
    generation.commit()
    assert generation.text == ""


# -------------------------------------------------------------------------------------------------------------- states


def test_a_state_in_a_file(tmp_path):
    state = some_state().snapshot.state
    state.save(tmp_path / "s.safetensors")
    again = State.load(str(tmp_path / "s.safetensors"))
    for part in State.PARTS:
        np.testing.assert_array_equal(getattr(again, part), getattr(state, part))
    assert (tmp_path / "s.safetensors").stat().st_mode & 0o777 == 0o600


def test_the_state_in_a_state_file(tmp_path):
    saved = some_state()
    rwkv_cli.state_file.save(tmp_path / "s.safetensors", saved)
    np.testing.assert_array_equal(State.load(tmp_path / "s.safetensors").wkv, saved.snapshot.state.wkv)
    rwkv_cli.state_file.save(tmp_path / "c.safetensors", saved, compact=True)
    with pytest.raises(StateError, match=r"is a compact state: read it with rwkv_cli.state_file.load"):
        State.load(tmp_path / "c.safetensors")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "there is no file"),
        (b"x", "is not a state"),
        (b"\x02" + bytes(7) + b"{}", "shift_att is missing"),
    ],
)
def test_what_is_no_state_is_one_sentence(tmp_path, content, said):
    path = tmp_path / "s.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StateError, match=said):
        State.load(path)


def test_a_state_continues(model, tmp_path):
    tokens = model.tokenizer.encode("Once upon a time")
    _, state = model.forward(tokens)
    state.save(tmp_path / "s.safetensors")
    more, _ = model.forward(tokens, State.load(tmp_path / "s.safetensors"))
    np.testing.assert_array_equal(more, model.forward(tokens, state)[0])


def test_a_conversation_in_a_file(tmp_path):
    model = talking()
    conversation = rwkv_cli.Conversation(model, max_tokens=8, seed=1)
    list(conversation.ask("hello"))
    conversation.save(tmp_path / "talk.safetensors")
    again = rwkv_cli.Conversation.load(tmp_path / "talk.safetensors", model)
    for each in (conversation, again):
        list(each.ask("bye"))
    assert again.turns == conversation.turns
    assert len(again.turns) == 2


def test_a_conversation_of_another_model(model, tmp_path):
    conversation = rwkv_cli.Conversation(talking(), max_tokens=8)
    conversation.save(tmp_path / "talk.safetensors")
    with pytest.raises(StateError, match="this state belongs to talker"):
        rwkv_cli.Conversation.load(tmp_path / "talk.safetensors", model)


# ------------------------------------------------------------------------------------------------------------- public


def test_the_package_is_imported_at_once():
    program = """
import sys, rwkv_cli
assert {"load", "perplexity", "quantize"} <= set(dir(rwkv_cli))
heavy = {"numpy", "torch", "rich", "httpx", "httpx2", "huggingface_hub", "numba", "typer", "PIL"}
print(*sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_every_public_name_is_there():
    assert all(getattr(rwkv_cli, name) is not None for name in rwkv_cli.__all__)
    with pytest.raises(AttributeError, match="no attribute 'perplexty'"):
        rwkv_cli.perplexty  # noqa: B018


def test_perplexity(model):
    tokens = model.tokenizer.encode("The goose swam on the pond.")
    logits = model.forward_all(tokens)[0].astype(np.float64)
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    expected = np.exp(-np.log([row[token] for row, token in zip(shares, tokens[1:], strict=False)]).mean())
    assert rwkv_cli.perplexity(model, "The goose swam on the pond.") == pytest.approx(expected, rel=1e-6)
    assert rwkv_cli.perplexity(model, tokens) == rwkv_cli.perplexity(model, "The goose swam on the pond.")
    for short in ("", [1]):
        with pytest.raises(UsageError, match="at least two tokens"):
            rwkv_cli.perplexity(model, short)
    with pytest.raises(UsageError):
        rwkv_cli.perplexity(model, [1, 10**6])


def test_a_batch_is_in_the_order_of_its_prompts(model):
    texts = ["The goose", rwkv_cli.Prompt("The fox"), "A"]
    found = rwkv_cli.batch(model, texts, max_tokens=4, template="raw", temperature=0)
    alone = [model.generate(text, max_tokens=4, temperature=0).text for text in ("The goose", "The fox", "A")]
    assert [answer.text for answer in found] == alone


def test_quantize(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_pth(tmp_path / "tiny.pth", random_weights())
    path = rwkv_cli.quantize("tiny.pth", weight_type="int4")
    assert str(path) == "tiny-int4.safetensors"
    assert rwkv_cli.load(path, device="cpu").info.weight_type == "int4"
    with pytest.raises(UsageError, match="exists already: use force=True to replace it"):
        rwkv_cli.quantize("tiny.pth", weight_type="int4")
    before = path.stat().st_mtime_ns
    assert rwkv_cli.quantize("tiny.pth", tmp_path, "int4", template="world", force=True) == tmp_path / path
    assert path.stat().st_mtime_ns > before
    assert rwkv_cli.load(path, device="cpu").template.name == "world"
    with pytest.raises(UsageError, match=r"^weight_type is 'int3': it must be one of int8, int4"):
        rwkv_cli.quantize("tiny.pth", weight_type="int3")


# --------------------------------------------------------------------------------------------------------------- slips


@pytest.mark.parametrize(
    ("name", "meant"),
    [("temprature", "temperature"), ("topp", "top_p"), ("max_token", "max_tokens"), ("Seed", "seed")],
)
def test_a_misspelt_setting_names_the_nearest(model, name, meant):
    conversation = rwkv_cli.Conversation(model)
    for attempt in (
        lambda: model.generate("x", **{name: 1}),
        lambda: rwkv_cli.Conversation(model, **{name: 1}),
        lambda: conversation.choose(**{name: 1}),
        lambda: rwkv_cli.batch(model, ["x"], **{name: 1}),
    ):
        with pytest.raises(TypeError, match=f"^unknown setting '{name}'; did you mean .*{meant}"):
            attempt()


def test_what_is_near_nothing_is_told_what_there_is(model):
    with pytest.raises(TypeError, match=r"^unknown setting 'zzz'; there are temperature, top_p,"):
        model.generate("x", zzz=1)


# ------------------------------------------------------------------------------------------------------------ progress


class Screen(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_shown_where_somebody_looks(tmp_path, monkeypatch):
    write_pth(tmp_path / "tiny.pth", random_weights())
    monkeypatch.setenv("RWKV_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(reporting, "_PAUSE", 0)
    screen = Screen()
    monkeypatch.setattr("sys.stderr", screen)
    rwkv_cli.load(tmp_path / "tiny.pth", device="cpu")
    first, *_ = screen.getvalue().split("\n")
    assert first.startswith("quantizing tiny.pth to int8, once, into ")
    assert re.search(r"\rquantizing: \d+% of [\d.]+ [kM] weights", screen.getvalue())
    assert screen.getvalue().endswith("\r")  # the line is empty again
    again = Screen()
    monkeypatch.setattr("sys.stderr", again)
    rwkv_cli.load(tmp_path / "tiny.pth", device="cpu")
    assert again.getvalue() == ""


def test_nobody_looks_at_a_file(tmp_path, monkeypatch, capsys):
    write_pth(tmp_path / "tiny.pth", random_weights())
    monkeypatch.setenv("RWKV_CACHE_DIR", str(tmp_path / "cache"))
    rwkv_cli.load(tmp_path / "tiny.pth", device="reference")
    rwkv_cli.quantize(tmp_path / "tiny.pth", tmp_path / "x.safetensors")
    assert capsys.readouterr() == ("", "")


def test_a_notebook_is_a_place_where_somebody_looks(monkeypatch):
    kind = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})
    monkeypatch.setattr("sys.stderr", kind())
    assert isinstance(default_reporter(), LineReporter)
    for stream in (io.StringIO(), None):
        monkeypatch.setattr("sys.stderr", stream)
        assert type(default_reporter()) is Reporter


def test_a_line_of_progress_leaves_nothing_of_a_longer_one(monkeypatch):
    monkeypatch.setattr(reporting, "_PAUSE", 0)
    screen = Screen()
    monkeypatch.setattr("sys.stderr", screen)
    reporter = LineReporter()
    reporter.downloading(10, 123_456_789)
    reporter.downloading(1, None)
    reporter.note("a line")
    shown = screen.getvalue().split("\r")
    assert shown[2] == "downloading: 0% of 123.5 MB"
    assert shown[3] == "downloading: 1 bytes".ljust(len(shown[2]))
    assert shown[-1] == "a line\n"
