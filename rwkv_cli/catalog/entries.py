"""Reads and checks models.toml; an error names the file and the line."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rwkv_cli import toml_file
from rwkv_cli.catalog.names import (
    DEFAULT_REVISION,
    hide_secrets,
    is_file_reference,
    is_name,
    is_relative_file,
    is_repository,
    is_revision,
    is_url,
)
from rwkv_cli.errors import RegistryError, UsageError
from rwkv_cli.text import generations
from rwkv_cli.text.generations import Published

_SHA256 = re.compile(r"[0-9a-f]{64}")
_LARGEST = 1 << 50  # more bytes or weights than this are a mistake


@dataclass(frozen=True)
class Entry:
    """A model in the registry; repository and url are None for the built-in model."""

    name: str
    description: str = ""
    repository: str | None = None  # owner/name on the hub
    file: str | None = None  # in the repository; None for its whole folder
    url: str | None = None  # of a file that is not on the hub
    revision: str = DEFAULT_REVISION
    bytes: int | None = None
    sha256: str | None = None
    mirrors: tuple[str, ...] = ()  # references to the same file elsewhere
    parameters: int | None = None
    template: str | None = None
    sampling: Mapping[str, float] = field(default_factory=dict)
    license: str | None = None
    good_for: str | None = None
    aliases: tuple[str, ...] = ()

    @property
    def is_published(self) -> bool:
        """Whether it can be pulled; False for the built-in model."""
        return self.repository is not None or self.url is not None

    @property
    def published(self) -> Published | None:
        """What the name of its file tells, if the publisher of the generations has given it that name."""
        return generations.parse(self.file) if self.file else None


Tables = dict[str, dict[str, Any]]


def read_tables(path: Path) -> Tables:
    """The tables of a models.toml, each field checked on its own. Raises RegistryError."""
    tables, text = toml_file.read(path, RegistryError)
    for name, fields in tables.items():
        _check_table(path, text, name, fields)
    _check_aliases(path, text, tables)
    return tables


def make_entries(path: Path, tables: Tables) -> dict[str, Entry]:
    """The entries of merged tables by name. Raises RegistryError for fields that exclude each other."""
    entries = {}
    for name, fields in tables.items():
        lists = {key: tuple(fields.get(key, ())) for key in ("aliases", "mirrors")}
        entry = Entry(name=name, **(fields | lists))
        if entry.url and (entry.repository or entry.file):
            raise RegistryError(f"{path}: [{name}] has both a url and a repository or file: keep one")
        if entry.file and not entry.repository:
            raise RegistryError(f"{path}: [{name}] has a file but no repository that holds it")
        if entry.mirrors and not (entry.file or entry.url):
            raise RegistryError(f"{path}: [{name}] has mirrors but no file or url that they repeat")
        entries[name] = entry
    return entries


def _string(check: Callable[[str], bool], demand: str) -> Callable[[object], str | None]:
    """A check of a field: None for a valid value, otherwise what it must be."""
    return lambda value: None if isinstance(value, str) and check(value) else demand


def _count(value: object) -> str | None:
    return None if type(value) is int and 0 < value < _LARGEST else "a whole number above 0"


def _aliases(value: object) -> str | None:
    sound = isinstance(value, list) and all(isinstance(item, str) and is_name(item) for item in value)
    return None if sound else 'a list of names, such as ["small"]'


def _mirrors(value: object) -> str | None:
    sound = isinstance(value, list) and all(
        isinstance(item, str) and is_file_reference(item) for item in value
    )
    return None if sound else "a list of files, each hf:OWNER/REPO/FILE or a URL"


def _template(value: object) -> str | None:
    from rwkv_cli.text.templates import templates

    known = isinstance(value, str) and value in templates()
    return None if known else f"one of {', '.join(templates())}"


def _sampling(value: object) -> str | None:
    from rwkv_cli.sampling_settings import parse_defaults

    demand = "a table of sampling settings, such as { temperature = 1.0, top_p = 0.5 }"
    if not isinstance(value, dict):
        return demand
    try:
        parse_defaults(value)
    except UsageError as error:
        return f"{demand} ({str(error)[:80]})"
    return None


def _text(value: str) -> bool:
    return 0 < len(value) <= 500 and value.isprintable()


_FIELDS: Mapping[str, Callable[[object], str | None]] = {
    "description": _string(_text, "a line of text"),
    "good_for": _string(_text, "a line of text"),
    "repository": _string(is_repository, "owner/name of a repository"),
    "file": _string(is_relative_file, "the name of a file in the repository"),
    "url": _string(is_url, "a URL, https://..."),
    "revision": _string(is_revision, "a branch, a tag or a commit"),
    "bytes": _count,
    "sha256": _string(lambda value: bool(_SHA256.fullmatch(value)), "64 hexadecimal digits in lower case"),
    "mirrors": _mirrors,
    "parameters": _count,
    "template": _template,
    "sampling": _sampling,
    "license": _string(_text, "a line of text"),
    "aliases": _aliases,
}


def _check_table(path: Path, text: str, name: str, fields: object) -> None:
    if not is_name(name):
        raise _refusal(
            path,
            text,
            name,
            None,
            f"{name[:80]!r} cannot be the name of a model: use a-z, 0-9, '.', '_' and '-'",
        )
    if not isinstance(fields, dict):
        raise _refusal(path, text, name, None, f"{name} must be a table, [{name}]")
    for key, value in fields.items():
        check = _FIELDS.get(key)
        if check is None:
            known = ", ".join(_FIELDS)
            raise _refusal(
                path, text, name, key, f"[{name}] has the unknown field {key[:40]!r}; known are {known}"
            )
        if (demand := check(value)) is not None:
            raise _refusal(
                path, text, name, key, f"{key} of [{name}] is {_shown(value)}; it must be {demand}"
            )


def _shown(value: object) -> str:
    try:
        return repr(hide_secrets(str(value))[:60])
    except ValueError:  # in hexadecimal, a number may have more digits than Python converts
        return "too large"


def _check_aliases(path: Path, text: str, tables: Tables) -> None:
    taken = dict.fromkeys(tables, "a model")
    for name, fields in tables.items():
        for alias in fields.get("aliases", ()):
            if alias in taken:
                raise _refusal(path, text, name, "aliases", f"the name {alias} is given twice")
            taken[alias] = name


def _refusal(path: Path, text: str, table: str, key: str | None, problem: str) -> RegistryError:
    return RegistryError(f"{path}, line {toml_file.line_of(text, table, key)}: {problem}")
