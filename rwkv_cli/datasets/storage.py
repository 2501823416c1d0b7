"""Files of a dataset, on this machine and wherever fsspec reads: what is there, parts of it, and whole files written.

A file that is written is complete or absent at every moment. On this machine it is written beside its place, flushed
and renamed. An object store shows an object only once all of it has arrived; on other file systems it is renamed too.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from rwkv_cli import paths
from rwkv_cli.errors import RwkvError, StorageError, UsageError, literal
from rwkv_cli.files.atomic import replacing, storage_error
from rwkv_cli.files.lock import HeldError, lock_file, locked

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "r2"})
_MAGIC = frozenset("*?[")
_BUFFER = 1 << 20


@dataclass(frozen=True)
class Source:
    """A file of prompts."""

    url: str  # an absolute path, or with a scheme
    size: int  # bytes
    version: str  # which is another one after a change, as far as the file system tells


def is_remote(place: str) -> bool:
    """Whether a place has a scheme, such as s3://bucket/key."""
    return "://" in place and not place.startswith("file://")


def absolute(place: str) -> str:
    """A place that means the same in every process. A path is this machine's, from its root."""
    place = place.removeprefix("file://")
    return place.rstrip("/") if is_remote(place) else str(paths.user_path(place).resolve())


def find(places: Sequence[str], suffixes: Collection[str]) -> list[Source]:
    """The files that are meant by files, folders and globs, each once, in the order of their names.

    A folder means all files below it with one of `suffixes`, but those with a name that begins with . or _, as in Spark
    and Ray. Raises UsageError where there is none.
    """
    found = dict[str, Source]()
    for place in places:
        with _reaching(place):
            here = [*_found(absolute(place), suffixes)]
        if not here:
            raise UsageError(f"there is no file of prompts at {literal(place)}")
        found |= {each.url: each for each in here}
    return [found[url] for url in sorted(found)]


def _found(place: str, suffixes: Collection[str]) -> Iterator[Source]:
    system, path = _system(place)
    system.invalidate_cache()
    if system.isfile(path):
        infos = [system.info(path)]
    elif system.isdir(path):
        below = system.find(path, detail=True).values()
        infos = [each for each in below if _is_data(each["name"][len(path) :], suffixes)]
    elif _MAGIC & {*path}:
        files = [each for each in system.glob(path, detail=True).values() if each["type"] == "file"]
        infos = [each for each in files if _is_data(each["name"].rsplit("/", 1)[-1], ("",))]
    else:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    for info in infos:
        url = system.unstrip_protocol(info["name"]) if is_remote(place) else info["name"]
        yield Source(url, info["size"], _version(info))


def _is_data(relative: str, suffixes: Collection[str]) -> bool:
    parts = relative.strip("/").split("/")
    return not any(part.startswith((".", "_")) for part in parts) and parts[-1].lower().endswith((*suffixes,))


def _version(info: dict[str, Any]) -> str:
    names = ("ETag", "etag", "md5Hash", "content_md5", "mtime", "LastModified", "last_modified", "updated")
    return str(next((info[name] for name in names if info.get(name)), ""))


@contextmanager
def opened(url: str) -> Iterator[BinaryIO]:
    """A file, opened to read. Raises UsageError if it cannot be read."""
    with _reaching(url):
        system, path = _system(url)
        with system.open(path, "rb") as file:
            # A file of fsspec has no limit to the length of a line.
            yield io.BufferedReader(file, _BUFFER) if is_remote(url) else file


def read_range(url: str, begin: int | None = None, end: int | None = None) -> bytes:
    """The bytes of a file from `begin` up to `end`, or all. Raises UsageError if they cannot be read."""
    with _reaching(url):
        system, path = _system(url)
        data: bytes = system.cat_file(path, start=begin, end=end)
        return data


class OutputFolder:
    """A folder that is written to, which need not exist."""

    def __init__(self, place: str) -> None:
        self.url = absolute(place)
        self._is_remote = is_remote(self.url)

    def names(self) -> set[str]:
        """The names of all files in it. Raises UsageError if they cannot be listed."""
        with _reaching(self.url):
            system, path = _system(self.url)
            system.invalidate_cache()
            if not system.exists(path):
                return set()
            if not system.isdir(path):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            return {each["name"].rsplit("/", 1)[-1] for each in system.ls(path, detail=True)}

    def has(self, name: str) -> bool:
        """Whether it has a file. Raises UsageError where that cannot be told."""
        with _reaching(self.url):
            system, path = _system(f"{self.url}/{name}")
            system.invalidate_cache()
            return bool(system.exists(path))

    def read(self, name: str) -> bytes:
        """What is in a file. Raises UsageError if it cannot be read."""
        return read_range(f"{self.url}/{name}")

    def write(self, name: str, data: bytes) -> None:
        """Write a whole file, in place of one of this name. Raises StorageError."""
        if self._is_remote:
            self._put(f"{self.url}/{name}", data)
            return
        path = Path(self.url)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(path, error) from None
        with replacing(path / name) as temporary:
            temporary.write_bytes(data)

    @staticmethod
    def _put(url: str, data: bytes) -> None:
        try:
            system, path = _system(url)
            if url.split("://")[0] in _OBJECT_STORES:
                system.pipe_file(path, data)
                return
            parent, name = path.rsplit("/", 1)
            system.makedirs(parent, exist_ok=True)
            beside = f"{parent}/.{name}-{os.urandom(6).hex()}"
            system.pipe_file(beside, data)
            system.mv(beside, path)
        except RwkvError:
            raise
        except Exception as error:
            raise StorageError(f"cannot write {literal(url)}: {_reason(error)}") from None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other programs of this machine from writing to it. Raises UsageError while another one does.

        Nothing is locked elsewhere: there, a second program would do the same work, and write the same files.
        """
        if self._is_remote:
            yield
            return
        lock = lock_file(Path(self.url))
        with contextlib.ExitStack() as held:
            try:
                lock.parent.mkdir(parents=True, exist_ok=True)
                held.enter_context(locked(lock))
            except HeldError:
                raise UsageError(
                    f"another rwkv is writing to {literal(self.url)}: wait for it, or end it"
                ) from None
            except OSError as error:
                raise storage_error(lock, error) from None
            yield


def _system(url: str) -> tuple[AbstractFileSystem, str]:
    """The file system of a place, and the path there. Raises UsageError where a package is missing."""
    from fsspec import filesystem
    from fsspec.core import url_to_fs

    if not is_remote(url):
        return filesystem("file"), url
    try:
        system, path = url_to_fs(url)
    except ImportError as error:
        raise UsageError(
            f"cannot read {literal(url)}: a package is missing ({literal(str(error))})"
        ) from None
    except ValueError as error:  # an unknown protocol
        raise UsageError(f"cannot read {literal(url)}: {literal(str(error))}") from None
    return system, path


@contextmanager
def _reaching(place: str) -> Iterator[None]:
    """Every failure of a file system becomes a UsageError."""
    try:
        yield
    except (RwkvError, GeneratorExit):
        raise
    except Exception as error:  # libraries of object stores have errors of their own
        raise UsageError(f"cannot read {literal(place)}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "no space left on the disk"
    if isinstance(error, OSError) and error.strerror:
        return literal(error.strerror.lower())
    if isinstance(error, FileNotFoundError):
        return "it does not exist"
    return literal(" ".join(str(error).split()) or type(error).__name__)
