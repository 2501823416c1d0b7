"""From a description to verified files: fetched into a folder of ours, compared with their checksums, then used.

Files of the hub go to a folder below HF_ASSETS_CACHE, which huggingface_hub provides for what other libraries keep; it
is on the same disk as its cache. Files from other addresses go to `downloads` in the cache folder of rwkv, as all do
where that of the hub cannot be written to, since it is another user's or on a disk that is read only. What the
shared cache of the hub has already is used where it is, once it is verified, and stays there.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import httpx2
from huggingface_hub import cached_assets_path, constants

from rwkv_cli import paths
from rwkv_cli.catalog.hub import cache
from rwkv_cli.catalog.hub.failures import Note, reason_of
from rwkv_cli.catalog.hub.remote import Remote, RemoteFile, safe_name
from rwkv_cli.catalog.hub.transfer import Progress, Transfer
from rwkv_cli.catalog.names import identity_of
from rwkv_cli.errors import DownloadError, StorageError, VerificationError
from rwkv_cli.files.atomic import storage_error
from rwkv_cli.files.lock import HeldError, locked
from rwkv_cli.reporting import format_size

PART = ".rwkv-part"
_BLOCK = 1 << 22  # bytes that are hashed at a time


@dataclass(frozen=True)
class Fetched:
    """A model whose files are on this machine and verified."""

    remote: Remote
    path: Path  # of its file or folder
    files: tuple[Path, ...]
    downloaded: int  # bytes, this time
    is_ours: bool  # in our folder, where no other program needs it; otherwise in the shared cache
    mirror: str | None = None  # that it came from, instead of the place where it is published

    @property
    def checked_by(self) -> str | None:
        """What the files were verified with, in words; None if there was nothing but their size."""
        checks = {file.checked_by for file in self.remote.files}
        return None if None in checks else " and ".join(sorted(check for check in checks if check))

    def is_present(self) -> bool:
        """Whether all of it is still where it was fetched to."""
        return all(file.is_file() for file in self.files)


def fetch(remote: Remote, progress: Progress, note: Note) -> Fetched:
    """Bring all files of a model here and verify them. Raises DownloadError, VerificationError, StorageError."""
    cached = {
        file.name: file.cached for file in remote.files if file.cached and _is_sound_in_cache(file, note)
    }
    folders = {path.parent for path in cached.values()}
    if len(cached) == len(remote.files) and len(folders) == 1:
        files = tuple(cached[file.name] for file in remote.files)
        return Fetched(remote, files[0].parent if remote.is_folder else files[0], files, 0, is_ours=False)
    folder, done, downloaded = _folder(remote), 0, 0
    with _locked(folder):
        for file in remote.files:

            def advance(present: int, total: int | None, before: int = done) -> None:
                progress(before + present, remote.size if len(remote.files) > 1 else total)

            target = folder / file.name
            if file.name in cached:
                _refer(target, cached[file.name])
            else:
                downloaded += _fetch_file(file, target, advance, note)
            done += file.size or 0
    files = tuple(folder / file.name for file in remote.files)
    path = files[0] if remote.folder is None else folder / remote.folder
    return Fetched(remote, path, files, downloaded, is_ours=True)


def keep(fetched: Fetched, note: Note) -> Fetched:
    """Move the files into the cache of the hub, for other programs and later conversions: where they are then.

    Where that fails, or for files that are not of the hub, they stay in our folder.
    """
    remote, repository = fetched.remote, fetched.remote.reference.repository
    if not fetched.is_ours or repository is None:
        return fetched
    moved = []
    for file, path in zip(remote.files, fetched.files, strict=True):
        if remote.commit is None or file.etag is None:
            note(f"{file.what} stays in {path.parent}: the server does not say what the cache needs to know")
            return fetched
        try:
            adopted = cache.adopt(
                path, repository, file.name, remote.reference.revision, remote.commit, file.etag
            )
            _refer(path, adopted)  # for the case that a later file has to stay
            moved.append(adopted)
        except (OSError, httpx2.HTTPError, DownloadError, StorageError) as error:
            note(
                f"{file.what} stays in {path.parent}: it cannot be put into the cache of the hub ({reason_of(error)})"
            )
            return fetched
    _remove(fetched)
    return replace(
        fetched,
        path=moved[0].parent if remote.is_folder else moved[0],
        files=tuple(moved),
        is_ours=False,
    )


def discard(fetched: Fetched) -> None:
    """Remove what is in our folder; what another program has fetched stays in the cache of the hub."""
    if fetched.is_ours:
        _remove(fetched)


def forget(remote: Remote) -> None:
    """Drop what has arrived of a single file that is not needed any more, unless another program is fetching it."""
    file = remote.files[0]
    with contextlib.suppress(OSError, StorageError, HeldError):
        folder = _folder(remote)
        target = folder / file.name
        with locked(_lock_of(folder)):
            Transfer(file, _part(target), lambda *_: None, lambda _: None).forget()
            _unlink(target, file)


def missing_bytes(remote: Remote) -> int:
    """How much is still to be downloaded, as far as it is known. Raises StorageError."""
    total = 0
    for file in remote.files:
        if file.cached:
            continue
        target = _folder(remote) / file.name
        if not target.is_file():
            part = _part(target)
            total += max(0, (file.size or 0) - (part.stat().st_size if part.is_file() else 0))
    return total


def folder_of(remote: Remote) -> Path:
    """A folder on the disk that downloads of this model go to; it need not exist."""
    assets = Path(constants.HF_ASSETS_CACHE).expanduser().resolve()
    return assets if _folder(remote).is_relative_to(assets) else paths.cache_folder()


def require_space(folder: Path, needed: int, what: str) -> None:
    """Refuse in advance what does not fit on the disk; `needed` is in bytes. Raises StorageError."""
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    try:
        free = shutil.disk_usage(existing).free
    except OSError:
        return
    if free < needed:
        raise StorageError(
            f"there is not enough space on the disk of {folder} for {what}: "
            f"it needs {format_size(needed)}, and {format_size(free)} are free{paths.hint(folder)}"
        )


# ------------------------------------------------------------------------------------------ our folder


def unfinished_folders(cache: Path) -> list[Path]:
    """Where downloads grow: that of the hub, unless it is closed to this user, and the one in our cache."""
    folders = (Path(constants.HF_ASSETS_CACHE) / "rwkv", cache / "downloads")
    return [folder for folder in folders if os.access(folder, os.R_OK | os.X_OK)]


def _folder(remote: Remote) -> Path:
    """The folder of one model. That of a single file is named by its content, so that other commits do not matter."""
    first = remote.files[0]
    key = hashlib.sha256(identity_of(first.url).encode()).hexdigest()[:16]
    if remote.reference.repository is None:
        return _own_folder(key)
    name = safe_name(remote.commit if remote.is_folder else first.etag) or key
    with contextlib.suppress(OSError, ValueError):  # ValueError: there is a file in place of a folder
        folder = cached_assets_path(
            "rwkv", remote.reference.repository, name, assets_dir=constants.HF_ASSETS_CACHE
        )
        if all(os.access(each, os.W_OK | os.X_OK) for each in (folder, folder.parent)):
            return folder
    return _own_folder(name)


def _own_folder(name: str) -> Path:
    """A folder for files that are not of the hub, or that cannot be written beside its cache. Raises StorageError."""
    return paths.cache_folder() / "downloads" / name


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """While files are fetched into a folder: a second program waits, and then finds them. Raises StorageError."""
    with contextlib.ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(_lock_of(folder), wait=lambda: None))
        except OSError as error:
            raise _unwritable(folder, error) from None
        yield


def _unwritable(folder: Path, error: OSError) -> StorageError:
    """The error for a folder of downloads that cannot be made, naming the variable that moves it."""
    own = paths.cache_folder()
    if not folder.is_relative_to(own) or error.errno == errno.ENOSPC:
        return storage_error(folder, error)
    reason = (error.strerror or str(error)).lower()
    return StorageError(
        f"downloads cannot be written to {own} ({reason}): set RWKV_CACHE_DIR to a folder that you may write to"
    )


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def _part(target: Path) -> Path:
    """Where a file grows until it is whole and verified."""
    return target.with_name(target.name + PART)


def _refer(target: Path, cached: Path) -> None:
    """Make a file of the cache part of a folder whose other files are not in it. Raises StorageError."""
    try:
        target.unlink(missing_ok=True)
        try:
            target.symlink_to(cached.absolute())
        except OSError:  # a file system without links
            shutil.copyfile(cached, target)
    except OSError as error:
        raise storage_error(target, error) from None


def _remove(fetched: Fetched) -> None:
    """Remove the files and the folders that are empty then."""
    for file, path in zip(fetched.remote.files, fetched.files, strict=True):
        _unlink(path, file)


def _unlink(path: Path, file: RemoteFile) -> None:
    """Remove what is here of a file, and the folders that are empty then."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
        for folder in path.parents[: 3 + file.name.count("/")]:  # of the model, of the repository, of rwkv
            folder.rmdir()


# ------------------------------------------------------------------------------------------ one file


def _fetch_file(file: RemoteFile, target: Path, progress: Progress, note: Note) -> int:
    """Bring one file here, unless it is here already: the bytes that were downloaded."""
    if not file.url:
        raise DownloadError(f"cannot download {file.what} again: the server cannot be reached")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if _is_sound(file, target, note, Path.unlink):
            return 0
        return _download(file, target, progress, note)
    except OSError as error:
        raise storage_error(target, error, file.size) from None


def _download(file: RemoteFile, target: Path, progress: Progress, note: Note) -> int:
    """Fetch a file, verify it and only then give it its name: the bytes that were downloaded."""
    for again in (False, True):
        transfer = Transfer(file, _part(target), progress, note)
        before = transfer.present()
        transfer.run()
        fault = _fault(file, transfer.part, transfer.size)
        if fault is None:
            transfer.finish(target)
            return target.stat().st_size - (0 if again else before)
        transfer.forget()
        was_one_piece = not (transfer.resumed or before)
        if again or was_one_piece:
            break
        note(
            f"{file.what} was assembled from mismatched pieces: {fault}; downloading it again from the start"
        )
    raise VerificationError(f"{file.what} is not the right file: {fault}; nothing of it was kept")


def _is_sound_in_cache(file: RemoteFile, note: Note) -> bool:
    """Whether the copy in the shared cache is the right one; if it contradicts its own name, it is removed there."""
    assert file.cached is not None
    # A checksum of the user's alone says nothing against a copy that other programs use.
    contradicts_itself = (file.etag or "").lower() in (file.sha256, file.git_sha1)
    remove = cache.remove_damaged if contradicts_itself else lambda _: None
    try:
        return _is_sound(file, file.cached, note, remove)
    except OSError as error:  # another user's, perhaps
        reason = (error.strerror or str(error)).lower()
        note(f"{file.what} in the cache can be neither used nor removed ({reason}): downloading it")
        return False


def _is_sound(file: RemoteFile, path: Path, note: Note, remove: Callable[[Path], None]) -> bool:
    """Whether a file that is here already is the right one; `remove` is called if not. Raises OSError."""
    if not path.is_file() or not (file.has_checksum or file.size is not None):
        return False
    fault = _fault(file, path, file.size)
    if fault is None:
        return True
    note(f"{file.what} in the cache is damaged ({fault}): downloading it again")
    remove(path)
    return False


def _fault(file: RemoteFile, path: Path, size: int | None) -> str | None:
    """What is wrong with the content at `path`, in words; None if nothing is."""
    found = path.stat().st_size
    if size is not None and found != size:
        return f"it has {found:,} bytes, not {size:,}"
    wanted = file.sha256 or file.git_sha1
    if wanted is None:
        return None
    digests = [hashlib.sha256()]
    if not file.sha256:  # git hashes a small header with it; mirrors of the hub need not
        headers = (b"blob %d\0" % found, b"")
        digests = [hashlib.sha1(header, usedforsecurity=False) for header in headers]
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            for digest in digests:
                digest.update(block)
    if wanted in [digest.hexdigest() for digest in digests]:
        return None
    kind = "sha256" if file.sha256 else "git hash"
    return f"its {kind} is {digests[0].hexdigest()[:16]}..., not {wanted[:16]}..."
