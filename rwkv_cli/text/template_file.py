"""The user's own prompt formats, in TOML files; docs/chat.md describes their keys."""

from __future__ import annotations

import dataclasses
import difflib
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from rwkv_cli.errors import UsageError, literal
from rwkv_cli.sampling_settings import NUMERIC_FIELDS, check_number
from rwkv_cli.text.template import TEMPLATES, Template, Thinking, get_template

SUFFIX = ".toml"
MOST_BYTES = 1 << 20

_TEXTS = ("description", "opening", "system", "user", "user_after_system", "answer", "turn_end")
_SWITCHES = ("begin", "clean")
_PLACEHOLDERS = {"system": "{system}", "user": "{prompt}", "user_after_system": "{prompt}"}
_THINKING = tuple(field.name for field in dataclasses.fields(Thinking))
_KEYS = ("name", "base", *_TEXTS, *_SWITCHES, "stop", "thinking", "sampling")


_Kind = TypeVar("_Kind", str, bool, list[Any], dict[str, Any])


class _WrongKeyError(ValueError):
    """A key has an invalid value."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(f"{key} {message}")
        self.key = key


def open_template(name_or_file: str) -> Template:
    """The template of that name, or the one in a file: a path, or a name that ends in .toml. Raises UsageError."""
    if name_or_file.lower().endswith(SUFFIX) or re.search(r"[/\\]", name_or_file):
        return read_template(Path(name_or_file).expanduser())
    return get_template(name_or_file)


def read_template(path: Path) -> Template:
    """The template in a file. Raises UsageError with the file, the line and the key that is wrong."""
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise UsageError(f"{path} is larger than {MOST_BYTES >> 20} MB: it is not a template")
        text = data.decode("utf-8-sig")
        fields = tomllib.loads(text)
        return template_from(fields, path.stem)
    except OSError as error:
        raise UsageError(
            f"cannot read the template {path}: {(error.strerror or str(error)).lower()}"
        ) from None
    except UnicodeDecodeError as error:
        raise UsageError(f"the template {path} is not valid UTF-8 text (byte {error.start})") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        message = str(error)
        raise UsageError(
            f"the template {path} is not valid TOML: {message[:1].lower()}{message[1:]}"
        ) from None
    except _WrongKeyError as error:
        raise UsageError(f"{path}{_line_of(error.key, text)}: {literal(str(error))}") from None


def template_from(fields: Mapping[str, object], name: str = "") -> Template:
    """A template from the values of a file, or from `as_fields`. Raises ValueError, which names the key."""
    _check_keys(fields, _KEYS)
    base = Template("", "a template of your own")
    if "base" in fields:
        base = _base(_checked("base", fields["base"], str))
    values: dict[str, Any] = {key: _text(key, fields[key]) for key in _TEXTS if key in fields}
    values |= {key: _checked(key, fields[key], bool) for key in _SWITCHES if key in fields}
    values["name"] = _checked("name", fields.get("name", name), str)
    if "stop" in fields:
        values["stop"] = tuple(_stops(fields["stop"]))
    if "thinking" in fields:
        values["thinking"] = _thinking(fields["thinking"])
    if "sampling" in fields:
        values["sampling"] = {**base.sampling, **_sampling(fields["sampling"])}
    return dataclasses.replace(base, chat=None, **values)


def as_fields(template: Template) -> dict[str, object]:
    """The values of a template, as `template_from` takes them, in types that JSON has."""
    values: dict[str, object] = {
        key: getattr(template, key) for key in _KEYS if key != "base" and getattr(template, key) is not None
    }
    values["stop"] = list(template.stop)
    values["thinking"] = {mode: dataclasses.asdict(thinking) for mode, thinking in template.thinking.items()}
    values["sampling"] = dict(template.sampling)
    return values


def _check_keys(fields: Mapping[str, object], known: tuple[str, ...], within: str = "") -> None:
    for key in fields:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise _WrongKeyError(
                within + key, f"is not a key of a template{hint}: there are {', '.join(known)}"
            )


def _base(name: str) -> Template:
    try:
        return get_template(name)
    except UsageError as error:
        raise _WrongKeyError("base", f"must be one of the templates {', '.join(TEMPLATES)}") from error


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


def _stops(value: object) -> list[str]:
    stops: list[str] = [_checked("stop", each, str) for each in _checked("stop", value, list)]
    if "" in stops:
        raise _WrongKeyError("stop", "contains an empty text, which would stop everything")
    return stops


def _thinking(value: object) -> dict[str, Thinking]:
    modes = {}
    for mode, texts in _checked("thinking", value, dict).items():
        key = f"thinking.{mode}"
        _check_keys(_checked(key, texts, dict), _THINKING, f"{key}.")
        given = {name: _checked(f"{key}.{name}", text, str) for name, text in texts.items()}
        modes[mode] = Thinking(**{name: given.get(name, "") for name in _THINKING})
    return modes


def _sampling(value: object) -> dict[str, float]:
    numbers: dict[str, float] = _checked("sampling", value, dict)
    _check_keys(numbers, NUMERIC_FIELDS, "sampling.")
    for name, number in numbers.items():
        if type(number) not in (int, float):
            raise _WrongKeyError(f"sampling.{name}", "must be a number")
        try:
            check_number(name, number)
        except UsageError as error:
            raise _WrongKeyError(f"sampling.{name}", str(error).partition(" ")[2]) from None
    return numbers


def _line_of(key: str, text: str) -> str:
    """The line of a key in a file, if it can be found: ", line 3"."""
    name = re.escape(key.rpartition(".")[2])
    pattern = re.compile(rf"""^\s*(?:[\w."']*\.)?["']?{name}["']?\s*=|^\s*\[[^]]*\b{name}["']?\s*\]""")
    for number, line in enumerate(text.splitlines(), 1):
        if pattern.search(line):
            return f", line {number}"
    return ""
