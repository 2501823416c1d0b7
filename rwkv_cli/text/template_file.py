"""Prompt formats as tables of a file: TOML of the user's own, JSON in model files and states.

docs/chat.md describes the keys.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from rwkv_cli import toml_file
from rwkv_cli.errors import UsageError, literal
from rwkv_cli.sampling_settings import NUMERIC_FIELDS, check_number
from rwkv_cli.text.chat_template import JinjaTemplate
from rwkv_cli.text.template import Template, Thinking

_TEXTS = (
    *("description", "opening", "system", "user", "user_after_system", "answer"),
    *("turn_end", "document_end", "default_thinking", "chat"),
)
_SWITCHES = ("begin", "clean")
_LISTS = ("stop", "stop_tokens")
_PLACEHOLDERS = {"system": "{system}", "user": "{prompt}", "user_after_system": "{prompt}"}
_THINKING_TEXTS = ("user_suffix", "answer_prefix")
_KEYS = ("name", "base", *_TEXTS, *_SWITCHES, *_LISTS, "thinking", "sampling")
# What only the program writes: into model files and states.
_OWN_KEYS = ("jinja", "end_of_text")


_Kind = TypeVar("_Kind", str, bool, list[Any], dict[str, Any])


class _WrongKeyError(ValueError):
    """A key has an invalid value."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(f"{key} {message}")
        self.key = key


def read_template(path: Path, bases: Mapping[str, Template]) -> Template:
    """The template in a file, perhaps made of one of `bases`.

    Raises UsageError with the file, the line and the key that is wrong.
    """
    fields, text = toml_file.read(path, UsageError, "the template")
    return _located(path, text, fields, path.stem, bases)


def read_templates(path: Path, bases: Mapping[str, Template]) -> dict[str, Template]:
    """The templates in a file that has a table for each, by name. Raises UsageError like `read_template`."""
    found = dict[str, Template]()
    tables, text = toml_file.read(path, UsageError, "the template")
    for name, fields in tables.items():
        if not isinstance(fields, dict):
            raise UsageError(f"{path}: {name} must be a table, [{name}], for the template of this name")
        found[name] = _located(path, text, {**fields, "name": name}, name, {**bases, **found})
    return found


def _located(
    path: Path, text: str, fields: Mapping[str, object], name: str, bases: Mapping[str, Template]
) -> Template:
    try:
        return template_from(fields, name, bases)
    except _WrongKeyError as error:
        raise UsageError(f"{path}{_line_of(error.key, text)}: {literal(str(error))}") from None


def template_from(
    fields: Mapping[str, object], name: str = "", bases: Mapping[str, Template] | None = None
) -> Template:
    """A template from the values of a file, or from `as_fields`. Raises ValueError, which names the key."""
    known = _KEYS if bases is not None else (*_KEYS, *_OWN_KEYS)
    _check_keys(fields, known)
    base = Template("", "a template of your own")
    if "jinja" in fields:
        base = JinjaTemplate("", "", jinja=_checked("jinja", fields["jinja"], str))
    if "base" in fields:
        base = _base(_checked("base", fields["base"], str), bases or {})
    values: dict[str, Any] = {key: _text(key, fields[key]) for key in _TEXTS if key in fields}
    values |= {key: _checked(key, fields[key], bool) for key in _SWITCHES if key in fields}
    values |= {key: tuple(_stops(key, fields[key])) for key in _LISTS if key in fields}
    values["name"] = _checked("name", fields.get("name", name), str)
    if "thinking" in fields:
        values["thinking"] = _thinking(fields["thinking"])
    if "sampling" in fields:
        values["sampling"] = {**base.sampling, **_sampling(fields["sampling"])}
    if "end_of_text" in fields:
        values["end_of_text"] = _checked("end_of_text", fields["end_of_text"], str)
    template = dataclasses.replace(base, **({"chat": None} | values))
    if template.default_thinking is not None and template.default_thinking not in template.thinking:
        raise _WrongKeyError("default_thinking", f"must be one of its thinking modes: {_names(template)}")
    return template


def as_fields(template: Template) -> dict[str, object]:
    """The values of a template, as `template_from` takes them, in types that JSON has."""
    values: dict[str, object] = {
        field.name: getattr(template, field.name) for field in dataclasses.fields(template)
    }
    values |= {key: list(getattr(template, key)) for key in _LISTS}
    values["thinking"] = {mode: dataclasses.asdict(thinking) for mode, thinking in template.thinking.items()}
    values["sampling"] = dict(template.sampling)
    return {key: value for key, value in values.items() if value is not None}


def _names(template: Template) -> str:
    return ", ".join(template.thinking) or "there are none"


def _check_keys(fields: Mapping[str, object], known: tuple[str, ...], within: str = "") -> None:
    for key in fields:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise _WrongKeyError(
                within + key, f"is not a key of a template{hint}: there are {', '.join(known)}"
            )


def _base(name: str, bases: Mapping[str, Template]) -> Template:
    if name not in bases:
        raise _WrongKeyError("base", f"must be one of the templates {', '.join(bases)}")
    return bases[name]


_KINDS: Mapping[type, str] = {str: "a text", bool: "true or false", list: "a list of texts", dict: "a table"}


def _checked(key: str, value: object, kind: type[_Kind]) -> _Kind:
    if type(value) is not kind:  # not isinstance: true is an int for Python
        raise _WrongKeyError(key, f"must be {_KINDS[kind]}")
    return value


def _text(key: str, value: object) -> str:
    text = _checked(key, value, str)
    wanted = _PLACEHOLDERS.get(key)
    if wanted and wanted not in text:
        raise _WrongKeyError(key, f"must contain {wanted}, where the text goes")
    return text


def _stops(key: str, value: object) -> list[str]:
    stops: list[str] = [_checked(key, each, str) for each in _checked(key, value, list)]
    if "" in stops:
        raise _WrongKeyError(key, "contains an empty text, which would stop everything")
    return stops


def _thinking(value: object) -> dict[str, Thinking]:
    modes = {}
    for mode, settings in _checked("thinking", value, dict).items():
        key = f"thinking.{mode}"
        _check_keys(_checked(key, settings, dict), (*_THINKING_TEXTS, "sampling"), f"{key}.")
        texts = {
            name: _checked(f"{key}.{name}", settings[name], str)
            for name in _THINKING_TEXTS
            if name in settings
        }
        modes[mode] = Thinking(**texts, sampling=_sampling(settings.get("sampling", {}), f"{key}.sampling"))
    return modes


def _sampling(value: object, key: str = "sampling") -> dict[str, float]:
    numbers: dict[str, float] = _checked(key, value, dict)
    _check_keys(numbers, NUMERIC_FIELDS, f"{key}.")
    for name, number in numbers.items():
        if type(number) not in (int, float):
            raise _WrongKeyError(f"{key}.{name}", "must be a number")
        try:
            check_number(name, number)
        except UsageError as error:
            raise _WrongKeyError(f"{key}.{name}", str(error).partition(" ")[2]) from None
    return numbers


def _line_of(key: str, text: str) -> str:
    """The line of a key in a file, if it can be found: ", line 3"."""
    name = re.escape(key.rpartition(".")[2])
    pattern = re.compile(rf"""^\s*(?:[\w."']*\.)?["']?{name}["']?\s*=|^\s*\[[^]]*\b{name}["']?\s*\]""")
    for number, line in enumerate(text.splitlines(), 1):
        if pattern.search(line):
            return f", line {number}"
    return ""
