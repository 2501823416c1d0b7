"""Grammars as requests name them: fields of JSON, OpenAI's `response_format` among them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rwkv_cli.engine.constraints.grammar import Grammar
from rwkv_cli.errors import UsageError

FIELDS = ("json_schema", "json_object", "regex", "grammar", "choice", "response_format")


def grammar_of(fields: Mapping[str, object]) -> Grammar | None:
    """What one of FIELDS demands; None if none of them is there, or null. Raises UsageError for more than one."""
    given = [name for name in FIELDS if fields.get(name) not in (None, False)]
    if not given:
        return None
    if len(given) > 1:
        raise UsageError(f"give either {{{given[0]}}} or {{{given[1]}}}, not both")
    return _MAKERS[given[0]](fields[given[0]])


def of_response_format(value: object) -> Grammar | None:
    """The grammar of OpenAI's field: {"type": "text"}, "json_object" or "json_schema" with a schema in it."""
    fields = value if isinstance(value, dict) else {}
    kind, inner = fields.get("type"), fields.get("json_schema")
    if kind == "text":
        return None
    if kind == "json_object":
        return Grammar.json_object()
    if kind == "json_schema" and isinstance(inner, dict) and isinstance(inner.get("schema"), dict):
        return Grammar.json_schema(inner["schema"])
    raise UsageError(
        "{response_format} must have the type text, json_object, or json_schema with a schema in json_schema.schema"
    )


def _schema(value: object) -> Grammar:
    if not isinstance(value, str | bool | dict):
        raise UsageError("{json_schema} must be a JSON object")
    return Grammar.json_schema(value)


def _object(value: object) -> Grammar:
    if value is not True:
        raise UsageError("{json_object} must be true or false")
    return Grammar.json_object()


def _text(name: str, make: Callable[[str], Grammar]) -> Callable[[object], Grammar]:
    def checked(value: object) -> Grammar:
        if not isinstance(value, str):
            raise UsageError(f"{{{name}}} must be a text")
        return make(value)

    return checked


def _choices(value: object) -> Grammar:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise UsageError("{choice} must be a list of texts")
    return Grammar.choices(value)


_MAKERS: Mapping[str, Callable[[object], Grammar | None]] = {
    "json_schema": _schema,
    "json_object": _object,
    "regex": _text("regex", Grammar.regex),
    "grammar": _text("grammar", Grammar.lark),
    "choice": _choices,
    "response_format": of_response_format,
}
