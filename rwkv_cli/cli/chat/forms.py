"""The settings of a chat that say what answers have to look like: one of them at a time."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Mapping

from rwkv_cli.cli.constraint_options import file_text, schema_text
from rwkv_cli.engine.constraints.grammar import Grammar
from rwkv_cli.errors import UsageError

_MOST_SHOWN = 200  # characters of a schema

WANTED = {
    "json_schema": "FILE|TEXT",
    "json_object": "on|off",
    "regex": "RE",
    "grammar": "FILE",
    "choice": "A|B",
}
"""What each setting takes."""


def _json_object(value: str) -> Grammar | None:
    if value not in ("on", "off"):
        raise UsageError(f"json-object is {value!r}: it must be one of on, off")
    return Grammar.json_object() if value == "on" else None


_MAKERS: Mapping[str, Callable[[str], Grammar | None]] = {
    "json_schema": lambda value: Grammar.json_schema(schema_text(value)),
    "json_object": _json_object,
    "regex": Grammar.regex,
    "grammar": lambda value: Grammar.lark(file_text(value, "grammar")),
    "choice": lambda value: Grammar.choices([each.strip() for each in value.split("|")]),
}


def parsed(name: str, value: str) -> Grammar | None:
    """What a user wrote; None for "default". Raises UsageError for what cannot be used."""
    return None if value == "default" else _MAKERS[name](value)


def name_of(constraint: Grammar) -> str:
    """The setting that a constraint is the value of."""
    return "json_object" if constraint == Grammar.json_object() else constraint.kind


def shown(constraint: Grammar | None, name: str) -> str:
    """The value of a setting, for people, where this constraint is in force."""
    is_chosen = constraint is not None and name_of(constraint) == name
    if name == "json_object":
        return "on" if is_chosen else "off"
    if constraint is None or not is_chosen:
        return "none"
    if name == "choice":
        return "|".join(json.loads(constraint.source))
    return textwrap.shorten(constraint.source, _MOST_SHOWN, placeholder="…")
