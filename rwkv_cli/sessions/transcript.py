"""What was said, as data: turns, what came before them, and the form in which both are kept and exported."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from rwkv_cli.engine.constraints.grammar import Grammar
from rwkv_cli.engine.session import Snapshot
from rwkv_cli.errors import StateError
from rwkv_cli.text import templates
from rwkv_cli.text.template import Template
from rwkv_cli.text.thinking import split

VERSION = 1

T = TypeVar("T")
Fields = Mapping[str, object]
Kind = Literal["nothing", "state", "document"]


@dataclass(frozen=True)
class Turn:
    """A message and the answer to it."""

    user: str
    text: str  # all that the model said, thought and tags included, as it read it itself
    think: str | None = None  # the mode in which the answer was begun
    finish: str = ""  # "end" or "stop": by the model; "length": at the limit; "stopped": by the user


@dataclass(frozen=True)
class Start:
    """Where a conversation begins: with nothing read, from a state that was made otherwise, or after a document."""

    kind: Kind = "nothing"
    snapshot: Snapshot | None = None  # of a state or a document; None once it is forgotten
    text: str | None = None  # of a document, if it is known
    begin: bool = False  # the document starts with the end-of-document token


@dataclass(frozen=True)
class Record:
    """A conversation without its state: what is kept in a file beside it."""

    system: str | None
    think: str | None
    max_tokens: int
    template: Template
    start: Start = field(default_factory=Start)
    turns: Sequence[Turn] = ()
    constraint: Grammar | None = None  # what the next answers have to look like

    def to_json(self) -> dict[str, object]:
        """In types that JSON has; the document and the state are kept elsewhere in the file."""
        start = {
            "kind": self.start.kind,
            "characters": None if self.start.text is None else len(self.start.text),
            "begin": self.start.begin,
        }
        turns = [
            {"user": turn.user, "text": turn.text, "think": turn.think, "finish": turn.finish}
            for turn in self.turns
        ]
        constraint = self.constraint and {"kind": self.constraint.kind, "source": self.constraint.source}
        return {
            "version": VERSION,
            "system": self.system,
            "think": self.think,
            "max_tokens": self.max_tokens,
            "template": templates.to_json(self.template),
            "start": start,
            "turns": turns,
            "constraint": constraint,
        }

    @classmethod
    def from_json(cls, fields: Fields, text: str | None) -> Record:
        """The inverse; `text` is all that was read and said. Raises StateError for what `to_json` never made."""
        try:
            if fields["version"] != VERSION:
                raise StateError(
                    "the conversation was saved by another version of this program; update rwkv-cli"
                )
            return cls(
                system=_optional(fields["system"]),
                think=_optional(fields["think"]),
                max_tokens=_typed(fields["max_tokens"], int),
                template=templates.from_json(fields["template"]),
                start=_start(_typed(fields["start"], dict), text),
                turns=[_turn(_typed(turn, dict)) for turn in _typed(fields["turns"], list)],
                constraint=_constraint(fields.get("constraint")),  # which files did not have at first
            )
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise StateError(f"the conversation in the state is damaged: {str(error)[:80]}") from None


def _turn(fields: Fields) -> Turn:
    return Turn(
        user=_typed(fields["user"], str),
        text=_typed(fields["text"], str),
        think=_optional(fields["think"]),
        finish=_typed(fields["finish"], str),
    )


def _constraint(fields: object) -> Grammar | None:
    if fields is None:
        return None
    fields = _typed(fields, dict)
    return Grammar.restored(fields["kind"], fields["source"])


def _start(fields: Fields, text: str | None) -> Start:
    kind, characters = fields["kind"], fields["characters"]
    if kind not in ("nothing", "state", "document"):
        raise ValueError("its beginning is of no known kind")
    if kind == "document" and characters is not None and text is not None:
        if not 0 <= (length := _typed(characters, int)) <= len(text):
            raise ValueError("its text is too short")
        return Start(kind, text=text[:length], begin=_typed(fields["begin"], bool))
    return Start(kind, begin=_typed(fields["begin"], bool))


def _typed(value: object, kind: type[T]) -> T:
    if type(value) is not kind:
        raise TypeError(f"{str(value)[:20]!r} is of the wrong kind")
    return value


def _optional(value: object) -> str | None:
    return None if value is None else _typed(value, str)


# ------------------------------------------------------------------------------------------------------ exported


def as_markdown(record: Record, model: str) -> str:
    """A conversation for people to read."""
    lines = [f"# A conversation with {model}", ""]
    if record.system:
        lines += [f"> {line}".rstrip() for line in record.system.splitlines()] + [""]
    for turn in record.turns:
        thought, answer = split(turn.text, record.template, turn.think)
        lines += ["**You:**", "", turn.user.strip(), "", f"**{model}:**", ""]
        if thought:
            lines += ["<details><summary>Thought</summary>", "", thought, "", "</details>", ""]
        lines += [answer, ""]
    return "\n".join(lines)


def as_json(record: Record, model: str) -> str:
    """A conversation for programs to read."""
    turns = []
    for turn in record.turns:
        thought, answer = split(turn.text, record.template, turn.think)
        turns.append({"user": turn.user, "answer": answer, "thought": thought or None, "finish": turn.finish})
    fields = {"model": model, "template": record.template.name, "system": record.system, "turns": turns}
    return json.dumps(fields, ensure_ascii=False, indent=1) + "\n"
