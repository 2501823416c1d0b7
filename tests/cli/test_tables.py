"""Tables and messages on terminals of all widths: nothing is cut, no word is broken, no line is too wide."""

import pytest
from rich.cells import cell_len

from rwkv_cli.cli.terminal import ui
from rwkv_cli.cli.terminal.progress import duration
from rwkv_cli.cli.terminal.wrap import wrapped

TITLES = ("name", "size", "good for")
ROWS = [("small", "9", "everything that a small one is good for"), ("雪の女王", "10,000", "物語を語ること")]


@pytest.fixture
def printed(monkeypatch, capsys):
    """`printed(width, show)` is what is shown on a terminal of that width; None stands for a pipe."""

    def call(width, show, *arguments, **options):
        monkeypatch.setattr(ui, "is_terminal", lambda _: width is not None)
        monkeypatch.setenv("COLUMNS", str(width or 20))
        monkeypatch.setenv("NO_COLOR", "1")
        show(*arguments, **options)
        return capsys.readouterr().out.splitlines()

    return call


def test_columns(printed):
    whole = [
        "name        size  good for",
        "small          9  everything that a small one is good for",
        "雪の女王  10,000  物語を語ること",
    ]
    assert printed(80, ui.columns, TITLES, ROWS, right=(1,)) == whole
    assert printed(None, ui.columns, TITLES, ROWS, right=(1,)) == whole


def test_the_last_column_is_wrapped(printed):
    assert printed(40, ui.columns, TITLES, ROWS, right=(1,)) == [
        "name        size  good for",
        "small          9  everything that a",
        "                  small one is good for",
        "雪の女王  10,000  物語を語ること",
    ]


def test_rows_are_stacked(printed):
    assert printed(24, ui.columns, TITLES, [*ROWS, ("empty", "", "")]) == [
        "small",
        "  size",
        "    9",
        "  good for",
        "    everything that a",
        "    small one is good",
        "    for",
        "",
        "雪の女王",
        "  size",
        "    10,000",
        "  good for",
        "    物語を語ること",
        "",
        "empty",
    ]
    assert printed(35, ui.columns, TITLES, ROWS)[:4] == [
        "small",
        "  size      9",
        "  good for  everything that a small",
        "            one is good for",
    ]


def test_pairs(printed):
    rows = {"path": "/a/b", "about": "one two three four five six seven"}
    assert printed(30, ui.table, "title", rows) == [
        "title",
        "  path   /a/b",
        "  about  one two three four",
        "         five six seven",
    ]
    assert printed(None, ui.table, "title", rows)[2] == "  about  one two three four five six seven"


@pytest.mark.parametrize("width", [1, 5, 10, 30, 60])
@pytest.mark.parametrize("text", ["", "one two", "x" * 50, "吾輩は猫である。名前はまだ無い。", "a\nb  c\t雪"])
def test_wrapped(text, width):
    lines = wrapped(text, width)
    assert max(map(cell_len, lines)) <= max(width, 8)
    assert "".join("".join(lines).split()) == "".join(text.split())


def test_messages_are_wrapped_at_words(monkeypatch, capsys):
    monkeypatch.setattr(ui, "is_terminal", lambda _: True)
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("NO_COLOR", "1")
    path = "/a/path/that/is/longer/than/a/line"
    ui.note(f"one two three four five {path}")
    ui.error("one two three four")
    assert capsys.readouterr().err.splitlines() == [
        "one two three four",
        "five",
        path,
        "rwkv: one two three",
        "four",
    ]
    monkeypatch.setattr(ui, "is_terminal", lambda _: False)
    ui.error(f"one two three four {path}")
    assert capsys.readouterr().err == f"rwkv: one two three four {path}\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1, "1 s"), (99, "99 s"), (100, "2 min"), (3540, "59 min"), (3541, "1 h 0 min"), (7500, "2 h 5 min")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text
