"""The messages of a client as turns, and turns as the tokens that a model reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rwkv_cli.errors import UsageError
from rwkv_cli.model import Model
from rwkv_cli.sessions.transcript import Kind
from rwkv_cli.text.chat_template import JinjaTemplate
from rwkv_cli.text.template import Template
from rwkv_cli.text.tool_calls.tools import ToolCall

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Message:
    """What somebody says."""

    role: Role
    text: str
    calls: tuple[ToolCall, ...] = ()  # of tools, by the assistant
    is_result: bool = False  # of a call


@dataclass(frozen=True)
class Exchange:
    """A message of the user and the answer to it; None where it is to come."""

    user: str
    answer: str | None = None


@dataclass(frozen=True)
class Dialogue:
    """A conversation in which a user and a model take turns."""

    system: str | None
    exchanges: Sequence[Exchange]

    @property
    def begun(self) -> str | None:
        """The beginning of the answer, which the model is to continue; None where it begins one."""
        return self.exchanges[-1].answer


def dialogue(messages: Sequence[Message], *, has_system: bool = True) -> Dialogue:
    """The turns in messages. Texts of the same side that follow each other are one.

    A system prompt is what comes first; where a template has no place for one (`has_system`), and later in the
    conversation, such a text goes before the user's next message. Raises UsageError for no messages.
    """
    if not messages:
        raise UsageError("{messages} is empty: it must have at least one message")
    system, rest = _system(messages) if has_system else (None, messages)
    exchanges = list[Exchange]()
    said = list[str]()  # by the user's side, since the last answer
    for message in rest:
        if message.role != "assistant":
            said.append(message.text)
        elif not said and exchanges:
            exchanges[-1] = Exchange(exchanges[-1].user, f"{exchanges[-1].answer}\n{message.text}")
        else:
            exchanges.append(Exchange("\n".join(said), message.text))
            said = []
    if said or not exchanges:
        exchanges.append(Exchange("\n".join(said)))
    return Dialogue(system, exchanges)


def _system(messages: Sequence[Message]) -> tuple[str | None, Sequence[Message]]:
    n = next((n for n, each in enumerate(messages) if each.role != "system"), len(messages))
    texts = [each.text for each in messages[:n] if each.text.strip()]
    return "\n".join(texts) if texts else None, messages[n:]


class Writer:
    """Lays out dialogues for one model and template, each part by itself: so a history begins with its earlier ones.

    A past answer is laid out without a thought, as clients send it. `after` is what was read before.
    """

    def __init__(self, model: Model, template: Template, think: str | None, after: Kind = "nothing") -> None:
        """Raises UsageError where the model has no tokenizer, or the template no such mode."""
        self._template, self._think, self._after = template, think, after
        self._tokenizer = model.check_prompt(template, None, think, continued=after != "nothing")
        self._is_jinja = isinstance(template, JinjaTemplate)
        self._past_mode = "off" if self._is_jinja and "off" in template.thinking else None

    def past(self, talk: Dialogue) -> list[int]:
        """The tokens of all turns but the last one."""
        parts = (
            self._asked(talk, n) + self.answer(each.answer or "")
            for n, each in enumerate(talk.exchanges[:-1])
        )
        return [token for part in parts for token in part]

    def prompt(self, talk: Dialogue) -> list[int]:
        """The tokens of the last turn, up to where the model continues."""
        if talk.begun is None:
            return self._encoded(talk, len(talk.exchanges) - 1, self._think)
        return self._asked(talk, len(talk.exchanges) - 1) + self._tokenizer.encode(self.said(talk) or "")

    def said(self, talk: Dialogue) -> str | None:
        """The beginning of an answer, as the model reads it, where it is to be continued."""
        return None if talk.begun is None else self._gap + talk.begun.rstrip()

    def turn(self, talk: Dialogue, answer: str) -> list[int]:
        """The tokens of the last turn with its whole answer, as the client will send them with its next message."""
        return self._asked(talk, len(talk.exchanges) - 1) + self.answer((talk.begun or "").rstrip() + answer)

    def answer(self, text: str) -> list[int]:
        """The tokens of a past answer."""
        return self._tokenizer.encode(self._gap + text.strip())

    def text_of(self, answer: str) -> str:
        """A past answer as the model reads it."""
        return self._gap + answer.strip()

    def _asked(self, talk: Dialogue, n: int) -> list[int]:
        """The tokens of a turn that is over, up to its answer."""
        return self._encoded(talk, n, self._past_mode, is_past=True)

    def _encoded(self, talk: Dialogue, n: int, mode: str | None, *, is_past: bool = False) -> list[int]:
        template, user, is_first = self._template, talk.exchanges[n].user, not n
        begin = list[int]()
        if is_first and self._after == "nothing":
            text = template.render(user, talk.system, mode)
            begin = [self._tokenizer.end_of_document] if template.begin else []
        else:
            text = template.continuation(user, mode, after_document=is_first and self._after == "document")
        if is_past and not self._is_jinja:
            text = text.removesuffix(template.answer_prefix(mode))
        return begin + self._tokenizer.encode(text)

    @property
    def _gap(self) -> str:
        """What a model puts between the template's text and its answer."""
        return " " if self._template.answer.endswith(":") else ""
