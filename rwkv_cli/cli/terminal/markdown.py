"""Renders simple Markdown that arrives in pieces on a terminal, without changing what was written.

It supports headings, lists, quotations, fenced code, bold, italics and inline code. Text that may still become markup
is held back until that is decided: the beginning of a line, and the words between two marks, up to a limit. How the
text is split into pieces makes no difference, and anything that is not markup is shown unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Protocol

from rwkv_cli.cli.terminal.wrap import Wrapper

BOLD, DIM, ITALIC, CODE = "1", "2", "3", "36"

_LONGEST_SPAN = 160
"""Most characters between two marks; they are held back until the second mark arrives."""

_LINE_MARK = re.compile(
    r"(?P<indent> {0,8})(?:(?P<heading>#{1,6}) +|(?P<bullet>[-*+]) +|(?P<number>\d{1,3}[.)]) +|(?P<quote>>) ?)"
)
_MAYBE_LINE_MARK = re.compile(r" {0,8}(?:#{1,6} *|[-*+] *|\d{1,3}(?:[.)] *)?|> ?)?")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_MAYBE_FENCE = re.compile(r" {0,3}(?:`+|~+)?")
_RUN = re.compile(r"\*{1,3}|_{1,3}|`+")


class Stream(Protocol):
    """Turns text that arrives in pieces into what to write to a terminal."""

    def feed(self, text: str) -> str:
        """What to write after this piece."""
        ...

    def end(self) -> str:
        """What was held back, at the end of the text."""
        ...


class PlainStream:
    """Unchanged text in one style, wrapped."""

    def __init__(self, width: Callable[[], int], styling: bool = True, style: str = "") -> None:
        self._out = Wrapper(width, styling)
        self._style = style

    def feed(self, text: str) -> str:
        """See `Stream`."""
        return self._out.lines(text, self._style)

    def end(self) -> str:
        """See `Stream`."""
        return self._out.flush()


class MarkdownStream:
    """Markdown, wrapped, with styles in place of its marks."""

    def __init__(self, width: Callable[[], int], styling: bool = True) -> None:
        self._out = Wrapper(width, styling)
        self._held = ""  # received, but not written yet
        self._begins_line = True
        self._fence = ""  # inside a code block, what closes it
        self._style = ""  # of the whole line
        self._before = " "  # the last character that was written

    def feed(self, text: str) -> str:
        """See `Stream`."""
        self._held += text
        return "".join(self._lines(is_end=False))

    def end(self) -> str:
        """See `Stream`."""
        return "".join(self._lines(is_end=True)) + self._out.flush()

    def _lines(self, is_end: bool) -> Iterator[str]:
        while self._held:
            line, newline, rest = self._held.partition("\n")
            complete = bool(newline) or is_end
            self._held = line
            yield from self._code(complete) if self._fence else self._line(complete)
            if not newline:
                return
            yield self._out.newline()
            self._held, self._begins_line, self._style, self._out.indent = rest, True, "", ""
            self._before = " "

    # ----------------------------------------------------------------------------------------------- lines

    def _line(self, complete: bool) -> Iterator[str]:
        """As much of the line held back as can be written."""
        if self._begins_line:
            if not complete and self._may_begin():
                return
            self._begins_line = False
            fence = self._opening_fence()
            if fence:
                self._fence, self._style = fence, DIM
                yield from self._code(complete)
                return
            yield self._line_mark()
        pieces, self._held = self._inline(self._held, self._style, complete)
        yield from pieces

    def _may_begin(self) -> bool:
        """Whether the line may still turn out to begin with a mark."""
        if _FENCE.match(self._held):
            return len(self._held) <= _LONGEST_SPAN
        return bool(_MAYBE_LINE_MARK.fullmatch(self._held) or _MAYBE_FENCE.fullmatch(self._held))

    def _opening_fence(self) -> str:
        """The fence that the line consists of, perhaps with the name of a language; "" if it does not."""
        fence = _FENCE.match(self._held)
        if not fence or len(self._held) > _LONGEST_SPAN or "`" in self._held[fence.end() :]:
            return ""
        return fence[1]

    def _line_mark(self) -> str:
        """What is shown in place of the mark at the beginning of the line."""
        mark = _LINE_MARK.match(self._held)
        if not mark:
            return ""
        self._held = self._held[mark.end() :]
        if mark["heading"]:
            self._style = BOLD
            return ""
        shown = "│ " if mark["quote"] else f"{mark['number']} " if mark["number"] else "• "
        self._out.indent = " " * len(mark["indent"] + shown)
        if mark["quote"]:
            self._style, self._out.indent = ITALIC, mark["indent"] + shown
        return self._out.verbatim(mark["indent"] + shown)

    def _code(self, complete: bool) -> Iterator[str]:
        """A line of code, or a fence: written as it arrives, and wrapped only by the terminal."""
        if self._begins_line:
            line = self._held.strip()
            if not complete and not line.strip(self._fence[0]):
                return  # may become the closing fence
            self._begins_line = False
            self._style = CODE
            if line.startswith(self._fence) and not line.strip(self._fence[0]):
                self._fence, self._style = "", DIM
        yield self._out.verbatim(self._held, self._style)
        self._held = ""

    # ------------------------------------------------------------------------------------- within a line

    def _inline(self, text: str, style: str, complete: bool) -> tuple[list[str], str]:
        """What to write of a text, and the rest that is held back, empty if the text is `complete`."""
        written = []
        while text:
            run = _RUN.search(text)
            plain = text[: run.start()] if run else text
            if plain:
                written.append(self._show(plain, style))
                text = text[len(plain) :]
            if run is None:
                break
            mark = run[0]
            span = self._span(text, mark, complete)
            if span is not None:
                written += self._styled_span(mark, span, style)
                text = text[len(mark) + len(span) + len(mark) :]
            elif complete or self._cannot_open(text, mark) or len(text) > len(mark) + _LONGEST_SPAN:
                written.append(self._show(mark, style))
                text = text[len(mark) :]
            else:
                break
        return written, text

    def _cannot_open(self, text: str, mark: str) -> bool:
        """Whether the mark at the beginning of a text cannot open a span, whatever follows."""
        following = text[len(mark) : len(mark) + 1]
        if not following or mark[0] == "`":
            return False
        return following == mark[0] or following.isspace() or self._before.isalnum()

    def _span(self, text: str, mark: str, complete: bool) -> str | None:
        """The text between the mark at the beginning and the one that closes it; None if none does (yet)."""
        if self._cannot_open(text, mark):
            return None
        window = text[len(mark) : len(mark) + _LONGEST_SPAN + 1]
        character = re.escape(mark[0])
        for found in re.finditer(rf"(?<!{character}){character}{{{len(mark)}}}(?!{character})", window):
            following = window[found.end() : found.end() + 1]
            # Wait for the next character: it may belong to the mark.
            if not following and (not complete or found.end() > _LONGEST_SPAN):
                return None
            span = window[: found.start()]
            is_closing = not span[-1:].isspace() and not (mark[0] == "_" and following.isalnum())
            if span.strip() and (mark[0] == "`" or is_closing):
                return span
        return None

    def _styled_span(self, mark: str, span: str, style: str) -> list[str]:
        if mark[0] == "`":
            return [self._show(span, f"{style};{CODE}" if style else CODE)]
        own = {1: ITALIC, 2: BOLD, 3: f"{BOLD};{ITALIC}"}[len(mark)]
        self._before = " "
        return self._inline(span, f"{style};{own}" if style else own, complete=True)[0]

    def _show(self, text: str, style: str) -> str:
        self._before = text[-1]
        return self._out.text(text, style)
