"""Wraps text that arrives in pieces at the width of a terminal, without rewriting what was written.

Only the last word is held back, since it may have to move to the next line. Text in a wide script may be wrapped
between any two characters.
"""

from __future__ import annotations

from collections.abc import Callable

_TAB = "    "
_JOINER = "\u200d"
_NEVER_FIRST = frozenset("、。，．！？；：」』）】》〉…ー")  # must not begin a line
_LEAST_WIDTH = 8


def wrapped(text: str, width: int) -> list[str]:
    """The lines of a text that is all there, of at most `width` columns; its own line breaks become spaces."""
    wrapper = Wrapper(lambda: width + 1)
    return (wrapper.text(text.replace("\n", " ")) + wrapper.flush()).split("\n")


class Wrapper:
    """Turns text into what to write to a terminal, line breaks and styles included."""

    def __init__(self, width: Callable[[], int], styling: bool = True) -> None:
        """`width` returns the current number of columns; without `styling`, styles are left out."""
        from rich.cells import cell_len  # only where text is wrapped: a pipe never pays for it

        self._cells = cell_len
        self._width = width
        self._styling = styling
        self._column = 0
        self._space = 0  # columns between the written text and the word that is held back
        self._word: list[tuple[str, str]] = []  # pieces and their styles
        self._word_width = 0
        self.indent = ""  # of continuation lines

    def text(self, text: str, style: str = "") -> str:
        """Add words and spaces without line breaks; `style` is the parameter of `ESC [ ... m`."""
        written = []
        for character in text.replace("\t", _TAB):
            if character == " ":
                written.append(self._flush())
                self._space += 1
                continue
            width = self._cells(character)
            if width == 2 and character not in _NEVER_FIRST and not self._is_joined():
                written.append(self._flush())
            elif self._word and self._word_width + width > self._line_width() - len(self.indent):
                written.append(self._flush())  # longer than a line
            self._add(character, style, width)
        return "".join(written)

    def lines(self, text: str, style: str = "") -> str:
        """Add words and spaces with their line breaks."""
        first, *others = text.split("\n")
        return self.text(first, style) + "".join(self.newline() + self.text(each, style) for each in others)

    def verbatim(self, text: str, style: str = "") -> str:
        """Add text of a line that only the terminal wraps."""
        written = self._flush() + " " * self._space + self._styled(text.replace("\t", _TAB), style)
        self._column, self._space = self._column + self._space + self._cells(text), 0
        return written

    def newline(self) -> str:
        """End the line."""
        written = self._flush() + "\n"
        self._column = self._space = 0
        return written

    def flush(self) -> str:
        """The word that is held back, at the end of the text."""
        return self._flush()

    def _add(self, character: str, style: str, width: int) -> None:
        if self._word and self._word[-1][1] == style:
            self._word[-1] = (self._word[-1][0] + character, style)
        else:
            self._word.append((character, style))
        self._word_width += width

    def _is_joined(self) -> bool:
        return bool(self._word) and self._word[-1][0].endswith(_JOINER)

    def _line_width(self) -> int:
        # The last column stays empty: terminals differ in when they wrap after it.
        return max(self._width() - 1, _LEAST_WIDTH)

    def _flush(self) -> str:
        if not self._word:
            return ""
        written = ""
        if self._column and self._column + self._space + self._word_width > self._line_width():
            written = "\n" + self.indent
            self._column = len(self.indent)
        else:
            written = " " * self._space
            self._column += self._space
        written += "".join(self._styled(text, style) for text, style in self._word)
        self._column += self._word_width
        self._space, self._word, self._word_width = 0, [], 0
        return written

    def _styled(self, text: str, style: str) -> str:
        return f"\x1b[{style}m{text}\x1b[0m" if style and text and self._styling else text
