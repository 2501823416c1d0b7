"""The cache that all programs for the hub share, below HF_HOME: what it holds, and how a verified file gets into it.

All of it goes through the public API of huggingface_hub, except for one documented fact that the API has no call for:
contents are in the folder `blobs` of a repository, named by their ETag.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import (
    CachedFileInfo,
    CachedRepoInfo,
    HFCacheInfo,
    constants,
    hf_hub_download,
    scan_cache_dir,
)
from huggingface_hub.errors import CacheNotFound

from rwkv_cli.errors import DownloadError
from rwkv_cli.files.atomic import replacing

_LONGEST_COMMIT = 200  # bytes of the file of a branch, which names one


@dataclass(frozen=True)
class CachedFile:
    """A file of one revision of a repository in the cache."""

    name: str  # in the repository
    path: Path
    commit: str
    refs: frozenset[str]  # branches and tags that were at this commit
    etag: str | None  # the hub's name for this content; None for a copy, where the file system has no links


def files_of(repository: str) -> list[CachedFile]:
    """What the cache holds of a repository. Damaged parts of the cache are left out; no errors."""
    scanned = _scan()
    found = list(_files(scanned, repository)) if scanned else []
    return found or list(_sound_files(repository))


def find_file(files: list[CachedFile], name: str, commit: str | None, etag: str | None) -> Path | None:
    """A file by its name and content, at whatever commit; where an ETag is unknown, at the same commit."""
    for file in files:
        is_same = file.etag == etag if file.etag and etag else file.commit == commit
        if file.name == name and is_same:
            return file.path
    return None


def remove_damaged(path: Path) -> None:
    """Remove a file whose content is wrong, under all its names, so that no program uses it. Raises OSError."""
    scanned, content = _scan(), path.resolve()
    if scanned is None:
        return
    same = [
        file
        for repository in scanned.repos
        for file in _file_infos(repository)
        if file.file_path.resolve() == content
    ]
    scanned.delete_files(*same).execute()


def adopt(content: Path, repository: str, name: str, revision: str, commit: str, etag: str) -> Path:
    """Move a verified file into the cache: its path there. One that links into the cache already gets its name only.

    Its content is put where a download would have put it; huggingface_hub then finds it and adds the rest: the link (or
    a copy, where there are no links) and the reference from the branch. Raises DownloadError, OSError and the
    errors of huggingface_hub, and then leaves the file where it was.
    """
    planned = hf_hub_download(repository, name, revision=revision, dry_run=True)
    if planned.commit_hash != commit:  # the branch has moved on since
        revision = commit
        planned = hf_hub_download(repository, name, revision=revision, dry_run=True)
    snapshots = Path(planned.local_path).parents[name.count("/") + 1]
    blob = snapshots.with_name("blobs") / etag
    is_new = not content.is_symlink()
    if is_new:
        blob.parent.mkdir(parents=True, exist_ok=True)
        _move(content, blob)
    try:
        if hf_hub_download(repository, name, revision=revision, dry_run=True).will_download:
            raise DownloadError(f"{name} has changed on the hub")  # what would come now is not verified
        return Path(hf_hub_download(repository, name, revision=revision))
    except BaseException:
        if is_new:
            _move(blob, content)
        raise


def _scan() -> HFCacheInfo | None:
    try:
        return scan_cache_dir(constants.HF_HUB_CACHE)
    except (CacheNotFound, ValueError, OSError):  # there is none, it is a file, or it cannot be read
        return None


def _files(scanned: HFCacheInfo, repository: str) -> Iterator[CachedFile]:
    for cached in scanned.repos:
        if cached.repo_id != repository or cached.repo_type != "model":
            continue
        for revision in cached.revisions:
            for file in revision.files:
                yield CachedFile(
                    name=file.file_path.relative_to(revision.snapshot_path).as_posix(),
                    path=file.file_path,
                    commit=revision.commit_hash,
                    refs=revision.refs,
                    etag=file.blob_path.name if file.blob_path != file.file_path else None,
                )


def _sound_files(repository: str) -> Iterator[CachedFile]:
    """The files that are whole in a repository that huggingface_hub leaves out as damaged.

    It does so for a single broken link, or a branch without files, as an interrupted download or a copy leaves them.
    """
    folder = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    with suppress(OSError, ValueError):
        refs = {
            file.relative_to(folder / "refs").as_posix(): file.read_text(encoding="utf-8")
            for file in (folder / "refs").rglob("*")
            if file.is_file() and file.stat().st_size <= _LONGEST_COMMIT
        }
        for path in sorted((folder / "snapshots").rglob("*")):
            commit, *parts = path.relative_to(folder / "snapshots").parts
            if not parts or not path.is_file():
                continue
            yield CachedFile(
                name="/".join(parts),
                path=path,
                commit=commit,
                refs=frozenset(name for name, at in refs.items() if at == commit),
                etag=path.readlink().name if path.is_symlink() else None,
            )


def _file_infos(repository: CachedRepoInfo) -> Iterator[CachedFileInfo]:
    for revision in repository.revisions:
        yield from revision.files


def _move(source: Path, target: Path) -> None:
    """Rename a file, or copy it to another disk; the target appears whole or not at all."""
    try:
        source.replace(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with replacing(target) as temporary:
            shutil.copyfile(source, temporary)
        source.unlink()
