"""The models that are known by name, from models.toml, and the way from a name or path to a file."""

from __future__ import annotations

import difflib
import functools
import tomllib
from dataclasses import dataclass
from pathlib import Path

from rwkv_cli import paths
from rwkv_cli.errors import CheckpointError, UsageError

DEFAULT = "gosling"


@dataclass(frozen=True)
class Entry:
    """One model of the registry; repository and file are None for the model that comes with the program."""

    name: str
    description: str
    repository: str | None = None  # owner/name on huggingface.co
    file: str | None = None
    bytes: int | None = None
    sha256: str | None = None
    aliases: tuple[str, ...] = ()


@functools.cache
def entries() -> dict[str, Entry]:
    """Every name and alias -> its entry."""
    found: dict[str, Entry] = {}
    for name, fields in tomllib.loads(paths.registry_file().read_text(encoding="utf-8")).items():
        entry = Entry(name=name, **(fields | {"aliases": tuple(fields.get("aliases", ()))}))
        for known_as in (name, *entry.aliases):
            found[known_as] = entry
    return found


def locate(path_or_name: str | Path | None) -> Path:
    """The file or directory that a user means by --model; None is the model that comes with the program.

    Raises UsageError for a name that nothing has, CheckpointError for a known model that is not on this machine.
    """
    if path_or_name is None:
        return paths.EMBEDDED_MODEL
    wanted = str(path_or_name)
    if not wanted.strip():
        raise UsageError("the name of the model is empty")
    path = Path(path_or_name).expanduser()
    if path.is_file() or path.is_dir():
        return path
    if path.exists():
        raise CheckpointError(f"{path} is neither a file nor a folder")
    if entry := entries().get(wanted.lower()):
        if entry.repository is None:
            return paths.EMBEDDED_MODEL
        raise CheckpointError(
            f"the model {entry.name} is not on this machine: download {entry.file} from "
            f"https://huggingface.co/{entry.repository} and give its path"
        )
    if path.name != wanted or path.suffix[1:].isalpha():  # a name may end in ".1b"
        raise CheckpointError(f"there is no file {wanted}")
    near = difflib.get_close_matches(wanted.lower(), entries(), n=1)
    hint = f"; did you mean {near[0]}?" if near else ": give a path or one of " + ", ".join(sorted(entries()))
    raise UsageError(f"there is no model named {wanted}{hint}")
