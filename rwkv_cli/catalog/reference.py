"""References to published models: hf:owner/repo/file, a URL, or an entry of the registry."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

from rwkv_cli.catalog.entries import Entry
from rwkv_cli.catalog.names import (
    DEFAULT_REVISION,
    HUB,
    identity_of,
    is_relative_file,
    is_repository,
    is_revision,
    is_url,
    split_hub,
    without_secrets,
)
from rwkv_cli.errors import UsageError

_RESOLVE = re.compile(r"/([^/]+/[^/]+)/(?:resolve|blob|raw)/([^/]+)/(.+)")
_HUB_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
_UNSAFE = re.compile(r"[^a-z0-9._-]+")


@dataclass(frozen=True)
class Reference:
    """Where a model is published: a file or the folder of a repository on the hub, or a URL."""

    name: str  # of its file in the store, without the type
    repository: str | None = None
    file: str | None = None  # None for the whole folder
    revision: str = DEFAULT_REVISION
    url: str | None = None
    entry: Entry | None = None  # of the registry, if it has one

    @property
    def text(self) -> str:
        """The reference as text, which `parse` accepts; an address without its password and signature."""
        if self.url:
            return without_secrets(self.url)
        revision = "" if self.revision == DEFAULT_REVISION else f"@{self.revision}"
        return f"{HUB}{self.repository}{revision}" + (f"/{self.file}" if self.file else "")


def is_reference(text: str) -> bool:
    """Whether a text is written like hf:... or a URL, rather than like a name or a path."""
    return text.lower().startswith((HUB, "http://", "https://"))


def parse(text: str) -> Reference:
    """A Reference from hf:owner/repo[@revision][/file] or a URL. Raises UsageError for anything else."""
    if not text.lower().startswith(HUB):
        return _from_url(text)
    return _on_the_hub(text, text)


def of_entry(entry: Entry) -> Reference:
    """The reference of an entry of the registry."""
    if entry.url:
        return Reference(entry.name, url=entry.url, entry=entry)
    return Reference(entry.name, entry.repository, entry.file, entry.revision, entry=entry)


def _on_the_hub(text: str, written: str) -> Reference:
    shown = without_secrets(written)
    repository, revision, file = split_hub(text)
    if not is_repository(repository):
        raise UsageError(
            f"{shown[:120]!r} does not name a repository: write hf:owner/name or hf:owner/name/file"
        )
    if revision and not is_revision(revision):
        raise UsageError(f"{shown[:120]!r} has an invalid revision: {revision[:40]!r}")
    if file and not is_relative_file(file):
        raise UsageError(f"{shown[:120]!r} names an invalid file, or one outside the repository")
    revision = revision or DEFAULT_REVISION
    parts = [
        *repository.split("/"),
        _stem(file),
        "" if revision == DEFAULT_REVISION else revision,
    ]
    stored_as = _file_name("--".join(part for part in parts if part), shown if file.count("/") else "")
    return Reference(stored_as, repository, file or None, revision)


def _from_url(text: str) -> Reference:
    if not is_url(text):
        raise UsageError(f"{without_secrets(text)[:120]!r} is not a valid URL")
    parts = urlsplit(text)
    found = _RESOLVE.fullmatch(unquote(parts.path))
    if parts.hostname in _HUB_HOSTS and found:
        return _on_the_hub(
            f"{HUB}{found[1]}@{found[2]}/{found[3]}".replace(f"@{DEFAULT_REVISION}/", "/"), text
        )
    return Reference(_file_name(_stem(unquote(parts.path)) or "model", identity_of(text)), url=text)


def _stem(path: str) -> str:
    """The last part of a path without the suffix of a file; the ".5b-20260930" of a folder is none."""
    last = PurePosixPath(path)
    return last.stem if last.suffix[1:].isalnum() and not last.suffix[1:2].isdigit() else last.name


def _file_name(text: str, whole: str) -> str:
    """A valid file name; a hash of `whole`, if it is not empty, distinguishes it from others of the same name."""
    name = _UNSAFE.sub("-", text.lower()).strip("-._") or "model"
    name = re.sub(r"\.\.+", ".", name)
    if whole or len(name) > 80:
        name = f"{name[:60].strip('-._')}-{hashlib.sha256((whole or text).encode()).hexdigest()[:8]}"
    return name
