"""A model on a server: its files with their sizes, and the checksums that are known of them from several sides."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rwkv_cli.catalog.hub.xet import XetLocation
from rwkv_cli.catalog.reference import Reference
from rwkv_cli.errors import VerificationError

_SHA256 = re.compile(r"[0-9a-f]{64}")
_GIT_SHA1 = re.compile(r"[0-9a-f]{40}")
_SAFE_NAME = re.compile(r"[\w.-]{1,120}", re.ASCII)


@dataclass(frozen=True)
class RemoteFile:
    """One file on a server."""

    name: str  # in its repository
    url: str  # empty for a file that is known from the cache only, because the server is unreachable
    what: str  # for messages
    size: int | None  # bytes
    sha256: str | None = None
    git_sha1: str | None = None  # of a small file that git itself stores
    checked_by: str | None = None  # where the checksum is from, in words
    size_is_certain: bool = True  # False: the size when the server was asked, which may have changed since
    etag: str | None = None  # the hub's name for this content, which its cache uses as a file name
    headers: Mapping[str, str] = field(default_factory=dict)
    xet: XetLocation | None = None  # how to read it from Xet storage, if it is there
    cached: Path | None = None  # the same file in the shared cache of the hub, not verified yet

    @property
    def has_checksum(self) -> bool:
        """Whether more than the size can be checked."""
        return bool(self.sha256 or self.git_sha1)


@dataclass(frozen=True)
class Remote:
    """A model on a server: one file, or the files of a folder."""

    reference: Reference
    files: tuple[RemoteFile, ...]
    commit: str | None  # of the repository
    is_folder: bool

    @property
    def size(self) -> int | None:
        """Bytes of all files, if they are known."""
        sizes = [file.size for file in self.files]
        return None if None in sizes else sum(size for size in sizes if size is not None)


def safe_name(text: str | None) -> str | None:
    """The text if it can be the name of a file, without separators or other surprises; else None."""
    return text if text and text not in (".", "..") and _SAFE_NAME.fullmatch(text) else None


def checksums(etag: str | None) -> tuple[str | None, str | None]:
    """(sha256 of a large file, git hash of a small one): the hub's ETag is one of them, unless it is something else."""
    etag = (etag or "").lower()
    return etag if _SHA256.fullmatch(etag) else None, etag if _GIT_SHA1.fullmatch(etag) else None


def with_claims(file: RemoteFile, reference: Reference, sha256: str | None) -> RemoteFile:
    """The file with the checksum and size that the user and models.toml give.

    Raises VerificationError when they contradict each other or the server.
    """
    entry, changes = reference.entry, dict[str, Any]()
    claims = [
        (sha256, "{sha256}", "the given sha256"),
        (entry.sha256 if entry else None, "models.toml", "the sha256 in models.toml"),
    ]
    for digest, source, checked_by in claims:
        known = changes.get("sha256") or file.sha256
        if digest and known and known != digest:
            raise VerificationError(
                f"{file.what} is not the file that {source} describes: its sha256 is {known[:16]}..., "
                f"not {digest[:16]}..."
            )
        if digest and not changes:
            changes |= {"sha256": digest, "git_sha1": None, "checked_by": checked_by}
    if entry and entry.bytes:
        if file.size not in (None, entry.bytes):
            raise VerificationError(
                f"{file.what} is not the file that models.toml describes: it has {file.size:,} bytes, "
                f"not {entry.bytes:,}"
            )
        changes |= {"size": entry.bytes, "size_is_certain": True}
    return replace(file, **changes)
