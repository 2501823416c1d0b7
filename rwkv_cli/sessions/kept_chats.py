"""The last chats without a name, which are kept so that one can come back to them.

They are state files in a folder of their own, in a fixed number of slots: a new chat takes one that is free, or
replaces the oldest. A chat holds the lock on its slot, so that two of them never write the same file; the one that was
left last is "the last chat".
"""

from __future__ import annotations

import contextlib
import os
from contextlib import ExitStack
from pathlib import Path

from rwkv_cli import paths
from rwkv_cli.errors import RwkvError, StateError, StorageError, UsageError
from rwkv_cli.files.atomic import storage_error
from rwkv_cli.sessions import state_file, state_store
from rwkv_cli.sessions.conversation import Conversation
from rwkv_cli.sessions.state_store import SUFFIX

MOST = 5
"""Chats that are kept; more only while more are open at the same time."""


def folder() -> Path:
    """The folder of kept chats, which need not exist."""
    return paths.data_folder() / "chats"


def kept() -> list[Path]:
    """The files of all kept chats, the last one first."""
    stamps = {path: stamp for path in _slots() if (stamp := _stamp(path)) is not None}
    return sorted(stamps, key=lambda path: -stamps[path])


class KeptChat:
    """Where a chat without a name is kept: a slot, once there is an answer; its lock is held until `leave`."""

    def __init__(self) -> None:
        self.path: Path | None = None
        self._lock = ExitStack()

    def open_last(self) -> Path:
        """Take the last chat that is not open: its file. Raises UsageError where there is none."""
        found = kept()
        for path in found:
            if self._take(path):
                return path
        if found:
            raise UsageError("the last chat is still open in another rwkv: leave it there first")
        raise UsageError("there is no chat to continue: none without a name has been kept")

    def write(self, conversation: Conversation) -> None:
        """Keep a conversation as it stands; one in which nothing was said is not. Raises StorageError, StateError."""
        if not conversation.turns:
            self.remove()
            return
        try:
            path = self.path or self._free_slot()
            state_file.save(path, conversation.to_saved())
        except RwkvError as error:
            raise StorageError(f"this chat cannot be kept: {error.args[0]}") from None

    def remove(self) -> None:
        """Delete the file: the conversation was taken back, or has a name now."""
        if self.path:
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)
        self.release()

    def leave(self) -> None:
        """Leave the file as it is, the last one from now on."""
        if self.path:
            with contextlib.suppress(OSError):
                os.utime(self.path)
        self.release()

    def release(self) -> None:
        """Give up the slot, whose file stays as it is."""
        self._lock.close()
        self.path, self._lock = None, ExitStack()

    def _free_slot(self) -> Path:
        """A slot that no chat has open, locked: a free one, or the oldest. Raises StorageError."""
        try:
            folder().parent.mkdir(parents=True, exist_ok=True)
            folder().mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise storage_error(folder(), error) from None
        free = [path for path in _slots() if not path.exists()]
        for path in (*free, *reversed(kept())):
            before = _stamp(path)
            if self._take(path):
                if _stamp(path) == before:
                    return path
                self.release()  # another chat was here in between, and is a new one
        number = MOST + 1
        while not self._take(_slot(number)):
            number += 1
        assert self.path
        return self.path

    def _take(self, path: Path) -> bool:
        """Lock a slot; false where another chat has it open. Raises StorageError."""
        try:
            self._lock.enter_context(state_store.lock(path))
        except StateError:
            return False
        self.path = path
        return True


def _slot(number: int) -> Path:
    return folder() / f"{number}{SUFFIX}"


def _slots() -> list[Path]:
    """The regular slots, and those that exist beyond them."""
    numbers = set(range(1, MOST + 1))
    with contextlib.suppress(OSError):
        numbers |= {int(path.stem) for path in folder().glob(f"*{SUFFIX}") if path.stem.isdecimal()}
    return [_slot(number) for number in sorted(numbers)]


def _stamp(path: Path) -> int | None:
    """When a file was written or left, in nanoseconds; None where there is none."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None
