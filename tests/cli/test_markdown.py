"""Markdown that arrives in pieces: nothing is lost, nothing is written twice, and the cuts make no difference."""

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from rwkv_cli.cli.terminal.markdown import MarkdownStream, PlainStream

STYLE = re.compile(r"\x1b\[([0-9;]*)m")

# Many marks, so that they meet.
TEXT = st.text(alphabet="ab1 \n*_`~#->+.)\té世🦢\u200d\u0301", max_size=80) | st.text(max_size=40).map(
    lambda text: text.replace("\x1b", "")
)
WORDS = st.lists(
    st.sampled_from(
        [
            "**",
            "*",
            "_",
            "`",
            "```\n",
            "```",
            "\n",
            " ",
            "word",
            "two words",
            "- ",
            "# ",
            "> ",
            "1. ",
            "x" * 170,
        ]
    ),
    max_size=25,
).map("".join)


def render(*pieces, width=80, stream=MarkdownStream, **options):
    made = stream(lambda: width, **options)
    return "".join(made.feed(piece) for piece in pieces) + made.end()


def plain(shown):
    return STYLE.sub("", shown)


def cells(shown):
    """Every character shown, with its style."""
    style, found = "", []
    for number, piece in enumerate(STYLE.split(shown)):
        if number % 2:
            style = "" if piece == "0" else piece
        else:
            found += [(character, style) for character in piece]
    return found


def letters(text):
    """A text without white space and marks."""
    return re.sub(r"[\s*_`#>+.)•│-]", "", text)


def cut(text, places):
    edges = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[a:b] for a, b in itertools.pairwise(edges)]


@given(TEXT | WORDS, st.lists(st.integers(0, 1000), max_size=10), st.sampled_from([12, 40, 80]))
def test_the_cuts_make_no_difference(text, places, width):
    whole = cells(render(text, width=width))
    assert cells(render(*cut(text, places), width=width)) == whole
    assert cells(render(*text, width=width)) == whole


@given(TEXT | WORDS, st.sampled_from([12, 40, 80]))
def test_nothing_is_lost(text, width):
    shown = plain(render(text, width=width))
    assert letters(shown) == letters(text)


@given(st.text(alphabet="abc 1,.é世\n", max_size=200))
def test_text_without_marks_is_shown_as_it_is(text):
    for stream in (MarkdownStream, PlainStream):
        shown = plain(render(text, width=30, stream=stream))
        assert shown.split() == text.split() or letters(shown) == letters(text)


@given(st.text(alphabet="ab c世🦢-", max_size=300), st.sampled_from([12, 17, 40, 80]))
def test_no_line_is_wider_than_the_terminal(text, width):
    for stream in (MarkdownStream, PlainStream):
        for line in plain(render(text, width=width, stream=stream)).split("\n"):
            assert cell_len(line) < width


@pytest.mark.parametrize(
    ("text", "shown", "styles"),
    [
        ("a **bold** word", "a bold word", {"bold": "1"}),
        ("__bold__", "bold", {"bold": "1"}),
        ("an *italic* word", "an italic word", {"italic": "3"}),
        ("an _italic_ word", "an italic word", {"italic": "3"}),
        ("***both***", "both", {"both": "1;3"}),
        ("**bold and `code`**", "bold and code", {"bold and ": "1", "code": "1;36"}),
        ("say `a * b * c`", "say a * b * c", {"a * b * c": "36"}),
        ("``a`b``", "a`b", {"a`b": "36"}),
        ("snake_case_name and 2*3*4", "snake_case_name and 2*3*4", {}),
        ("2 * 3 * 4 and _ _", "2 * 3 * 4 and _ _", {}),
        ("use **kwargs here", "use **kwargs here", {}),
        ("a * star\nand *one", "a * star\nand *one", {}),
        ("`no end", "`no end", {}),
        ("# Head\ntext", "Head\ntext", {"Head": "1"}),
        ("####### no", "####### no", {}),
        ("#hash", "#hash", {}),
        ("- one\n- two", "• one\n• two", {}),
        ("* one\n+ two", "• one\n• two", {}),
        ("-1 and - x", "-1 and - x", {}),
        ("1. one\n12) two", "1. one\n12) two", {}),
        ("1.5 is", "1.5 is", {}),
        ("> said", "│ said", {"said": "3"}),
        ("```py\na **b** # c\n```\n**d**", "```py\na **b** # c\n```\nd", {"a **b** # c": "36", "d": "1"}),
        ("````\n```\n````\n*x*", "````\n```\n````\nx", {"x": "3"}),
        ("```not a fence``` **b**", "not a fence b", {"b": "1"}),
        ("~~~\n  x\n~~~", "~~~\n  x\n~~~", {"  x": "36"}),
        ("---", "---", {}),
        ("***", "***", {}),
        ("a\n\n\nb", "a\n\n\nb", {}),
        ("    four", "    four", {}),
    ],
)
def test_marks(text, shown, styles):
    found = cells(render(text))
    assert "".join(character for character, _ in found) == shown
    for words, style in styles.items():
        at = shown.rindex(words)
        assert {each for character, each in found[at : at + len(words)] if character != " "} == {style}
    if not styles:
        assert not STYLE.search(render(text))


@pytest.mark.parametrize("text", ["plain words, as they come", "```\ncode as it comes"])
def test_words_are_shown_as_they_come(text):
    stream, shown = MarkdownStream(lambda: 80), ""
    for number, character in enumerate(text):
        shown += stream.feed(character)
        assert len(text[: number + 1]) - len(plain(shown)) <= len(" words,")


def test_an_opening_mark_is_not_held_for_ever():
    stream = MarkdownStream(lambda: 80)
    assert plain(stream.feed("*" + "word " * 100)).startswith("*word word")


def test_lines_are_wrapped_between_words_and_lists_stay_in_line():
    assert plain(render("aaa bbb ccc ddd", width=10)) == "aaa bbb\nccc ddd"
    assert plain(render("- aaa bbb ccc\n- d", width=10)) == "• aaa bbb\n  ccc\n• d"
    assert plain(render("> aaa bbb ccc", width=10)) == "│ aaa bbb\n│ ccc"


def test_wide_characters_count_twice():
    assert plain(render("世界世界世界", width=9)) == "世界世界\n世界"
    assert plain(render("世界世界。", width=9)) == "世界世\n界。"


def test_a_terminal_may_change_its_width():
    width = 40
    stream = MarkdownStream(lambda: width)
    shown = stream.feed("aaa bbb ccc ddd eee ")
    width = 10
    shown += stream.feed("fff ggg hhh iii") + stream.end()
    assert shown.split() == "aaa bbb ccc ddd eee fff ggg hhh iii".split()
    assert shown.splitlines()[1:] == ["fff ggg", "hhh iii"]


def test_without_styles_there_are_none():
    assert "\x1b" not in render("**a** `b`\n```\nc\n```", styling=False)


def test_plain_text_in_one_style():
    assert (
        render("a *b*\nc", stream=PlainStream, style="2")
        == "\x1b[2ma\x1b[0m \x1b[2m*b*\x1b[0m\n\x1b[2mc\x1b[0m"
    )
