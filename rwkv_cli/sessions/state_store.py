"""States by name, in the user's data folder; and locks, so that two programs do not write one state at once.

A name cannot lead out of the folder: it consists of letters, digits, spaces and . - _ only. Names that differ only in
case mean the same state, since on some systems they are the same file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shlex
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rwkv_cli import paths
from rwkv_cli.errors import StateError, UsageError
from rwkv_cli.files.atomic import storage_error
from rwkv_cli.files.lock import HeldError, lock_file, locked
from rwkv_cli.reporting import did_you_mean
from rwkv_cli.sessions import state_file
from rwkv_cli.sessions.state_file import SavedState, is_state_file

SUFFIX = ".safetensors"
LONGEST_NAME = 100

_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.ENOENT}
_LONGEST_NAME_BYTES = 200  # file systems allow no more, with a suffix
# Reserved by Windows, whatever follows the first dot.
_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.IGNORECASE | re.DOTALL)


def folder() -> Path:
    """The folder of named states, which need not exist."""
    return paths.data_folder() / "states"


def resolve(name_or_path: str) -> Path:
    """The file that a user means, whether it exists or not.

    A text with a separator, or that ends in .safetensors, is a path; anything else is a name in the store, unless the
    only state of that name is a file in the current folder. Raises UsageError for an invalid name.
    """
    if is_path(name_or_path):
        return paths.user_path(name_or_path)
    path = _named(name_or_path)
    here = Path(name_or_path)
    return here if not path.exists() and is_state_file(here) else path


def is_path(name_or_path: str) -> bool:
    """Whether this can only be a path."""
    separators = {"/", os.sep, os.altsep or "/"}
    return any(separator in name_or_path for separator in separators) or name_or_path.endswith(SUFFIX)


def find(name_or_path: str) -> Path:
    """The file of an existing state. Raises StateError if there is none, with the names that are near."""
    path = resolve(name_or_path)
    if path.exists():
        if not (path.is_file() or path.is_dir()):  # a pipe would block, perhaps for ever
            raise StateError(f"{path} is not a regular file")
        return path
    if path.parent != folder():
        raise StateError(f"there is no state file {path}")
    hint = did_you_mean(name_or_path, names()) or ": `rwkv state list` lists the states"
    raise StateError(f"unknown state {name_or_path}{hint}")


def names() -> list[str]:
    """The names of all states in the store, sorted."""
    return sorted(_entries(), key=lambda name: (name.casefold(), name))


def _entries() -> dict[str, Path]:
    """The files in the store by name, in NFC; some systems spell the same characters differently."""
    try:
        files = [file for file in folder().iterdir() if file.suffix == SUFFIX]
    except OSError:
        return {}
    return {name_of(file): file for file in files if not _fault(name_of(file))}


def name_of(path: Path) -> str:
    """The name of a file in the store; of a file elsewhere, its own name without the suffix."""
    return unicodedata.normalize("NFC", path.name.removesuffix(SUFFIX))


def prepare(path: Path) -> None:
    """Create the store's folder, readable by its owner only, if that is where this file goes."""
    if path.parent != folder():
        return
    try:
        path.parent.parent.mkdir(parents=True, exist_ok=True)
        path.parent.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise storage_error(path, error) from None


def save(path: Path, saved: SavedState, compact: bool = False) -> None:
    """Write a state under the name of its file. Raises StorageError, StateError."""
    prepare(path)
    saved.name = name_of(path)
    state_file.save(path, saved, compact=compact)


def rename(source: str, target: str) -> Path:
    """Rename a state in the store. Raises StateError if it does not exist, UsageError if the new name is taken."""
    old, taken = _named(source), _named(target)
    new = folder() / f"{_checked(target)}{SUFFIX}"
    if not old.exists():
        find(source)
    with lock(old), contextlib.nullcontext() if taken == old else lock(new):
        if taken != old and taken.exists():  # but only the case of a name may change
            raise UsageError(
                f"a state named {name_of(taken)} exists: choose another name, or delete it with: "
                f"rwkv state rm {shlex.quote(name_of(taken))}"
            )
        try:
            old.rename(new)
        except OSError as error:
            raise storage_error(new, error) from None
    return new


def remove(name_or_path: str) -> Path:
    """Delete a state, by name or path. Raises StateError if it does not exist, or is not a state."""
    path = find(name_or_path)
    if path.parent != folder() and not is_state_file(path):
        raise StateError(f"{path} is not a state file, so it is not deleted")
    with lock(path):
        try:
            path.unlink()
        except OSError as error:
            raise StateError(f"cannot remove {path}: {(error.strerror or str(error)).lower()}") from None
    return path


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold the lock on a state, for as long as this program may write it.

    Raises StateError at once, with the process number, if another program holds it; StorageError if the lock cannot be
    created. A lock ends with its program, however that ends.
    """
    file = lock_file(path)
    holder = file.with_suffix(".pid")
    with contextlib.ExitStack() as held:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(file))
        except HeldError:
            raise StateError(
                f"the state {name_of(path)} is open in another rwkv{_holder(holder)}: close that, or use another name"
            ) from None
        except OSError as error:
            if path.parent == folder() or error.errno not in _READ_ONLY:
                raise storage_error(file, error) from None
            # The data folder is read-only, but the state is elsewhere: it can be saved all the same.
        with contextlib.suppress(OSError):
            holder.write_text(str(os.getpid()), encoding="ascii")
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                holder.unlink(missing_ok=True)


def _holder(file: Path) -> str:
    try:
        number = file.read_text(encoding="ascii")
    except (OSError, ValueError):
        return ""
    return f" (process {int(number)})" if number.isdigit() and len(number) < 12 else ""


def _named(name: str) -> Path:
    """The file of a name: an existing one whose name differs only in case, otherwise a new one."""
    name = _checked(name)
    entries = _entries()
    same = [file for other, file in entries.items() if other.casefold() == name.casefold()]
    return entries.get(name) or (same[0] if same else folder() / f"{name}{SUFFIX}")


def _checked(name: str) -> str:
    name = unicodedata.normalize("NFC", name)
    if fault := _fault(name):
        raise UsageError(f"a state cannot be named {name[:LONGEST_NAME]!r}: {fault}")
    return name


def _fault(name: str) -> str | None:
    """What is wrong with a name; None for a valid one."""
    if not name:
        return "the name is empty"
    if len(name) > LONGEST_NAME or len(name.encode("utf-8", "replace")) > _LONGEST_NAME_BYTES:
        return f"names have at most {LONGEST_NAME} characters, and {_LONGEST_NAME_BYTES} bytes"
    wrong = next((c for c in name if not (c in " ._-" or unicodedata.category(c)[0] in "LMN")), None)
    if wrong is not None:
        return f"names may contain only letters, digits, spaces and . - _ (found {wrong!r})"
    if name[0] in " .-" or unicodedata.category(name[0])[0] == "M" or name[-1] in " .":
        return "names begin with a letter, digit or underscore, and do not end with a space or dot"
    if _DEVICES.fullmatch(name):
        return "reserved by Windows"
    return None
