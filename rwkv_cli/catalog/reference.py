"""References to published models: hf:owner/repo/file, a URL, or an entry of the registry."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

from rwkv_cli.catalog.entries import (
    DEFAULT_REVISION,
    Entry,
    is_relative_file,
    is_repository,
    is_revision,
    is_url,
)
from rwkv_cli.errors import UsageError

HUB = "hf:"
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
        """The reference as text, which `parse` accepts."""
        if self.url:
            return self.url
        revision = "" if self.revision == DEFAULT_REVISION else f"@{self.revision}"
        return f"{HUB}{self.repository}{revision}" + (f"/{self.file}" if self.file else "")


def is_reference(text: str) -> bool:
    """Whether a text is written like hf:... or a URL, rather than like a name or a path."""
    return text.lower().startswith((HUB, "http://", "https://"))


def parse(text: str) -> Reference:
    """A Reference from hf:owner/repo[@revision][/file] or a URL. Raises UsageError for anything else."""
    if not text.lower().startswith(HUB):
        return _from_url(text)
    return _on_the_hub(text[len(HUB) :].rstrip("/"), text)


def of_entry(entry: Entry) -> Reference:
    """The reference of an entry of the registry."""
    if entry.url:
        return Reference(entry.name, url=entry.url, entry=entry)
    return Reference(entry.name, entry.repository, entry.file, entry.revision, entry=entry)


def _on_the_hub(rest: str, shown: str) -> Reference:
    owner, _, rest = rest.partition("/")
    name, _, file = rest.partition("/")
    name, _, revision = name.partition("@")
    repository = f"{owner}/{name}"
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
        owner,
        name,
        PurePosixPath(file).stem if file else "",
        "" if revision == DEFAULT_REVISION else revision,
    ]
    stored_as = _file_name("--".join(part for part in parts if part), shown if file.count("/") else "")
    return Reference(stored_as, repository, file or None, revision)


def _from_url(text: str) -> Reference:
    if not is_url(text):
        raise UsageError(f"{text[:120]!r} is not a valid URL")
    parts = urlsplit(text)
    found = _RESOLVE.fullmatch(unquote(parts.path))
    if parts.hostname in _HUB_HOSTS and found:
        return _on_the_hub(f"{found[1]}@{found[2]}/{found[3]}".replace(f"@{DEFAULT_REVISION}/", "/"), text)
    stem = PurePosixPath(unquote(parts.path)).stem
    return Reference(_file_name(stem or "model", text), url=text)


def _file_name(text: str, whole: str) -> str:
    """A valid file name; a hash of `whole`, if it is not empty, distinguishes it from others of the same name."""
    name = _UNSAFE.sub("-", text.lower()).strip("-._") or "model"
    name = re.sub(r"\.\.+", ".", name)
    if whole or len(name) > 80:
        name = f"{name[:60].strip('-._')}-{hashlib.sha256((whole or text).encode()).hexdigest()[:8]}"
    return name
