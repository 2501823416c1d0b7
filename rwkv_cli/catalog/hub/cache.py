"""Where downloads lie, and how a file gets there: fetched, checked, and only then under its name.

Files of the hub go where all programs for it keep them, below HF_HOME: contents under `blobs`, named by their checksum,
and links to them under `snapshots`, by commit and name. What another program has fetched is used, once it is checked.
Files from other addresses go to `downloads` in the cache folder of rwkv. A mark beside a file says that it was fetched
here for a conversion, and may be removed after it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from huggingface_hub import constants

from rwkv_cli import paths
from rwkv_cli.catalog.hub.remote import Remote, RemoteFile
from rwkv_cli.catalog.hub.transfer import Progress, Transfer
from rwkv_cli.errors import StorageError, VerificationError
from rwkv_cli.files.atomic import storage_error

_PART = ".rwkv-part"
_MARK = ".rwkv-fetched"
_BLOCK = 1 << 22

Note = Callable[[str], None]


@dataclass(frozen=True)
class _Place:
    """Where one file goes."""

    content: Path
    link: Path | None  # the name under which programs find the content
    lock: Path

    @property
    def mark(self) -> Path:
        return self.content.with_name(self.content.name + _MARK)


@dataclass(frozen=True)
class Fetched:
    """A model that is here and checked."""

    path: Path  # of its file or folder
    places: tuple[_Place, ...]
    checked_by: str | None  # in words; None if there was nothing to check with but the size
    downloaded: int  # bytes, of this time

    def is_here(self) -> bool:
        """Whether all of it is still where it was fetched to."""
        return all(place.content.is_file() for place in self.places)


def missing_bytes(remote: Remote) -> int:
    """How much has still to come, as far as it is known."""
    total = 0
    for file in remote.files:
        place = _place(remote, file)
        if not place.content.is_file():
            part = place.content.with_name(place.content.name + _PART)
            total += max(0, (file.size or 0) - (part.stat().st_size if part.is_file() else 0))
    return total


def folder_of(remote: Remote) -> Path:
    """The folder that downloads of this model go to."""
    return _place(remote, remote.files[0]).content.parent


def fetch(remote: Remote, progress: Progress, note: Note) -> Fetched:
    """Bring all files of a model here and check them. Raises DownloadError, VerificationError, StorageError."""
    places, done, downloaded = [], 0, 0
    for file in remote.files:
        place = _place(remote, file)

        def advance(here: int, total: int | None, before: int = done) -> None:
            progress(before + here, remote.size if len(remote.files) > 1 else total)

        downloaded += _fetch_file(file, place, advance, note)
        _link(place)
        places.append(place)
        done += file.size or 0
    if remote.commit and remote.reference.repository:
        _remember_revision(remote)
    first = places[0].link or places[0].content
    checks = {file.checked_by for file in remote.files}
    return Fetched(
        path=first.parent if remote.is_folder else first,
        places=tuple(places),
        checked_by=None if None in checks else " and ".join(sorted(check for check in checks if check)),
        downloaded=downloaded,
    )


def keep(fetched: Fetched) -> None:
    """Leave the files where they are, for other programs and later conversions."""
    for place in fetched.places:
        with contextlib.suppress(OSError):
            place.mark.unlink(missing_ok=True)


def discard(fetched: Fetched) -> None:
    """Remove what was fetched here for a conversion; what another program had fetched stays."""
    for place in fetched.places:
        if place.mark.exists():
            with contextlib.suppress(OSError):
                if place.link:
                    place.link.unlink(missing_ok=True)
                place.content.unlink(missing_ok=True)
                place.mark.unlink(missing_ok=True)
            _prune(place)


def _prune(place: _Place) -> None:
    """Remove folders that are empty now, and a repository's whole folder when it has no content any more."""
    for start in (place.link.parent if place.link else None, place.content.parent):
        with contextlib.suppress(OSError):
            if start:
                start.rmdir()
    if place.link and not place.content.parent.exists():
        shutil.rmtree(place.content.parent.parent, ignore_errors=True)


def _place(remote: Remote, file: RemoteFile) -> _Place:
    reference = remote.reference
    if reference.repository is None:
        key = hashlib.sha256(file.url.encode()).hexdigest()[:16]
        content = paths.cache_folder() / "downloads" / key / file.name
        return _Place(content, None, content.parent.with_name(f"{key}.lock"))
    cache = Path(constants.HF_HUB_CACHE)
    repository = f"models--{reference.repository.replace('/', '--')}"
    identity = file.identity or hashlib.sha256(file.url.encode()).hexdigest()[:40]
    link = (
        cache
        / repository
        / "snapshots"
        / (remote.commit or reference.revision.replace("/", "--"))
        / file.name
    )
    return _Place(
        cache / repository / "blobs" / identity, link, cache / ".locks" / repository / f"{identity}.lock"
    )


def _fetch_file(file: RemoteFile, place: _Place, progress: Progress, note: Note) -> int:
    """Bring one file here, unless it is here already: the bytes that came."""
    try:
        for folder in (place.content.parent, place.lock.parent):
            folder.mkdir(parents=True, exist_ok=True)
        with FileLock(place.lock):
            return _fetch_locked(file, place, progress, note)
    except OSError as error:
        raise storage_error(place.content, error, file.size) from None


def _fetch_locked(file: RemoteFile, place: _Place, progress: Progress, note: Note) -> int:
    if place.content.is_file() and _may_be_used(file, place, note):
        return 0
    for again in (False, True):
        transfer = _transfer(file, place, progress, note)
        before = transfer.present()
        place.mark.touch()
        transfer.run()
        fault = _fault(file, transfer.part, transfer.size)
        if fault is None:
            transfer.finish(place.content)
            return place.content.stat().st_size - (0 if again else before)
        transfer.forget()
        was_one_piece = not (transfer.resumed or before)
        if again or was_one_piece:
            break
        note(f"{file.what} was put together wrongly: {fault}; downloading it again, from the beginning")
    with contextlib.suppress(OSError):
        place.mark.unlink()
    raise VerificationError(f"{file.what} is not the right file: {fault}; nothing of it was kept")


def _may_be_used(file: RemoteFile, place: _Place, note: Note) -> bool:
    """Whether the content that is here already is the right one; it is removed if it is not."""
    if not (file.sha256 or file.git_sha1) and file.size is None:
        return False
    fault = _fault(file, place.content, file.size)
    if fault is None:
        return True
    note(f"{file.what} in the cache is damaged ({fault}): downloading it again")
    place.content.unlink()
    return False


def _transfer(file: RemoteFile, place: _Place, progress: Progress, note: Note) -> Transfer:
    return Transfer(
        file.url,
        place.content.with_name(place.content.name + _PART),
        file.what,
        file.size,
        bool(file.sha256 or file.git_sha1),
        file.size_is_certain,
        file.headers,
        progress,
        note,
    )


def _fault(file: RemoteFile, path: Path, size: int | None) -> str | None:
    """What is wrong with a file that was fetched, in words; None if nothing is."""
    found = path.stat().st_size
    if size is not None and found != size:
        return f"it has {found:,} bytes, not {size:,}"
    wanted = file.sha256 or file.git_sha1
    if wanted is None:
        return None
    digests = [hashlib.sha256()]
    if not file.sha256:  # git hashes a small header with it; mirrors of the hub need not
        begins = (b"blob %d\0" % found, b"")
        digests = [hashlib.sha1(begin, usedforsecurity=False) for begin in begins]
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            for digest in digests:
                digest.update(block)
    if wanted in [digest.hexdigest() for digest in digests]:
        return None
    kind = "sha256" if file.sha256 else "git hash"
    return f"its {kind} is {digests[0].hexdigest()[:16]}..., not {wanted[:16]}..."


def _link(place: _Place) -> None:
    """Make the content known under its name: a link, or a copy where the system has no links."""
    if place.link is None or (place.link.is_file() and place.link.resolve() == place.content.resolve()):
        return
    try:
        place.link.parent.mkdir(parents=True, exist_ok=True)
        place.link.unlink(missing_ok=True)
        try:
            place.link.symlink_to(os.path.relpath(place.content, place.link.parent))
        except OSError:
            shutil.copyfile(place.content, place.link)
    except OSError as error:
        raise storage_error(place.link, error) from None


def _remember_revision(remote: Remote) -> None:
    """Which commit a branch was at, for programs that work without the network."""
    assert remote.reference.repository is not None
    if not remote.commit or remote.reference.revision == remote.commit:
        return
    repository = f"models--{remote.reference.repository.replace('/', '--')}"
    file = Path(constants.HF_HUB_CACHE) / repository / "refs" / remote.reference.revision
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(remote.commit, encoding="utf-8")


def require_room(folder: Path, needed: int, what: str) -> None:
    """Refuse before the work what has no room on the disk. Raises StorageError."""
    from rwkv_cli.reporting import format_size

    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    try:
        free = shutil.disk_usage(existing).free
    except OSError:
        return
    if free < needed:
        raise StorageError(
            f"there is not enough room on the disk of {folder} for {what}: "
            f"it needs {format_size(needed)}, and {format_size(free)} are free"
        )
