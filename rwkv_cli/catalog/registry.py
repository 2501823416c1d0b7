"""The models that are known by name, from models.toml; and from what a user types to a file."""

from __future__ import annotations

import functools
import re
import shlex
from pathlib import Path

from rwkv_cli import paths
from rwkv_cli.catalog import model_store, reference
from rwkv_cli.catalog.entries import Entry, Tables, make_entries, read_tables
from rwkv_cli.catalog.names import DEFAULT_REVISION, HUB, without_secrets
from rwkv_cli.catalog.reference import Reference
from rwkv_cli.errors import CheckpointError, MissingModelError, RegistryError, UsageError
from rwkv_cli.reporting import did_you_mean
from rwkv_cli.text.generations import Published, order_of, parse, split_name

DEFAULT = "gosling"
_CLONED = re.compile(r"git@(?:hf\.co|huggingface\.co):(.+?)(?:\.git)?/?")

# Where a model is published. If the user overrides one of these, ours no longer apply, nor does _CONTENT.
_PLACE = ("repository", "file", "url", "revision")
_CONTENT = ("bytes", "sha256", "mirrors", "parameters")


@functools.cache
def entries() -> dict[str, Entry]:
    """Every name and alias -> its entry: models.toml, and the user's own merged over it. Raises RegistryError."""
    ours, own_file = read_tables(paths.registry_file()), paths.user_registry_file()
    own = read_tables(own_file) if own_file.exists() else {}
    by_name = make_entries(own_file if own else paths.registry_file(), _merged(ours, own))
    for name in own:
        if name != DEFAULT and not by_name[name].is_published:
            raise RegistryError(f"{own_file}: [{name}] has neither a repository nor a url")
    found = dict(by_name)
    for name in (*(name for name in by_name if name not in own), *own):  # the user's aliases win
        for alias in by_name[name].aliases:
            if alias not in by_name:
                found[alias] = by_name[name]
    return found


def names() -> list[str]:
    """All names and aliases, sorted, for completion in a shell."""
    return sorted(entries())


def _merged(ours: Tables, own: Tables) -> Tables:
    merged = dict(ours)
    for name, fields in own.items():
        base = dict(ours.get(name, {}))
        if any(field in fields for field in _PLACE):
            dropped = _CONTENT + (
                _PLACE if "url" in fields or "repository" in fields else ("url", "revision")
            )
            base = {field: value for field, value in base.items() if field not in dropped}
        merged[name] = base | fields
    return merged


def resolve(text: str) -> Reference:
    """Resolve a name, hf:owner/repo/file or a URL to a published model.

    Raises UsageError for an unknown name, or a reference that is malformed.
    """
    if reference.is_reference(text):
        found = reference.parse(text)
        return next((known for known in _references() if _is_same(known, found)), found)
    entry = entries().get(text.lower())
    if entry is None:
        raise _unknown(text)
    if not entry.is_published:
        raise UsageError(f"{entry.name} is built in: it needs no download")
    return reference.of_entry(entry)


def locate(path_or_name: str | Path | None) -> Path:
    """The file or folder that the setting `model` means; None is the built-in model.

    A path comes first, then a name in the store, then one in the registry. Raises UsageError for an unknown name,
    CheckpointError for a path that does not exist, MissingModelError for a known model that is not on this machine.
    """
    if path_or_name is None:
        return paths.EMBEDDED_MODEL
    wanted = str(path_or_name)
    if not wanted.strip():
        raise UsageError("the name of the model is empty")
    if reference.is_reference(wanted):
        return _pulled(resolve(wanted), wanted, wanted)
    path = paths.user_path(path_or_name)
    if path.is_file() or path.is_dir():
        return path
    if path.exists():
        raise CheckpointError(f"{path} is neither a file nor a folder")
    if stored := model_store.find(wanted.lower()):
        return stored.path
    if entry := entries().get(wanted.lower()):
        if not entry.is_published:
            return paths.EMBEDDED_MODEL
        return _pulled(reference.of_entry(entry), entry.name, wanted.lower())
    if stored := model_store.find_pulled(wanted.lower()):  # of a generation that models.toml does not have
        return stored.path
    if path.name != wanted or path.suffix[1:].isalpha():  # a name may end in ".1b"
        raise CheckpointError(f"there is no file {without_secrets(wanted)}{_on_the_hub(wanted)}")
    raise _unknown(wanted)


def _pulled(reference: Reference, shown: str, wanted: str) -> Path:
    """The file of a published model in the store. Raises MissingModelError with the command that downloads it."""
    if stored := model_store.find_pulled(reference.name):
        return stored.path
    named = without_secrets(shown)
    problem, instead = f"the model {named} is not on this machine", ""
    other = None if wanted == shown else _other_generation(reference)
    if other and _is_newer(other, shown) and (stored := model_store.find_pulled(other)):
        return stored.path  # a short name means the newest of a size
    if other:  # which the short name may have meant before
        problem = f"{wanted} now means {named}, which is not on this machine"
        instead = f", or choose {other}, which is here"
    command = f"`rwkv pull {shlex.quote(named)}`" if named == shown else "`rwkv pull` and its whole address"
    message = f"{problem}: download it with {command}{instead}"
    raise MissingModelError(message, shown, problem)


def _other_generation(reference: Reference) -> str | None:
    """The name of the newest model in the store that is of the same size and another generation."""
    pulled = parse(reference.file or "")
    if pulled is None:
        return None
    names = {stored.name.rpartition("-")[0] for stored in model_store.listed()}
    there = {name: parts[0] for name in names if (parts := split_name(name)) and parts[1] == pulled.size}
    return max(there, key=lambda name: order_of(there[name]), default=None)


def _is_newer(name: str, than: str) -> bool:
    """Whether the model of one name is of a later generation than that of another."""
    one, other = split_name(name), split_name(than)
    return one is not None and other is not None and order_of(one[0]) > order_of(other[0])


def _unknown(wanted: str) -> UsageError:
    shown = without_secrets(wanted)
    if last := _last_known(wanted.lower()):
        return UsageError(
            f"unknown model {shown}: the newest that is known by name is {last}; "
            f"`rwkv pull {last} --newest` gets what is newer"
        )
    known = [*entries(), *(stored.name for stored in model_store.listed())]
    hint = (
        did_you_mean(wanted, known)
        or _on_the_hub(wanted)
        or f": give a path, a name from `rwkv models list --known`, or {HUB}OWNER/REPO"
    )
    return UsageError(f"unknown model {shown}{hint}")


def _on_the_hub(wanted: str) -> str:
    """What to add to an error if a text looks like something on the hub, or like its address without https://."""
    host, _, rest = wanted.partition("/")
    if host.lower() in reference.HUB_HOSTS and rest:
        return f"; for an address of the hub write https://{wanted}"
    if found := _CLONED.fullmatch(wanted):  # git@hf.co:owner/name.git
        wanted = found[1]
    try:
        named = reference.parse(HUB + wanted)
    except UsageError:
        return ""
    is_weights = wanted.lower().endswith(reference.WEIGHT_FILES)
    if not named.file and not is_weights:
        return f"; for a repository of the hub write {HUB}{wanted}"
    if named.file and is_weights and not Path(host).exists():  # a folder here would be what is meant
        return f"; for a file of the hub write {HUB}{wanted}"
    return ""


def _last_known(wanted: str) -> str | None:
    """The newest known model of a size, if `wanted` is the name of a newer one; else None."""
    generation, size = split_name(wanted) or ("", "")
    of_size = [found for entry, found in published() if found.name == entry.name and found.size == size]
    last = max(of_size, key=lambda found: found.order, default=None)
    if last is None or order_of(generation) <= order_of(last.generation):
        return None
    return last.name


def _references() -> list[Reference]:
    return [reference.of_entry(entry) for entry in set_of(entries()) if entry.is_published]


def set_of(named: dict[str, Entry]) -> list[Entry]:
    """Each entry once, in the order of models.toml."""
    return list({entry.name: entry for entry in named.values()}.values())


def short_name(entry: Entry) -> str:
    """What one would type for a model: of a generation the alias, which a newer one may get, otherwise its name."""
    own = (
        alias for alias in entry.aliases if entries()[alias] == entry
    )  # unless the user gave it to another
    return next(own, entry.name) if entry.published else entry.name


def published() -> list[tuple[Entry, Published]]:
    """The known models whose files are named by their generation, each with what its name tells."""
    return [(entry, found) for entry in set_of(entries()) if (found := entry.published)]


def _is_same(known: Reference, found: Reference) -> bool:
    """Whether a reference is to a known model: without a revision, to the one that models.toml names."""
    is_same_revision = found.revision in (known.revision, DEFAULT_REVISION)
    is_same_file = (known.repository, known.file, known.url) == (found.repository, found.file, found.url)
    return is_same_file and is_same_revision
