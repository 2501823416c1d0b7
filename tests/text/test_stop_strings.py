"""Stop strings, against a search in the whole text."""

import time
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rwkv_cli.errors import UsageError
from rwkv_cli.text.stop_strings import StopFilter

FEW_LETTERS = st.text(alphabet="ab\n", max_size=40)
STOPS = st.lists(st.text(alphabet="ab\n", min_size=1, max_size=5), max_size=4)


def naive(text: str, stops: list[str]) -> tuple[str, str | None]:
    """(shown, stop string): the one that ends first, of those the longest."""
    ends = [(text.find(stop) + len(stop), -len(stop), stop) for stop in stops if stop in text]
    if not ends:
        return text, None
    end, _, stop = min(ends)
    return text[: end - len(stop)], stop


def pieces(text: str, cuts: list[int]) -> list[str]:
    """text cut at these places."""
    places = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [text[i:j] for i, j in pairwise(places)]


@given(FEW_LETTERS, STOPS, st.lists(st.integers(0, 40)))
@example("aab", ["ab"], [1, 2])
@example("abab\n", ["abab\n", "ba"], [3])
def test_same_as_a_search_in_the_whole_text(text: str, stops: list[str], cuts: list[int]) -> None:
    stop_filter = StopFilter(stops)
    shown = "".join(map(stop_filter.feed, pieces(text, cuts))) + stop_filter.flush()
    assert (shown, stop_filter.stopped) == naive(text, stops)


@given(FEW_LETTERS, STOPS)
def test_holds_back_only_what_may_become_a_stop_string(text: str, stops: list[str]) -> None:
    stop_filter = StopFilter(stops)
    shown = stop_filter.feed(text)
    if stop_filter.stopped is None:
        starts = [n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])]
        assert len(text) - len(shown) == max(starts, default=0)


def test_nothing_follows_a_stop_string() -> None:
    stop_filter = StopFilter(["\n\nUser:"])
    assert [stop_filter.feed(text) for text in ("Hi.\n", "\nUs", "er: what", "more")] == ["Hi.", "", "", ""]
    assert stop_filter.stopped == "\n\nUser:"
    assert stop_filter.flush() == ""


def test_held_text_comes_with_flush() -> None:
    stop_filter = StopFilter(("\n\n",))
    assert stop_filter.feed("end\n") == "end"
    assert stop_filter.flush() == "\n"
    assert stop_filter.stopped is None
    assert stop_filter.feed("\nmore") == "\nmore"


def test_no_stop_strings() -> None:
    assert StopFilter([]).feed("text\n\n") == "text\n\n"


def test_empty_stop_string_is_refused() -> None:
    with pytest.raises(UsageError, match="a stop string is empty"):
        StopFilter(["\n\n", ""])


def test_time_is_linear_where_backtracking_would_not_be() -> None:
    stop_filter = StopFilter(["a" * 2000 + "b"])
    start = time.perf_counter()
    shown = stop_filter.feed("a" * 100_000)
    assert len(shown) == 98_000
    assert time.perf_counter() - start < 5
