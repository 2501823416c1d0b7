"""What the cache of the hub holds already, for machines without the network."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import constants

from rwkv_cli.catalog.hub import remote
from rwkv_cli.catalog.hub.remote import Remote, RemoteFile
from rwkv_cli.catalog.reference import Reference
from rwkv_cli.errors import DownloadError

_COMMIT = re.compile(r"[\w.-]{1,120}", re.ASCII)


def find_cached(reference: Reference) -> Remote | None:
    """A model whose files are all in the cache, as another program or an earlier run left them; or None.

    Raises VerificationError when they are not what models.toml says, UsageError where the choice is not clear.
    """
    if reference.repository is None:
        return None
    base = Path(constants.HF_HUB_CACHE) / f"models--{reference.repository.replace('/', '--')}"
    try:
        commit = (base / "refs" / reference.revision).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        commit = reference.revision
    snapshot = base / "snapshots" / commit
    if not _COMMIT.fullmatch(commit) or commit in (".", "..") or not snapshot.is_dir():
        return None
    names: tuple[str, ...] | None = (reference.file,) if reference.file else None
    if names is None:
        there = sorted(
            str(path.relative_to(snapshot).as_posix()) for path in snapshot.rglob("*") if path.is_file()
        )
        try:
            names = remote.model_files(
                reference, there, lambda name: remote.parsed((snapshot / name).read_bytes(), name)
            )
        except (DownloadError, OSError):
            return None
    files = [_cached_file(reference, snapshot, name) for name in names]
    if None in files:
        return None
    found = [file for file in files if file is not None]
    if reference.file:
        found = [remote.claimed(found[0], reference, None)]
    return Remote(reference, tuple(found), commit, is_folder=remote.is_folder(names))


def _cached_file(reference: Reference, snapshot: Path, name: str) -> RemoteFile | None:
    """A file of a snapshot, whose content is named by its checksum."""
    link = snapshot / name
    if not link.is_file():
        return None
    content = link.resolve()
    sha256, git_sha1 = remote.checksums(content.name)
    return RemoteFile(
        name=name,
        url="",
        what=f"{name} of {reference.repository}",
        size=content.stat().st_size,
        sha256=sha256,
        git_sha1=git_sha1,
        checked_by="the checksum that the cache names it by" if sha256 or git_sha1 else None,
        identity=content.name,
    )
