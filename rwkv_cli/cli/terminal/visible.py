r"""Text that a terminal shows as it is: what it would obey, reorder or hide becomes visible.

A name of a file, the metadata of a model or what a model says may come from anybody. Control characters could change
the screen; characters that set the direction of writing show a name backwards (CVE-2021-42574); characters without a
width make two names look alike, or hide a message. The first become pictures such as ␛, the others escapes such as
\u202e.

The two joiners are letters to those who write with them: U+200C parts the suffixes of Persian, both shape the
conjuncts of Indian scripts, and U+200D makes one emoji of several. They are kept where such a character comes before
them, by about the rules of Unicode's UAX #31, 2.3.1, and visible elsewhere. What separates a vowel in Mongolian,
U+180E, is treated alike.
"""

from __future__ import annotations

import re
import unicodedata

# C0 except tab and newline, DEL and C1.
_CONTROLS = r"\x00-\x08\x0b-\x1f\x7f-\x9f"
# Marks and controls of direction, separators of lines and paragraphs, characters without a width, tags; and surrogates,
# which stand for the bytes of names that are not UTF-8.
_HIDDEN = (
    r"\u034f\u061c\u17b4\u17b5\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    r"\U000e0000-\U000e00ff\ud800-\udfff"
)
_JOINERS = r"\u180e\u200c\u200d"
_UNSAFE = re.compile(f"[{_CONTROLS}{_HIDDEN}{_JOINERS}]")
_UNSAFE_IN_JSON = re.compile(rf"[\x7f-\x9f{_HIDDEN}{_JOINERS}]")

_ZERO_WIDTH_JOINER, _MONGOLIAN_SEPARATOR = "\u200d", "\u180e"
_VIRAMA = 9  # the combining class of what joins two consonants
_CONTEXT = 8  # characters before a joiner that may decide: a letter and its marks


def printable(text: str, before: str = "") -> str:
    """Text that is safe to print: control characters become pictures, hidden ones escapes; carriage returns go.

    `before` is the end of what was printed before it, in the same text.
    """
    return _UNSAFE.sub(lambda match: _shown(match[0]) if _is_unsafe(match, before) else match[0], text)


def safe_json(text: str) -> str:
    r"""JSON that means the same and is safe to print: escapes such as \u009b in place of characters that are not."""
    return _UNSAFE_IN_JSON.sub(lambda match: _in_json(match[0]) if _is_unsafe(match) else match[0], text)


def hidden_characters() -> dict[str, str]:
    """Every character that is never kept, other than control characters and surrogates, and how it is shown."""
    places = (range(0x300, 0xD800), range(0xE000, 0x10000), range(0xE0000, 0xE0100))
    found = re.findall(f"[{_HIDDEN}]", "".join(chr(code) for place in places for code in place))
    return {each: _shown(each) for each in found}


class Printer:
    """`printable` for a text that comes in pieces."""

    def __init__(self) -> None:
        self._before = ""

    def __call__(self, piece: str) -> str:
        """The next piece, safe to print."""
        shown = printable(piece, self._before)
        self._before = (self._before + piece)[-_CONTEXT:]
        return shown


def _shown(character: str) -> str:
    code = ord(character)
    if character == "\r":
        return ""
    if code < 0x20:
        return chr(0x2400 + code)
    if code < 0xA0:
        return "␡" if code == 0x7F else "\ufffd"
    if 0xDC80 <= code <= 0xDCFF:  # a byte, see PEP 383
        return f"\\x{code - 0xDC00:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _in_json(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


def _is_unsafe(match: re.Match[str], before: str = "") -> bool:
    if match[0] not in "\u180e\u200c\u200d":
        return True
    at = match.start()
    return not _joins(match[0], (before + match.string[max(at - _CONTEXT, 0) : at])[-_CONTEXT:])


def _joins(joiner: str, before: str) -> bool:
    """Whether a joiner has something to do after a text."""
    if before and unicodedata.combining(before[-1]) == _VIRAMA:
        return True
    letter = next((each for each in reversed(before) if unicodedata.category(each) != "Mn"), "")
    if not letter:
        return False
    is_mongolian = "\u1820" <= letter <= "\u18aa"
    if joiner == _MONGOLIAN_SEPARATOR or is_mongolian:
        return is_mongolian
    if joiner == _ZERO_WIDTH_JOINER and _is_emoji(letter):
        return True
    is_indic = (
        "\u0900" <= letter <= "\u0dff" or "\u1000" <= letter <= "\u109f" or "\u1780" <= letter <= "\u17ff"
    )
    return unicodedata.bidirectional(letter) == "AL" or is_indic


def _is_emoji(character: str) -> bool:
    """Whether it is a symbol, or the colour of a skin."""
    return unicodedata.category(character) == "So" or "\U0001f3fb" <= character <= "\U0001f3ff"
