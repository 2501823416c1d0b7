"""Prompt formats, letter by letter."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkv_cli.errors import UsageError
from rwkv_cli.sampling import SamplingSettings
from rwkv_cli.streaming import StopFilter
from rwkv_cli.template import TEMPLATES, Template, clean_text, find_template, get_template

GREETING = (
    "User: hi\n\nAssistant: Hi. I am your assistant and I will provide expert full response in full details. "
    "Please feel free to ask any question and I will always answer it.\n\n"
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("raw", " Why?\r\n\n\nWhy "),
        ("story", " Why?\r\n\n\nWhy "),
        ("world", GREETING + "User: Why?\nWhy\n\nAssistant:"),
        ("g1", "User: Why?\nWhy\n\nAssistant:"),
        ("qa", "Question: Why?\nWhy\n\nAnswer:"),
        ("instruct", "Instruction: Why?\nWhy\n\nResponse:"),
    ],
)
def test_one_turn(name: str, expected: str) -> None:
    assert get_template(name).render(" Why?\r\n\n\nWhy ") == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("world", "System: Be\nkind.\n\n" + GREETING + "User: Why?\n\nAssistant:"),
        ("g1", "System: Be\nkind.\n\nUser: Why?\n\nAssistant:"),
        ("instruct", "Instruction: Be\nkind.\n\nInput: Why?\n\nResponse:"),
    ],
)
def test_system_text(name: str, expected: str) -> None:
    assert get_template(name).render("Why?", system="Be\n\nkind.\n") == expected


@pytest.mark.parametrize("name", ["raw", "story", "qa"])
def test_system_text_where_there_is_no_place_for_it(name: str) -> None:
    with pytest.raises(UsageError, match=f"the template {name} has no place for a system text"):
        get_template(name).render("Why?", system="Be kind.")


def test_thinking() -> None:
    g1 = get_template("g1")
    assert g1.render("Why?", think="off") == g1.render("Why?")
    assert g1.render("Why?", think="fast") == "User: Why?\n\nAssistant: <think>\n</think"
    assert g1.render("Why?", think="on") == "User: Why?\n\nAssistant: <think"
    assert g1.render("Why?", think="long") == "User: Why? (think a lot)\n\nAssistant: <think"
    with pytest.raises(UsageError, match="no thinking mode 'hard': choose among off, fast, on, long"):
        g1.render("Why?", think="hard")
    with pytest.raises(UsageError, match="the template world has no thinking modes"):
        get_template("world").render("Why?", think="on")


def test_turns_make_up_a_conversation() -> None:
    g1 = get_template("g1")
    conversation = g1.render("One.", system="Short.") + " 1" + g1.turn_end + g1.turn("Two.") + " 2"
    assert conversation == "System: Short.\n\nUser: One.\n\nAssistant: 1\n\nUser: Two.\n\nAssistant: 2"


@given(st.text(alphabet="{}prompt system0\\%"))
def test_braces_mean_nothing(text: str) -> None:
    assert get_template("raw").render(text) == text
    assert get_template("g1").render(text, system="{prompt}").startswith("System: {prompt}\n\nUser: ")
    assert clean_text(text) in get_template("qa").render(text)


@given(st.text(alphabet=" a\n\r\t\u3000") | st.text())
def test_cleaned_text_holds_no_blank_line(text: str) -> None:
    cleaned = clean_text(text)
    assert "\n\n" not in cleaned
    assert cleaned == cleaned.strip()
    assert "".join(cleaned.split()) == "".join(text.split())


def test_cleaning_keeps_indentation() -> None:
    assert clean_text("if x:\r\n\r\n  \t\n    y\n") == "if x:\n    y"


@given(st.sampled_from(sorted(TEMPLATES)), st.text())
def test_every_template_is_complete(name: str, prompt: str) -> None:
    template = TEMPLATES[name]
    assert template.name == name
    assert template.description
    StopFilter(template.stop)
    fields = {field.name for field in dataclasses.fields(SamplingSettings)}
    assert set(template.sampling) <= fields
    SamplingSettings(**template.sampling)  # type: ignore[arg-type]
    assert not template.render(prompt).endswith(" ") or not template.clean


def test_published_stops_and_defaults() -> None:
    assert get_template("raw") == Template("raw", TEMPLATES["raw"].description, clean=False)
    assert get_template("world").stop == ("\n\n",)
    assert get_template("g1").stop == ("\n\nUser:",)
    assert get_template("story").begin
    assert get_template("story").sampling == {"temperature": 0.8, "top_p": 0.8}
    assert get_template("world").sampling["top_p"] == 0.3


def test_unknown_template() -> None:
    with pytest.raises(
        UsageError, match=r"no template 'wrld' \(did you mean world\?\): choose among raw, story, "
    ):
        get_template("wrld")
    with pytest.raises(UsageError, match="no template 'xyzzy': choose among raw, "):
        get_template("xyzzy")


@pytest.mark.parametrize(
    ("source", "vocab_size", "expected"),
    [
        ("RWKV-x070-World-0.1B-v2.8-20241210-ctx4096.pth", 65536, "world"),
        ("fla-hub/rwkv7-191M-world", 65536, "world"),
        ("fla-hub/rwkv7-0.1B-g1/", 65536, "g1"),
        ("rwkv7-g1a-0.1b-20250728-ctx4096.pth", 65536, "g1"),
        (r"C:\models\rwkv7-g1g-1.5b-20260526-ctx8192.pth", 65536, "g1"),
        ("/home/world/rwkv7-world/model.pth", 65536, "raw"),
        ("RWKV-x070-Pile-168M-20241120-ctx4096.pth", 50304, "raw"),
        ("my-world-model.pth", 8192, "raw"),
        ("gosling.pth", 8192, "story"),
        ("/models/gosling-q4.rwkv", 8192, "story"),
        ("", 65536, "raw"),
    ],
)
def test_template_by_file_name(source: str, vocab_size: int, expected: str) -> None:
    assert find_template(source, vocab_size) == expected
