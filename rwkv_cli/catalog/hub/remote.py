"""A model on a server: its files with their sizes, and what is claimed of them from several sides."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
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
    commit: str | None = None  # of the repository
    folder: str | None = None  # in the repository, that holds the files; "" is its top; None for one file

    @property
    def is_folder(self) -> bool:
        """Whether the model is a folder, rather than one file."""
        return self.folder is not None

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


@dataclass(frozen=True)
class Claim:
    """What somebody says of a file: it has to be true before the file is used."""

    source: str  # who says so, for messages
    checked_by: str  # the checksum in words, once it is checked
    sha256: str | None = None
    size: int | None = None  # bytes


def claims_of(reference: Reference, sha256: str | None) -> list[Claim]:
    """What the user says of the only file of a model, and then what models.toml does."""
    entry, claims = reference.entry, []
    if sha256:
        claims.append(Claim("{sha256}", "the given sha256", sha256))
    if entry:
        claims.append(Claim("models.toml", "the sha256 in models.toml", entry.sha256, entry.bytes))
    return claims


def with_claims(file: RemoteFile, claims: Sequence[Claim]) -> RemoteFile:
    """The file with the checksum and size that are claimed; the first checksum is the one that it is checked by.

    Raises VerificationError when the claims contradict each other or the server.
    """
    changes = dict[str, Any]()
    for claim in claims:
        known, digest = changes.get("sha256") or file.sha256, claim.sha256
        if digest and known and known != digest:
            raise VerificationError(
                f"{file.what} is not the file that {claim.source} describes: its sha256 is {known[:16]}..., "
                f"not {digest[:16]}..."
            )
        if digest and "sha256" not in changes:
            changes |= {"sha256": digest, "git_sha1": None, "checked_by": claim.checked_by}
        if claim.size and file.size not in (None, claim.size):
            raise VerificationError(
                f"{file.what} is not the file that {claim.source} describes: it has {file.size:,} bytes, "
                f"not {claim.size:,}"
            )
        if claim.size:
            changes |= {"size": claim.size, "size_is_certain": True}
    return replace(file, **changes)
