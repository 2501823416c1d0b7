"""What `rwkv models` shows, as JSON values and as texts."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Required, TypedDict, final

from rwkv_cli import paths
from rwkv_cli.catalog import model_store, recommended, reference, registry
from rwkv_cli.catalog.entries import Entry
from rwkv_cli.catalog.model_store import Stored
from rwkv_cli.catalog.names import without_secrets
from rwkv_cli.cli import default_model
from rwkv_cli.cli.options import as_flag
from rwkv_cli.cli.reports.info import model_facts, prompts, prompts_text
from rwkv_cli.errors import ModelFileError, UsageError
from rwkv_cli.files.model_file import ModelFile
from rwkv_cli.reporting import format_size
from rwkv_cli.text import generations
from rwkv_cli.text.templates import get_template

STORED = ("name", "type", "size", "parameters", "last use", "")
KNOWN = ("name", "download", "memory", "here", "good for")
ALL_KNOWN = ("name", "date", "download", "memory", "also")
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
    default: bool
    path: str


@final
class KnownRow(TypedDict):
    """A model in the registry; `path` is None where it is not installed.

    `memory_bytes` is about what it takes in int8.
    """

    name: str
    short_name: str
    aliases: list[str]
    description: str
    good_for: str | None
    recommended: bool
    generation: str | None
    date: str | None
    parameters: int | None
    bytes: int | None
    memory_bytes: int | None
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
    path = default_model.path()
    return [_stored_row(each, each.path == path) for each in model_store.listed()]


def _stored_row(each: Stored, is_default: bool) -> StoredRow:
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
    row["default"] = is_default
    row["path"] = str(each.path)
    return row


def known(*, every: bool = False) -> list[KnownRow]:
    """A row for every model in the registry, in its order; without `every`, not for older generations of a size."""
    best = recommended.recommended()
    chosen = registry.set_of(registry.entries()) if every else recommended.current()
    return [_known_row(entry, entry == best) for entry in chosen]


def _known_row(entry: Entry, is_recommended: bool) -> KnownRow:
    is_remote = entry.is_published
    template = get_template(entry.template) if entry.template else None
    here = model_store.find_pulled(entry.name) if is_remote else Stored(entry.name, paths.EMBEDDED_MODEL)
    return {
        "name": entry.name,
        "short_name": registry.short_name(entry),
        "aliases": list(entry.aliases),
        "description": entry.description,
        "good_for": entry.good_for,
        "recommended": is_recommended,
        "generation": entry.published.generation if entry.published else None,
        "date": generations.day_of(entry.file or ""),
        "parameters": entry.parameters,
        "bytes": entry.bytes,
        "memory_bytes": recommended.memory_bytes(entry),
        "sha256": entry.sha256,
        "template": entry.template,
        "prompts": prompts(template) if template else {},
        "sampling": {**(template.sampling_for() if template else {}), **entry.sampling},
        "license": entry.license,
        "origin": reference.of_entry(entry).text if is_remote else None,
        "mirrors": [without_secrets(mirror) for mirror in entry.mirrors],
        "path": str(here.path) if here else None,
    }


def stored_cells(row: StoredRow) -> tuple[str, ...]:
    """The cells below `STORED`, formatted for display."""
    parameters = f"{row['parameters'] / 1e6:,.0f} M" if row["parameters"] else ""
    used = row["last_used"][:16].replace("T", " ") if row["last_used"] else "never"
    kind, mark = row["weight_type"] or "damaged", "default" if row["default"] else ""
    return row["name"], kind, format_size(row["file_bytes"]), parameters, used, mark


def known_cells(row: KnownRow, *, every: bool = False) -> tuple[str, ...]:
    """The cells below `KNOWN`, or for `every` known model below `ALL_KNOWN`, formatted for display."""
    size, memory = recommended.download_bytes(registry.entries()[row["name"]]), row["memory_bytes"]
    download = "built in" if row["origin"] is None else format_size(size) if size else ""
    taken = f"{memory / 1e9:.1f} GB" if memory else ""
    mark = " *" if row["recommended"] else ""
    if every:
        return row["name"] + mark, row["date"] or "", download, taken, ", ".join(row["aliases"])
    name = row["short_name"] + mark
    here = "yes" if row["path"] else ""
    return name, download, taken, here, row["good_for"] or row["description"]


def footnote(rows: Sequence[KnownRow]) -> str:
    """What the asterisk of `known_cells` means; "" if no row has it."""
    best = next((row["short_name"] for row in rows if row["recommended"]), None)
    return f"* for {recommended.this_machine()}: rwkv pull {best}" if best else ""


def facts(name: str) -> dict[str, object]:
    """Everything about a model in the store or the registry, by name or reference. Raises UsageError for a path."""
    entry = registry.entries().get(name.lower())
    if model_store.find(name.lower()) is None and entry is not None:
        row = dict(_known_row(entry, entry == recommended.recommended()))
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
