"""How models, repositories, files and addresses may be written; what leads out of a folder is never valid."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import urlsplit

DEFAULT_REVISION = "main"
HUB = "hf:"

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,79}")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
# Names that are reserved by Windows.
_DEVICES = frozenset(
    {"con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in range(10))}
)


class HubParts(NamedTuple):
    """The parts of hf:owner/repo[@revision][/file], not checked; empty for what is not there."""

    repository: str
    revision: str
    file: str


def is_name(text: str) -> bool:
    """Whether this is a valid name of a model, which is also a file name on every system."""
    sound = bool(_NAME.fullmatch(text)) and ".." not in text and not text.endswith(".")
    return sound and text.split(".")[0] not in _DEVICES


def is_repository(text: str) -> bool:
    """Whether this is a valid owner/name on the hub."""
    return bool(_REPOSITORY.fullmatch(text)) and ".." not in text and "--" not in text


def is_relative_file(text: str) -> bool:
    """Whether this is a valid file name in a repository, which cannot lead out of it."""
    parts = text.split("/")
    sound = all(part not in ("", ".", "..") and not part.endswith((" ", ".")) for part in parts)
    return sound and len(text) <= 400 and text.isprintable() and not set(text) & set('\\:*?"<>|')


def is_revision(text: str) -> bool:
    """Whether this is a valid branch, tag or commit."""
    return is_relative_file(text) and not set(text) & set("@#%& ")


def is_url(text: str) -> bool:
    """Whether this is a valid http or https URL."""
    try:
        parts = urlsplit(text)
        return (
            parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and text.isprintable()
            and " " not in text
        )
    except ValueError:
        return False


def split_hub(text: str) -> HubParts:
    """The parts of a text that begins with hf:, in upper or lower case."""
    owner, _, rest = text[len(HUB) :].rstrip("/").partition("/")
    name, _, file = rest.partition("/")
    name, _, revision = name.partition("@")
    return HubParts(f"{owner}/{name}", revision, file)


def is_file_reference(text: str) -> bool:
    """Whether this is a valid hf:owner/repo[@revision]/file or a URL, which name one file."""
    if not text.lower().startswith(HUB):
        return is_url(text)
    repository, revision, file = split_hub(text)
    return is_repository(repository) and is_relative_file(file) and (not revision or is_revision(revision))
