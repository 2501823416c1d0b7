"""Prompt formats and stop rules, as data.

A template formats a conversation: an optional system prompt, an opening exchange, then turns of `user` and `answer`
joined by `turn_end`. Placeholders are replaced literally, so braces in a user's text mean nothing. The formats that
come with the program are in `data/templates.toml`; see `rwkv_cli.text.templates`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from rwkv_cli.errors import UsageError


@dataclass(frozen=True)
class Thinking:
    """How to ask for more or less thought before the answer."""

    user_suffix: str = ""  # put after the user's text
    answer_prefix: str = ""  # begins the answer; the model continues it
    sampling: Mapping[str, float] = field(default_factory=dict)  # over that of the template


@dataclass(frozen=True)
class Template:
    """One prompt format."""

    name: str
    description: str
    begin: bool = False  # the sequence starts with the end-of-document token
    opening: str = ""  # an exchange before the first turn, after the system prompt
    system: str | None = None  # around {system}; None if the format does not support one
    user: str = "{prompt}"  # around {prompt}, the user's text
    user_after_system: str | None = None  # the same after a system prompt, if it differs there
    answer: str = ""  # what the model's answer follows
    turn_end: str = ""  # between an answer and the next turn
    document_end: str | None = None  # between a document and the first turn after it; None for turn_end
    thinking: Mapping[str, Thinking] = field(default_factory=dict)  # by mode
    default_thinking: str | None = (
        None  # the mode where none is chosen; None adds nothing and starts no thought
    )
    clean: bool = True  # tidy system and user texts, see `clean_text`
    stop: tuple[str, ...] = ()  # the answer ends before any of these, besides the end of the document
    stop_tokens: tuple[
        str, ...
    ] = ()  # it also ends with the tokens of these texts, where a vocabulary has them
    sampling: Mapping[str, float] = field(default_factory=dict)  # defaults, by the names in SamplingSettings
    chat: str | None = None  # the format that a conversation uses instead; None for this one

    def render(self, prompt: str, system: str | None = None, think: str | None = None) -> str:
        """The text before the first answer.

        think is a mode of `thinking`, None for the default. Raises UsageError for a system prompt or a mode that the
        format does not support.
        """
        text = "" if system is None else self._system_text(system)
        return text + self.opening + self.turn(prompt, after_system=system is not None, think=think)

    def continuation(self, prompt: str, think: str | None = None, *, after_document: bool = False) -> str:
        """The text between an answer, or a document, and the next answer."""
        is_first = after_document and self.document_end is not None
        return ((self.document_end or "") if is_first else self.turn_end) + self.turn(prompt, think=think)

    def turn(self, prompt: str, *, after_system: bool = False, think: str | None = None) -> str:
        """The text of one turn up to the answer."""
        thinking = self._thinking(think)
        around = self.user
        if after_system and self.user_after_system is not None:
            around = self.user_after_system
        prompt = self._cleaned(prompt) + thinking.user_suffix
        return around.replace("{prompt}", prompt) + self.answer + thinking.answer_prefix

    @property
    def is_chat(self) -> bool:
        """Whether it marks who speaks: made for conversations, or for questions and answers."""
        return bool(self.answer)

    @property
    def is_plain(self) -> bool:
        """Whether it adds nothing around the prompt, so that the text continues the prompt itself."""
        return self.user == "{prompt}" and not self.is_chat

    def answer_prefix(self, think: str | None = None) -> str:
        """How an answer in a mode of thinking begins, before the model continues it."""
        return self._thinking(think).answer_prefix

    def sampling_for(self, think: str | None = None) -> dict[str, float]:
        """The sampling defaults of a mode of thinking, None for the default."""
        return {**self.sampling, **self._thinking(think).sampling}

    def check(self, system: str | None, think: str | None) -> None:
        """Raise UsageError for a system prompt or a thinking mode that the format does not support."""
        if system is not None and self.system is None:
            raise UsageError(f"the template {self.name} has no place for a system prompt")
        self._thinking(think)

    def _system_text(self, system: str) -> str:
        self.check(system, None)
        assert self.system is not None
        return self.system.replace("{system}", self._cleaned(system))

    def _thinking(self, mode: str | None) -> Thinking:
        mode = mode or self.default_thinking
        if mode is None:
            return Thinking()
        if mode in self.thinking:
            return self.thinking[mode]
        if self.thinking:
            raise UsageError(
                f"the template {self.name} has no thinking mode {mode!r}: choose one of {', '.join(self.thinking)}"
            )
        raise UsageError(f"the template {self.name} has no thinking modes")

    def _cleaned(self, text: str) -> str:
        return clean_text(text) if self.clean else text


def clean_text(text: str) -> str:
    """text as the models were trained on it: LF line ends, no blank lines, nothing blank at either end.

    A blank line separates the turns of a conversation, so a text must not contain one.
    """
    text = text.replace("\r\n", "\n")
    return re.sub(r"\n(?:[^\S\n]*\n)+", "\n", text).strip()
