"""States as files: copied, exported, imported, removed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from rwkv_cli import paths
from rwkv_cli.catalog import registry
from rwkv_cli.cli.terminal import ui
from rwkv_cli.engine.session import Snapshot
from rwkv_cli.errors import StateError, UsageError
from rwkv_cli.sessions import resume, state_file, state_store
from rwkv_cli.sessions.model_identity import identify_file
from rwkv_cli.sessions.resume import Source
from rwkv_cli.sessions.state_file import SavedState
from rwkv_cli.sessions.state_file.state_tuned import trained_state

_ZIP = b"PK\x03\x04"


def copy(
    source: str,
    target: str,
    *,
    force: bool,
    new: bool = False,
    compact: bool | None = None,
    keep_text: bool = True,
) -> Source:
    """Copy a state to another name or file, with the current date if it is `new`: what was written.

    `compact` is None to keep the form that it has.
    """
    path = state_store.resolve(target)
    with state_store.lock(path):
        found = resume.open_state(source)
        if path.exists() and path.samefile(found.path):
            raise UsageError(f"{source} and {target} are the same state")
        resume.check_target(target, force)
        saved = found.saved
        if not keep_text:
            saved.text = saved.conversation = None
        if new:
            saved.created = ""
        state_store.save(path, saved, state_file.peek(found.path).compact if compact is None else compact)
    return Source(path, saved)


def export_target(name: str, file: Path) -> str:
    """The path for an exported state: a folder gets a file of its name."""
    if file.is_dir():
        file = file / f"{state_store.name_of(state_store.find(name))}{state_store.SUFFIX}"
    return str(file.absolute())


def remove(names: Sequence[str], yes: bool) -> list[str]:
    """Remove states, after asking: those that were removed. Raises UsageError where there is no terminal to ask."""
    removed = []
    paths = {name: state_store.find(name) for name in names}
    for name, path in paths.items():
        if not yes:
            if not ui.is_terminal(sys.stdin):
                raise UsageError(f"to remove {name} without confirmation, use {{yes}}")
            print(f"remove {ui.printable(str(path))}? [y/N] ", end="", file=sys.stderr, flush=True)
            if sys.stdin.readline().strip().lower() not in ("y", "yes"):
                continue
        state_store.remove(name)
        removed.append(name)
    return removed


def take_in(file: Path, name: str, model: str | None, force: bool) -> Source:
    """Import a file, ours or a trained state: what was written. Raises StateError, CheckpointError."""
    file = paths.user_path(file)
    if not file.is_file():
        raise StateError(f"{file} is not a regular file" if file.exists() else f"there is no file {file}")
    with file.open("rb") as opened:
        is_trained = opened.read(4) == _ZIP
    if not is_trained:
        return copy(str(file.absolute()), name, force=force)
    path = state_store.resolve(name)
    with ExitStack() as stack:
        stack.enter_context(state_store.lock(path))
        resume.check_target(name, force)
        model_path = registry.locate(model)
        identity, config = identify_file(model_path)
        state = trained_state(file, config, identity.name)
        saved = SavedState(Snapshot(state), identity)
        state_store.save(path, saved)
    return Source(path, saved)
