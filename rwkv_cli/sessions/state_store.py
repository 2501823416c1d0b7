"""States by name, in a folder of the user's; and locks, so that two programs do not write one state at once.

No name leaves the folder: it has letters, digits, spaces, and dots, dashes and underscores inside. Names that differ
only in case mean the same state, as they do on some systems anyway.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import os
import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rwkv_cli import paths
from rwkv_cli.errors import StateError, UsageError
from rwkv_cli.files.atomic import storage_error
from rwkv_cli.sessions import state_file
from rwkv_cli.sessions.state_file import SavedState, is_state_file

SUFFIX = ".safetensors"
LONGEST_NAME = 100

_LONGEST_NAME_BYTES = 200  # with a suffix, what file systems allow
# Windows has devices of these names, whatever follows the first dot.
_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.IGNORECASE | re.DOTALL)


def folder() -> Path:
    """Where named states are kept."""
    return paths.data_folder() / "states"


def resolve(name_or_path: str) -> Path:
    """The file that a user means, whether it is there or not.

    What has a separator or ends in .safetensors is a path; anything else is a name in the store, unless only a state
    file in the current folder is called that. Raises UsageError for a name that cannot be one.
    """
    if is_path(name_or_path):
        try:
            return Path(name_or_path).expanduser()
        except RuntimeError as error:  # "~nobody/..."
            raise UsageError(f"{name_or_path}: {str(error).lower()}") from None
    path = _named(name_or_path)
    here = Path(name_or_path)
    return here if not path.exists() and is_state_file(here) else path


def is_path(name_or_path: str) -> bool:
    """Whether this can only be a path."""
    separators = {"/", os.sep, os.altsep or "/"}
    return any(separator in name_or_path for separator in separators) or name_or_path.endswith(SUFFIX)


def find(name_or_path: str) -> Path:
    """The file of a state that is there. Raises StateError where none is, with a name that is near."""
    path = resolve(name_or_path)
    if path.exists():
        if not (path.is_file() or path.is_dir()):  # nobody may wait for what a pipe never says
            raise StateError(f"{path} is no regular file")
        return path
    if path.parent != folder():
        raise StateError(f"there is no state file {path}")
    near = difflib.get_close_matches(name_or_path.casefold(), names(), n=1)
    hint = f"; did you mean {near[0]}?" if near else ": rwkv state list shows those that there are"
    raise StateError(f"there is no state named {name_or_path}{hint}")


def names() -> list[str]:
    """The names of all states in the store, sorted."""
    return sorted(_entries(), key=lambda name: (name.casefold(), name))


def _entries() -> dict[str, Path]:
    """The files in the store by name; on some systems a file's name is another spelling of the same characters."""
    try:
        files = [file for file in folder().iterdir() if file.suffix == SUFFIX]
    except OSError:
        return {}
    return {name_of(file): file for file in files if not _fault(name_of(file))}


def name_of(path: Path) -> str:
    """The name under which a file is in the store; for a file elsewhere, its own without the suffix."""
    return unicodedata.normalize("NFC", path.name.removesuffix(SUFFIX))


def prepare(path: Path) -> None:
    """Make the store's folder, for nobody else to read, if that is where this file is to be."""
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
    """Give a state in the store another name.

    Raises StateError where it is not there, UsageError where the name is taken.
    """
    old, taken = _named(source), _named(target)
    new = folder() / f"{_checked(target)}{SUFFIX}"
    if not old.exists():
        find(source)
    with lock(old), contextlib.nullcontext() if taken == old else lock(new):
        if taken != old and taken.exists():  # the same one may be given another case
            raise UsageError(
                f"there is a state named {name_of(taken)} already: remove it first, or take another name"
            )
        try:
            old.rename(new)
        except OSError as error:
            raise storage_error(new, error) from None
    return new


def remove(name_or_path: str) -> Path:
    """Remove a state, named or a file. Raises StateError for what is not there or no state."""
    path = find(name_or_path)
    if path.parent != folder() and not is_state_file(path):
        raise StateError(f"{path} is no state file: it stays")
    with lock(path):
        try:
            path.unlink()
        except OSError as error:
            raise StateError(f"cannot remove {path}: {(error.strerror or str(error)).lower()}") from None
    return path


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Keep a state for this program, for as long as it may write it.

    Raises StateError at once, with the number of the process, where another program has it; StorageError where no lock
    can be made. A lock ends with its program, however that ends.
    """
    from filelock import FileLock, Timeout

    file = _lock_file(path)
    holder = file.with_suffix(".pid")
    held = FileLock(file, timeout=0, thread_local=False)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        held.acquire()
    except Timeout:
        raise StateError(
            f"the state {name_of(path)} is open in another rwkv{_told(holder)}: close that, or use another name"
        ) from None
    except OSError as error:
        raise storage_error(file, error) from None
    try:
        with contextlib.suppress(OSError):
            holder.write_text(str(os.getpid()), encoding="ascii")
        yield
    finally:
        with contextlib.suppress(OSError):
            holder.unlink(missing_ok=True)
        held.release()


def _lock_file(path: Path) -> Path:
    """Beside the store and not beside the state, so that nothing is left in the folders of others."""
    real = path.resolve()
    key = unicodedata.normalize("NFC", str(real)).casefold().encode("utf-8", "surrogateescape")
    return paths.data_folder() / "locks" / f"{hashlib.sha256(key).hexdigest()[:32]}.lock"


def _told(holder: Path) -> str:
    try:
        number = holder.read_text(encoding="ascii")
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
    """What is wrong with a name."""
    if not name:
        return "the name is empty"
    if len(name) > LONGEST_NAME or len(name.encode("utf-8", "replace")) > _LONGEST_NAME_BYTES:
        return f"a name has at most {LONGEST_NAME} characters, and {_LONGEST_NAME_BYTES} bytes"
    wrong = next((c for c in name if not (c in " ._-" or unicodedata.category(c)[0] in "LMN")), None)
    if wrong is not None:
        return f"{wrong!r} is no letter, digit, space, dot, dash or underscore"
    if name[0] in " .-" or unicodedata.category(name[0])[0] == "M" or name[-1] in " .":
        return "a name begins with a letter, digit or underscore, and ends with none of space and dot"
    if _DEVICES.fullmatch(name):
        return "Windows has a device of this name"
    return None
