"""Separates the thought before an answer from the answer, while the text arrives.

A model that thinks writes `<think>`, its thought, `</think>` and then the answer, whether it was asked to or not. A tag
is several tokens, so it is looked for in the text. The template may have begun the answer with `<think` or with a whole
empty thought; see `rwkv_cli.text.template`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from rwkv_cli.text.template import Template

OPEN, CLOSE = "<think>", "</think>"

_Where = Literal["before", "thought", "answer"]


@dataclass(frozen=True)
class Part:
    """A piece of what a model says."""

    text: str
    thought: bool = False  # part of the thought, not of the answer


class ThoughtSplitter:
    """Sorts text that arrives in pieces; holds back only what may be a part of a tag.

    How the text is split into pieces makes no difference. Tags are dropped, all else is passed on.
    """

    def __init__(
        self,
        template: Template,
        think: str | None = None,
        *,
        said: str | None = None,
        trims: bool = False,
    ) -> None:
        """`think` is the mode of the template with which the answer was begun; None for its default.

        `said` is for an answer that is continued: the text up to there. `trims` drops white space before the answer.
        """
        self._trims = trims
        begun = template.answer_prefix(think) if said is None else said
        self._where: _Where = "before" if template.is_chat else "answer"
        self._held = ""
        self._ends_tag = begun.endswith((OPEN[:-1], CLOSE[:-1]))  # the next character is its >
        opened, closed = begun.rfind(OPEN[:-1]), begun.rfind(CLOSE[:-1])
        if template.is_chat and max(opened, closed) >= 0:
            self._where = "thought" if opened > closed else "answer"

    @property
    def is_in_thought(self) -> bool:
        """Whether the text so far ends inside a thought."""
        return self._where == "thought"

    def feed(self, text: str) -> list[Part]:
        """The parts that this text completes."""
        if text and self._ends_tag:
            text, self._ends_tag = text.removeprefix(">"), False
        text = self._held + text
        self._held = ""
        parts = []
        if self._where == "before":
            begun = text.lstrip()
            if len(begun) < len(OPEN) and OPEN.startswith(begun):
                self._held, text = text, ""
            elif begun.startswith(OPEN):
                self._where, text = "thought", begun.removeprefix(OPEN)
            else:
                self._where = "answer"
        if self._where == "thought":
            thought, closed, text = text.partition(CLOSE)
            if closed:
                self._where = "answer"
            else:
                kept = len(thought) - _begun(thought, CLOSE)
                thought, self._held = thought[:kept], thought[kept:]
            parts.append(Part(thought, thought=True))
        if self._trims and self._where == "answer":
            text = text.lstrip()
            self._trims = not text
        parts.append(Part(text))
        return [part for part in parts if part.text]

    def flush(self) -> list[Part]:
        """What was held back, at the end of the text."""
        held, self._held = self._held, ""
        if self._trims and self._where != "thought":
            held = held.lstrip()
        return [Part(held, self._where == "thought")] if held else []


def split(text: str, template: Template, think: str | None = None) -> tuple[str, str]:
    """The thought and the answer of a whole text, without white space around them."""
    splitter = ThoughtSplitter(template, think)
    parts = splitter.feed(text) + splitter.flush()
    return joined(parts, thought=True).strip(), joined(parts, thought=False).strip()


def joined(parts: Iterable[Part], *, thought: bool) -> str:
    """The text of all parts of the thought, or of the answer."""
    return "".join(part.text for part in parts if part.thought is thought)


def _begun(text: str, tag: str) -> int:
    """The number of characters at the end of a text that begin a tag."""
    return next((n for n in range(min(len(tag) - 1, len(text)), 0, -1) if text.endswith(tag[:n])), 0)
