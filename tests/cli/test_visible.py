"""What a terminal would obey, reorder or hide is made visible; what people write is left alone."""

import json
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.layout.screen import Char
from prompt_toolkit.output import DummyOutput

from rwkv_cli.cli.chat.input import TerminalReader
from rwkv_cli.cli.terminal import ui
from rwkv_cli.cli.terminal.output import TextOutput
from rwkv_cli.cli.terminal.visible import Printer, hidden_characters, printable, safe_json
from rwkv_cli.generation import Step
from rwkv_cli.text.thinking import Part

DIRECTIONS = [*"\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c"]
NO_WIDTH = [*"\u200b\u2060\u2061\u2064\ufeff\u034f\ufff9"]
TAGS = [chr(code) for code in (0xE0000, 0xE0001, 0xE0020, 0xE0061, 0xE007F)]
LINES = ["\u2028", "\u2029"]
ANY = st.text(st.characters(), max_size=40)


@pytest.mark.parametrize(
    "character", [*DIRECTIONS, *NO_WIDTH, *TAGS, *LINES], ids=lambda c: f"U+{ord(c):04X}"
)
def test_what_hides_or_reorders_is_an_escape(character):
    code = ord(character)
    escape = f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
    assert printable(f"a{character}b{character}") == f"a{escape}b{escape}"
    assert hidden_characters()[character] == escape
    assert json.loads(safe_json(f'"{character}"')) == character
    assert safe_json(f'"{character}"').isascii()


def test_bytes_of_a_name_are_escapes():
    assert printable(b"mod\xe8le\xff\x80".decode("utf-8", "surrogateescape")) == "mod\\xe8le\\xff\\x80"
    assert printable("\ud83e!") == "\\ud83e!"
    assert safe_json('"\udce8"') == '"\\udce8"'


@pytest.mark.parametrize(
    "text",
    [
        "👨‍👩‍👧 ❤️‍🔥 🏳️‍🌈 👩🏽‍💻 🙂‍↔️",  # families, a burning heart, a flag, a skin colour
        "می‌خواهم کتاب‌ها",  # Persian: suffixes stand apart
        "नमस्ते क्‍ष क्‌ष",  # Devanagari: half forms, and none
        "র‍্যাব ක්‍ෂ ന്‍",  # Bengali, Sinhala, an old Malayalam letter
        "ᠬᠠᠭᠠᠨ᠎ᠠ",  # Mongolian
        "שלום עולם, مرحبا, 你好 葛󠄀城, Ærøskøbing, Straße, Ελληνικά, ภาษาไทย",
        "x\u0301 e\u0323\u0302 \u00ad\u00a0",
    ],
)
def test_what_people_write_is_left_alone(text):
    assert printable(text) == text
    assert safe_json(json.dumps(text, ensure_ascii=False)) == json.dumps(text, ensure_ascii=False)
    printer = Printer()
    assert "".join(map(printer, text)) == text


@pytest.mark.parametrize("joiner", "\u200c\u200d\u180e")
@pytest.mark.parametrize("before", ["", "a", "Я", "7", " ", ".", "👨\u200d", "\u0301", "漢"])
def test_a_joiner_that_joins_nothing_is_an_escape(joiner, before):
    assert printable(before + joiner + "b") == f"{before}\\u{ord(joiner):04x}b"


def test_what_parts_letters_does_not_hide_behind_an_emoji():
    assert printable("👨\u200c") == "👨\\u200c"


@given(ANY)
def test_nothing_unsafe_is_left(text):
    shown = printable(text)
    for character in shown:
        assert character in "\t\n\u200c\u200d\u180e" or unicodedata.category(character) not in ("Cc", "Cs")
        assert character not in hidden_characters()
    assert printable(shown) == shown


@given(st.lists(ANY, max_size=6))
def test_pieces_make_no_difference(pieces):
    printer = Printer()
    assert "".join(map(printer, pieces)) == printable("".join(pieces))


@given(ANY)
def test_json_means_the_same(text):
    written = safe_json(json.dumps({"a": text}, ensure_ascii=False))
    assert json.loads(written) == {"a": text}
    assert not any(0x7F <= ord(character) < 0xA0 for character in written)
    written.encode()  # no half of a surrogate pair is left


def test_an_emoji_may_come_in_three_tokens(monkeypatch, capsys):
    monkeypatch.setattr(ui, "is_terminal", lambda stream: stream is sys.stdout)
    output = TextOutput(quiet=True)
    for text in ("👨", "\u200d", "👩", "\u202e", "a\u200d", "\n"):
        output.step(Step(text=text, parts=(Part(text),), token=1, logprob=0.0))
    assert capsys.readouterr().out == "👨‍👩\\u202ea\\u200d\n"


def test_what_is_pasted_into_a_chat_is_visible():
    with create_pipe_input() as pipe:
        pipe.send_text("a\u202eb\r")
        assert TerminalReader(lambda _: (), input=pipe, output=DummyOutput()).read() == "a\u202eb"
    assert Char("\u202e").char == "\\u202e"
    assert Char("\u202e").width == 6


# ------------------------------------------------------------------------------------------- the program


@pytest.mark.parametrize("character", ["\u202e", "\u2066", "\u200b", "\U000e0041", "\u2028"])
def test_errors_show_it(rwkv, character):
    for arguments in (
        ("info", f"x{character}gnp.exe"),
        ("generate", f"--{character}"),
        ("state", "show", character),
    ):
        assert character not in rwkv(*arguments).sentence
    assert ui.printable(character) in rwkv("info", f"x{character}gnp.exe").sentence


def test_json_on_a_terminal_holds_no_controls(terminal, tiny_model, tmp_path):
    prompt = "a\x9b31m\x9d0;title\x9c\u202e\x7f"
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps({"prompt": prompt}) + "\n", encoding="utf-8")
    with terminal("generate", "-m", tiny_model, "--batch", file, "-n", "1", "-q") as it:
        assert it.finish() == 0
    assert not [c for c in it.shown if 0x7F <= ord(c) <= 0x9F or c == "\u202e"]
    assert json.loads(it.shown)["prompt"] == prompt


def test_a_prompt_is_repeated_visibly(terminal, tiny_model):
    with terminal("generate", "-m", tiny_model, "-p", "a\u202eb\u200b", "-n", "1") as it:
        assert it.finish() == 0
    assert "a\\u202eb\\u200b" in it.shown
