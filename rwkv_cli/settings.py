"""The user's settings: what commands do without an option, from config.toml and environment variables.

A variable comes before the file; an option of a command comes before both, the model's own defaults after them.
The Python API has none of this: what it does, its arguments say.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from rwkv_cli import paths, toml_file
from rwkv_cli.errors import SettingsError, UsageError
from rwkv_cli.files.atomic import replacing, storage_error
from rwkv_cli.reporting import did_you_mean
from rwkv_cli.sampling_settings import NUMERIC_FIELDS, SamplingOverrides, check_number

Value = str | int | float | bool
Origin = Literal["variable", "file", "default"]

_ON, _OFF = ("true", "on", "yes", "1"), ("false", "off", "no", "0")


@dataclass(frozen=True)
class Settings:
    """All settings. None is for those that the model, the template or the command decides."""

    model: str | None = None
    device: str = "auto"
    threads: int | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    penalty_decay: float | None = None
    show_thinking: bool = True
    markdown: bool = True
    editing: str = "emacs"
    theme: str = "auto"
    history: bool = True
    origins: Mapping[str, Origin] = field(default_factory=dict, compare=False)
    """Of those that are set, by key."""

    @property
    def chosen(self) -> dict[str, Value]:
        """Those that are set, by key."""
        return {key: getattr(self, key) for key in self.origins}

    @property
    def sampling(self) -> SamplingOverrides:
        """Those of sampling that are set."""
        values = {key: value for key, value in self.chosen.items() if key in NUMERIC_FIELDS}
        return cast("SamplingOverrides", values)


@dataclass(frozen=True)
class Key:
    """A key of config.toml. `demand` is what its value must be, and `is_valid` whether it is."""

    name: str
    kind: type[str] | type[int] | type[float] | type[bool]
    help: str
    demand: str
    is_valid: Callable[[Any], bool] = lambda _: True

    @property
    def variable(self) -> str:
        """The environment variable that comes before the file."""
        return f"RWKV_{self.name.upper()}"

    @property
    def default(self) -> Value | None:
        """The value where nothing is set; None where the model, the template or the command decides."""
        return getattr(Settings, self.name)  # type: ignore[no-any-return]

    def parse(self, text: str) -> Value:
        """The value that a text stands for. Raises ValueError with what it must be."""
        if self.kind is bool:
            word = text.strip().lower()
            if word not in (*_ON, *_OFF):
                raise ValueError(self.demand)
            return word in _ON
        try:
            return self.checked(self.kind(text))
        except (ValueError, OverflowError):
            raise ValueError(self.demand) from None

    def checked(self, value: object) -> Value:
        """A value as TOML has it. Raises ValueError with what it must be."""
        if self.kind is float and type(value) is int and value.bit_length() < 1024:
            value = float(value)
        is_of_kind = type(value) is self.kind  # not isinstance: true is an int for Python
        if not (is_of_kind and self.is_valid(value)):
            raise ValueError(self.demand)
        return cast("Value", value)


def _is_number(name: str) -> Callable[[float], bool]:
    def is_valid(value: float) -> bool:
        try:
            check_number(name, value)
        except UsageError:
            return False
        return True

    return is_valid


def _is_device(name: str) -> bool:
    from rwkv_cli.engine.backends.registry import is_known

    return is_known(name)


def _sampling(name: str, help: str, demand: str) -> Key:
    return Key(name, int if name == "top_k" else float, help, demand, _is_number(name))


def _choice(name: str, help: str, *choices: str) -> Key:
    return Key(name, str, help, f"one of {', '.join(choices)}", lambda value: value in choices)


def _switch(name: str, help: str) -> Key:
    return Key(name, bool, help, "true or false")


_FRACTION, _FINITE = "a number between 0 and 1", "a finite number"

KEYS: Mapping[str, Key] = {
    key.name: key
    for key in (
        Key(
            "model",
            str,
            "the model that is used without --model",
            "a path or a name, such as 'g1-0.1b'",
            lambda value: bool(value.strip()) and value.isprintable(),
        ),
        Key("device", str, "where to compute", "auto, cuda, cpu or reference", _is_device),
        Key("threads", int, "CPU threads", "a whole number above 0", lambda value: 0 < value < 1 << 31),
        Key(
            "max_tokens",
            int,
            "the longest text or answer, in tokens; -1: no limit",
            "a whole number, or -1",
            lambda value: -1 <= value < 1 << 62,
        ),
        _sampling(
            "temperature", "higher is more varied; 0 always takes the most likely token", "a number from 0 up"
        ),
        _sampling("top_p", "sample only from the most likely tokens, up to this probability", _FRACTION),
        _sampling(
            "top_k", "sample only from this many of the most likely tokens", "a whole number from 0 up"
        ),
        _sampling("min_p", "drop tokens less likely than this times the most likely one", _FRACTION),
        _sampling("presence_penalty", "subtracted from the logit of every token already used, once", _FINITE),
        _sampling("frequency_penalty", "subtracted from it again for every use", _FINITE),
        _sampling("penalty_decay", "how fast the penalties fade", _FRACTION),
        _switch("show_thinking", "in a chat, show what the model thinks"),
        _switch("markdown", "in a chat, show Markdown with styles"),
        _choice("editing", "the keys that edit a message", "emacs", "vi"),
        _choice("theme", "plain: no colours and no bold text", "auto", "plain"),
        _switch("history", "keep the last chats that have no name, and the lines that are typed"),
    )
}
"""All keys by name, in the order in which they are shown; each is a field of `Settings`."""


def load() -> Settings:
    """The settings of this user: those of config.toml, and the variables before them.

    Raises SettingsError with the file and the line, or with the variable.
    """
    path = paths.settings_file()
    values: dict[str, Value] = _read(path)[0] if path.exists() else {}
    origins: dict[str, Origin] = dict.fromkeys(values, "file")
    for name, key in KEYS.items():
        text = os.environ.get(key.variable, "")
        if text.strip():
            try:
                values[name] = key.parse(text)
            except ValueError as error:
                raise SettingsError(f"{key.variable} is {text[:60]!r}: it must be {error}") from None
            origins[name] = "variable"
    return Settings(**cast("dict[str, Any]", values), origins=origins)


def key_of(name: str) -> Key:
    """The key of that name, in which dashes are as good as underscores. Raises UsageError with the nearest."""
    key = KEYS.get(name.replace("-", "_"))
    if key is None:
        raise UsageError(f"unknown setting {name[:40]!r}{_hint(name)}")
    return key


def parse(name: str, text: str) -> Value:
    """The value of a setting that a text stands for. Raises UsageError for an unknown key or an invalid value."""
    key = key_of(name)
    try:
        return key.parse(text)
    except ValueError as error:
        raise UsageError(f"{key.name} is {text[:60]!r}: it must be {error}") from None


def store(name: str, value: Value | None) -> Path:
    """Write a setting into config.toml, all or nothing, and give its path; None removes the setting.

    The rest of the file stays as it is, comments included. Raises UsageError for an unknown key or an invalid value,
    SettingsError for a file that cannot be used, StorageError for one that cannot be written.
    """
    key, path = key_of(name), paths.settings_file()
    if value is not None:
        try:
            value = key.checked(value)
        except ValueError as error:
            raise UsageError(f"{key.name} is {str(value)[:60]!r}: it must be {error}") from None
    values, text = _read(path) if path.exists() else (dict[str, Value](), "")
    changed = _with_line(text, key.name, None if value is None else f"{key.name} = {as_toml(value)}")
    wanted = {**values, key.name: value}
    if value is None:
        del wanted[key.name]
    target = path.resolve()  # where a folder of such files is kept elsewhere, this is a link into it
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(target, error) from None
    with replacing(target) as temporary:
        temporary.write_text(changed, encoding="utf-8", newline="\n")
        if _read(temporary)[0] != wanted:
            raise SettingsError(f"cannot change {key.name} in {path}: edit the file")
    return path


def line_of(name: str) -> int:
    """The line of a key in config.toml. Raises SettingsError for a file that cannot be used."""
    return toml_file.line_of(_read(paths.settings_file())[1], "", name)


def _read(path: Path) -> tuple[dict[str, Value], str]:
    """The settings in a file, checked, and its text. Raises SettingsError."""
    content, text = toml_file.read(path, SettingsError)
    values = {}
    for name, value in content.items():
        key = KEYS.get(name)
        if key is None:
            place = (name,) if isinstance(value, dict) else ("", name)
            line = toml_file.line_of(text, *place)
            raise SettingsError(f"{path}, line {line}: unknown setting {name[:40]!r}{_hint(name)}")
        try:
            values[name] = key.checked(value)
        except ValueError as error:
            line = toml_file.line_of(text, "", name)
            raise SettingsError(
                f"{path}, line {line}: {name} is {_shown(value)}; it must be {error}"
            ) from None
    return values, text


def _hint(name: str) -> str:
    if longer := [key for key in KEYS if name and key.startswith(name)]:
        return f"; did you mean {longer[0]}?"
    return did_you_mean(name[:80], KEYS) or f"; there are {', '.join(KEYS)}"


def _shown(value: object) -> str:
    try:
        return repr(value)[:60]
    except ValueError:  # in hexadecimal, a number may have more digits than Python converts
        return "too large"


def as_toml(value: Value) -> str:
    """A value as a line of TOML has it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        from json import dumps

        return dumps(value, ensure_ascii=False)
    return repr(value)


def _with_line(text: str, key: str, line: str | None) -> str:
    """A text of TOML in which the line of a key is replaced, removed, or added where it was not."""
    lines = text.removesuffix("\n").split("\n") if text else []
    place = next((number for number, each in enumerate(lines) if toml_file.is_line_of(each, key)), len(lines))
    lines[place : place + 1] = [] if line is None else [line]
    return "".join(f"{each}\n" for each in lines)
