"""The model that commands use without --model: which it is, how it becomes another one, and what it can do."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TypedDict, final

from rwkv_cli import paths, settings
from rwkv_cli.catalog import model_store, recommended, registry
from rwkv_cli.catalog.model_store import Stored
from rwkv_cli.errors import RwkvError
from rwkv_cli.reporting import format_size

_TOY = "gosling is a small model for children's stories and small talk; it knows no facts."


@final
class Default(TypedDict):
    """The default model; `path` is None where it is not on this machine, `set_in` where none is set."""

    name: str
    path: str | None
    set_in: str | None


def facts() -> Default:
    """Which model it is, and what says so. Raises SettingsError."""
    chosen = settings.load()
    origin = chosen.origins.get("model")
    places = {"variable": settings.KEYS["model"].variable, "file": str(paths.settings_file())}
    found = path()
    return {
        "name": chosen.model or registry.DEFAULT,
        "path": str(found) if found else None,
        "set_in": places.get(origin) if origin else None,
    }


def sentence(facts: Default) -> str:
    """Which model is used without --model, and why."""
    if facts["set_in"] is None:
        return f"{facts['name']}: it is built in, and no other one is set"
    missing = "" if facts["path"] else "; it is not on this machine"
    return f"{facts['name']}: set in {facts['set_in']}{missing}"


def path() -> Path | None:
    """The file of the default model; None if there is none of that name, or if the settings cannot be read."""
    try:
        return registry.locate(settings.load().model)
    except RwkvError:
        return None


def choose(name: str) -> str:
    """Make a model the default, and give the name by which it is kept: that of its generation, not of its size alone.

    Raises UsageError, CheckpointError or MissingModelError for one that is not here, SettingsError, StorageError.
    """
    found = registry.locate(name)
    kept = _kept_name(found)
    settings.store("model", kept)
    return kept


def _kept_name(found: Path) -> str:
    if found == paths.EMBEDDED_MODEL:
        return registry.DEFAULT
    if found.parent == model_store.folder():
        return name_of(Stored(found.stem, found))
    return str(found.absolute())


def choose_first(stored: Stored) -> bool:
    """Make a model that was pulled the default if none was ever chosen; whether it is now.

    Raises SettingsError, StorageError.
    """
    if settings.load().model is not None:
        return False
    settings.store("model", name_of(stored))
    return True


def forget(removed: Stored) -> bool:
    """Have gosling as the default again where it was a model that was removed; whether it was."""
    name = settings.load().model
    if name is None or name.lower() not in (removed.name, removed.name.rpartition("-")[0]):
        return False
    if path() is not None or settings.load().origins["model"] == "variable":
        return False
    settings.store("model", None)
    return True


def name_of(stored: Stored) -> str:
    """The name that means this very file: without its type where that is the one that is used."""
    name = stored.name.rpartition("-")[0]
    found = model_store.find_pulled(name)
    return name if found and found.path == stored.path else stored.name


def short_name(stored: Stored) -> str:
    """What one would type for a model in the store."""
    name = name_of(stored)
    entry = registry.entries().get(name)
    return registry.short_name(entry) if entry else name


def commands_after(pulled: Stored, is_first: bool) -> list[str]:
    """What to type after a pull."""
    name = shlex.quote(short_name(pulled))
    if is_first:
        back = f"for gosling again: rwkv models default {registry.DEFAULT}"
        return [f"it is the default model now; {back}", "to talk with it: rwkv chat"]
    lines = [f"to talk with it: rwkv chat -m {name}"]
    if path() != pulled.path:
        lines.append(f"to use it without -m: rwkv models default {name}")
    return lines


def advice_on(model: Path) -> str | None:
    """What to tell somebody who talks with the built-in model: what it is, and how to get a better one."""
    if model != paths.EMBEDDED_MODEL:
        return None
    if here := _largest():
        name = shlex.quote(short_name(here))
        return (
            f"{_TOY} A larger model is here: rwkv chat -m {name}, or for always: rwkv models default {name}"
        )
    best = recommended.recommended()
    if best is None:
        return _TOY
    size = recommended.download_bytes(best)
    download = f", a download of {format_size(size)}" if size else ""
    name = registry.short_name(best)
    return f"{_TOY} For one that can answer, on {recommended.this_machine()}: rwkv pull {name}{download}"


def _largest() -> Stored | None:
    return max(model_store.listed(), key=lambda stored: stored.bytes, default=None)
