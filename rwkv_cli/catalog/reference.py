"""References to published models: hf:owner/repo/file, a URL, or an entry of the registry."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

from rwkv_cli.catalog.entries import Entry
from rwkv_cli.catalog.names import (
    DEFAULT_REVISION,
    HUB,
    HubParts,
    identity_of,
    is_relative_file,
    is_repository,
    is_revision,
    is_url,
    split_hub,
    without_git,
    without_secrets,
)
from rwkv_cli.errors import UsageError

HUB_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
_OF_FILES = ("resolve", "blob", "raw", "blame", "edit")
_ABOUT = ("discussions", "settings")
_PAGES = (*_OF_FILES, *_ABOUT, "tree", "commits", "commit")
_NO_OWNERS = (
    "datasets",
    "spaces",
    "docs",
    "blog",
    "papers",
    "collections",
    "api",
    "models",
    "settings",
    "learn",
)
WEIGHT_FILES = (".pth", ".pt", ".bin", ".st", ".gguf", ".safetensors")
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
    return _on_the_hub(split_hub(text), text)


def of_entry(entry: Entry) -> Reference:
    """The reference of an entry of the registry."""
    if entry.url:
        return Reference(entry.name, url=entry.url, entry=entry)
    return Reference(entry.name, entry.repository, entry.file, entry.revision, entry=entry)


def _on_the_hub(parts: HubParts, written: str) -> Reference:
    """A Reference to what the hub has. Raises UsageError for parts that are not valid; `written` is the user's text."""
    shown, (repository, revision, file) = without_secrets(written)[:120], parts
    if not is_repository(repository) or repository.partition("/")[0] in _NO_OWNERS:
        raise UsageError(
            f"{shown!r} does not name a repository of a model: write hf:owner/name or hf:owner/name/file"
        )
    if revision and not is_revision(revision):
        raise UsageError(f"{shown!r} has an invalid revision: {revision[:40]!r}")
    if file and not is_relative_file(file):
        raise UsageError(f"{shown!r} names an invalid file, or one outside the repository")
    revision = revision or DEFAULT_REVISION
    named = [
        *repository.split("/"),
        _stem(file),
        "" if revision == DEFAULT_REVISION else revision,
    ]
    whole = Reference("", repository, file, revision).text if file.count("/") else ""
    return Reference(
        _file_name("--".join(part for part in named if part), whole), repository, file or None, revision
    )


def _from_url(text: str) -> Reference:
    """A file at an address; that of a page of the hub, as copied from a browser, is what the page shows."""
    if not is_url(text):
        raise UsageError(f"{without_secrets(text)[:120]!r} is not a valid URL")
    path = urlsplit(text).path
    prefix = _hub_prefix(text)
    if prefix is not None and (page := _page(path.removeprefix(prefix))):
        return _on_the_hub(page, text)
    if _host(text) in HUB_HOSTS:
        raise UsageError(
            f"{without_secrets(text)[:120]!r} is not the page of a model: write hf:owner/name or hf:owner/name/file"
        )
    return Reference(_file_name(_stem(unquote(path)) or "model", identity_of(text)), url=text)


def _hub_prefix(url: str) -> str | None:
    """What precedes owner/name in the path of an address of the hub, or of HF_ENDPOINT; None for another server."""
    if _host(url) in HUB_HOSTS:
        return ""
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/")
    if not is_url(endpoint) or _host(endpoint) != _host(url):
        return None
    prefix = urlsplit(endpoint).path
    return prefix if urlsplit(url).path.startswith(f"{prefix}/") else None


def _host(url: str) -> str:
    """The host of a valid address, with a port that is not the usual one."""
    parts = urlsplit(url)
    usual = {"http": 80, "https": 443}[parts.scheme]
    return f"{parts.hostname}" + (f":{parts.port}" if parts.port not in (None, usual) else "")


def _page(path: str) -> HubParts | None:
    """What a page of the hub shows: a repository, a folder or a file of it; None for other pages."""
    parts = [unquote(part) for part in path.strip("/").split("/")]
    repository, file = without_git("/".join(parts[:2])), "/".join(parts[4:])
    kind, revision = parts[2:3], parts[3:4]
    if parts[0] in _NO_OWNERS or not is_repository(repository):
        return None
    if not kind:
        return None if repository.endswith(WEIGHT_FILES) else HubParts(repository, "", "")
    if kind[0] not in _PAGES or not (revision or kind[0] in _ABOUT) or (kind[0] in _OF_FILES and not file):
        return None
    if kind[0] in _ABOUT:
        return HubParts(repository, "", "")
    return HubParts(repository, "" if revision[0] == DEFAULT_REVISION else revision[0], file)


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
