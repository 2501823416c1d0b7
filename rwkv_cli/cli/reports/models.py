"""What `rwkv models` shows, as JSON values and as texts."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Required, TypedDict, final

from rwkv_cli import paths
from rwkv_cli.catalog import model_store, reference, registry
from rwkv_cli.catalog.entries import Entry
from rwkv_cli.catalog.model_store import Stored
from rwkv_cli.catalog.names import without_secrets
from rwkv_cli.cli.options import as_flag
from rwkv_cli.cli.reports.info import model_facts, prompts, prompts_text
from rwkv_cli.errors import ModelFileError, UsageError
from rwkv_cli.files.model_file import ModelFile
from rwkv_cli.reporting import format_size
from rwkv_cli.text import generations
from rwkv_cli.text.templates import get_template

STORED = ("name", "type", "size", "parameters", "last use")
KNOWN = ("name", "also", "date", "download", "parameters", "description")
INTACT, UNKNOWN = "intact", "readable, but without a digest to verify it with"
GOOD = (INTACT, UNKNOWN)


@final
class StoredRow(TypedDict, total=False):
    """A model in the store; for a damaged one, `error` says what is wrong."""

    name: Required[str]
    weight_type: Required[str | None]
    file_bytes: Required[int]
    parameters: Required[int | None]
    origin: str | None
    error: str
    last_used: str | None
    path: str


@final
class KnownRow(TypedDict):
    """A model in the registry; `path` is None where it is not installed."""

    name: str
    aliases: list[str]
    description: str
    generation: str | None
    date: str | None
    parameters: int | None
    bytes: int | None
    sha256: str | None
    template: str | None
    prompts: dict[str, str]
    sampling: dict[str, float]
    license: str | None
    origin: str | None
    mirrors: list[str]
    path: str | None


def stored() -> list[StoredRow]:
    """A row for every model in the store."""
    return [_stored_row(each) for each in model_store.listed()]


def _stored_row(each: Stored) -> StoredRow:
    row: StoredRow = {
        "name": each.name,
        "weight_type": None,
        "file_bytes": each.bytes,
        "parameters": None,
    }
    try:
        info = ModelFile(each.path).info
        row["weight_type"], row["parameters"] = info.weight_type, info.config.n_params
        row["origin"] = info.source.get("origin")
    except ModelFileError as error:
        row["error"] = error.worded(as_flag)
    row["last_used"] = _iso(each.last_used)
    row["path"] = str(each.path)
    return row


def known() -> list[KnownRow]:
    """A row for every model in the registry, in its order."""
    return [_known_row(entry) for entry in registry.set_of(registry.entries())]


def _known_row(entry: Entry) -> KnownRow:
    is_remote = entry.is_published
    template = get_template(entry.template) if entry.template else None
    here = model_store.find_pulled(entry.name) if is_remote else Stored(entry.name, paths.EMBEDDED_MODEL)
    return {
        "name": entry.name,
        "aliases": list(entry.aliases),
        "description": entry.description,
        "generation": entry.published.generation if entry.published else None,
        "date": generations.day_of(entry.file or ""),
        "parameters": entry.parameters,
        "bytes": entry.bytes,
        "sha256": entry.sha256,
        "template": entry.template,
        "prompts": prompts(template) if template else {},
        "sampling": {**(template.sampling_for() if template else {}), **entry.sampling},
        "license": entry.license,
        "origin": reference.of_entry(entry).text if is_remote else None,
        "mirrors": [without_secrets(mirror) for mirror in entry.mirrors],
        "path": str(here.path) if here else None,
    }


def cells(row: StoredRow | KnownRow) -> tuple[str, ...]:
    """The cells of a row, formatted for display."""
    parameters = f"{row['parameters'] / 1e6:,.0f} M" if row["parameters"] else ""
    if "aliases" in row:
        size = row["bytes"] or 2 * (row["parameters"] or 0)
        about = "" if row["bytes"] or not size else "about "
        shown = about + format_size(size) if size else ""
        also = ", ".join(row["aliases"])
        return row["name"], also, row["date"] or "", shown, parameters, row["description"]
    used = row["last_used"][:16].replace("T", " ") if row["last_used"] else "never"
    kind = row["weight_type"] or "damaged"
    return row["name"], kind, format_size(row["file_bytes"]), parameters, used


def facts(name: str) -> dict[str, object]:
    """Everything about a model in the store or the registry, by name or reference. Raises UsageError for a path."""
    entry = registry.entries().get(name.lower())
    if model_store.find(name.lower()) is None and entry is not None:
        row = dict(_known_row(entry))
        found = model_store.find_pulled(entry.name)
        return row | ({"file": model_facts(found.path)} if found else {})
    path = registry.locate(name)
    if path.parent != model_store.folder():
        raise UsageError(f"{name} is not in the model store; for a file use: rwkv info {name}")
    return {"name": path.stem, "last_used": _iso(Stored(path.stem, path).last_used)} | model_facts(path)


def text(key: str, value: object) -> str:
    """Format a value for display."""
    if key == "prompts":
        return prompts_text(value)
    if isinstance(value, dict):
        return ", ".join(f"{name} {text(name, item)}" for name, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, int) and not isinstance(value, bool):
        return format_size(value) if key.endswith("bytes") else f"{value:,}"
    return str(value)


def chosen(name: str, action: str) -> Stored:
    """A model in the store that can be "removed" or "verified", by its own name or the one that it was pulled as.

    Raises UsageError.
    """
    found = model_store.find(name.lower())
    if found is None:
        entry = registry.entries().get(name.lower())
        if entry and not entry.is_published:
            raise UsageError(f"{entry.name} is built in: it cannot be {action}")
        is_known = entry or reference.is_reference(name)
        pulled_as = registry.resolve(name).name if is_known else name.lower()
        there = [each for each in model_store.listed() if each.name.rpartition("-")[0] == pulled_as]
        if len(there) > 1:
            choice = " or ".join(each.name for each in there)
            raise UsageError(f"{without_secrets(name)} is installed in several types: choose {choice}")
        found = there[0] if there else None
    return found or model_store.get(name.lower())


def verdict(path: Path) -> str:
    """Whether a model file is unchanged since it was written: one of GOOD, or what is wrong."""
    try:
        intact = ModelFile(path).is_intact()
    except ModelFileError as error:
        return error.worded(as_flag)
    if intact is None:
        return UNKNOWN
    return INTACT if intact else "damaged: its weights differ from those that were written"


def _iso(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).astimezone().isoformat(timespec="seconds")
