"""What `rwkv config` shows: every setting with its value, and where that comes from."""

from __future__ import annotations

from typing import TypedDict, final

from rwkv_cli import settings
from rwkv_cli.reporting import pluralize
from rwkv_cli.sampling_settings import MAX_ANSWER_TOKENS, MAX_TOKENS
from rwkv_cli.settings import Origin, Settings, Value

TITLES = ("setting", "value", "from", "variable")

# Where nothing is set and the setting has no value of its own.
_UNSET = {
    "model": "gosling",
    "threads": "one per core",
    "max_tokens": f"{MAX_TOKENS}; {MAX_ANSWER_TOKENS} in a chat",
}
_OF_THE_MODEL = "the model's own"


@final
class SettingRow(TypedDict):
    """A setting; `line` is that of config.toml, and `value` is null where the model or the command decides."""

    key: str
    value: Value | None
    origin: Origin
    line: int | None
    variable: str
    help: str


def rows() -> list[SettingRow]:
    """A row for every setting. Raises SettingsError."""
    found = settings.load()
    return [_row(name, found) for name in settings.KEYS]


def row(name: str) -> SettingRow:
    """The row of one setting. Raises SettingsError."""
    return _row(name, settings.load())


def _row(name: str, found: Settings) -> SettingRow:
    key, origin = settings.KEYS[name], found.origins.get(name, "default")
    return {
        "key": name,
        "value": getattr(found, name),
        "origin": origin,
        "line": settings.line_of(name) if origin == "file" else None,
        "variable": key.variable,
        "help": key.help,
    }


def text(row: SettingRow) -> str:
    """The value of a setting, formatted for display."""
    value = row["value"]
    if value is None:
        return _UNSET.get(row["key"], _OF_THE_MODEL)
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)


def cells(row: SettingRow) -> tuple[str, ...]:
    """The cells of a row, formatted for display."""
    where = {"default": "built-in", "variable": "variable", "file": f"line {row['line']}"}
    return row["key"], text(row), where[row["origin"]], row["variable"]


def summary(shown: list[SettingRow]) -> str:
    """How many settings are not the built-in ones."""
    count = sum(row["origin"] != "default" for row in shown)
    return f"{pluralize(count, 'setting')} of your own" if count else "all settings are built-in"
