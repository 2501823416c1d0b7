"""What `rwkv state list` and `show` print: facts as JSON values, and tables."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Required, TypedDict

from rwkv_cli.cli.options import as_flag
from rwkv_cli.cli.terminal import ui
from rwkv_cli.errors import StateError
from rwkv_cli.reporting import format_size, pluralize
from rwkv_cli.sessions import kept_chats, resume, state_file, state_store
from rwkv_cli.sessions.state_file import SavedState, Summary
from rwkv_cli.sessions.state_file.fields import plain_settings

TITLES = ("name", "kind", "model", "tokens", "size", "modified")
_LAST = 300  # characters of a text that are shown


Kind = Literal["chat", "document", "text", "trained"]
"""A conversation; a text that was read; a prompt and what a model has generated; or what state tuning has trained."""


class StateRow(TypedDict, total=False):
    """A state in the store; for a damaged one, `error` says what is wrong."""

    name: Required[str]
    error: str
    kind: Kind
    bytes: int
    modified: str
    model: str
    weight_type: str
    tokens: int
    created: str
    template: str | None
    compact: bool
    conversation: bool


class StateFacts(TypedDict):
    """What can be said of a state, as JSON values."""

    name: str
    kind: Kind
    path: str
    model: str
    model_sha256: str
    weight_type: str | None
    model_location: str | None
    tokens: int
    bytes: int
    compact: bool
    can_go_on_without_prompt: bool
    template: str | None
    settings: dict[str, object]
    created: str
    modified: str
    turns: int | None
    characters: int | None
    last_text: str | None


def listed() -> list[StateRow]:
    """A row for every state in the store; for a damaged one, what is wrong with it."""
    return [_row(name, state_store.resolve(name)) for name in state_store.names()]


def _row(name: str, path: Path) -> StateRow:
    try:
        status = path.stat()
        summary = state_file.peek(path)
    except StateError as error:
        return {"name": name, "error": error.worded(as_flag)}
    except OSError as error:
        return {"name": name, "error": str(error)}
    return {
        "name": name,
        "kind": _kind(summary),
        "bytes": status.st_size,
        "modified": _date(status.st_mtime),
        "model": summary.model.name,
        "weight_type": summary.model.weight_type,
        "tokens": summary.tokens,
        "created": summary.created,
        "template": summary.template,
        "compact": summary.compact,
        "conversation": summary.has_conversation,
    }


def _kind(summary: Summary) -> Kind:
    if summary.has_conversation:
        return "chat"
    if summary.template is not None:
        return "text"
    return "document" if summary.tokens else "trained"  # which was not read from a text


def show_list(rows: Sequence[StateRow]) -> None:
    """Print the rows as a table."""
    ui.columns(TITLES, [_cells(row) for row in rows], right=(3, 4))


def note_kept_chats() -> None:
    """Say where chats without a name are, which the table does not have, if there are any."""
    if chats := kept_chats.kept():
        where = kept_chats.folder()
        ui.note(
            f"{pluralize(len(chats), 'chat')} without a name in {where}; the last one: rwkv chat --continue"
        )


def _cells(row: StateRow) -> tuple[str, ...]:
    if "error" in row:
        return row["name"], "damaged", "see rwkv state show", "", "", ""
    modified = datetime.fromisoformat(row["modified"]).astimezone()
    size, tokens = format_size(row["bytes"]), f"{row['tokens']:,}"
    return row["name"], row["kind"], row["model"], tokens, size, f"{modified:%Y-%m-%d %H:%M}"


def facts(path: Path, saved: SavedState) -> StateFacts:
    """See `StateFacts`."""
    status, summary = path.stat(), state_file.peek(path)
    turns = (saved.conversation or {}).get("turns")
    return {
        "name": state_store.name_of(path),
        "kind": _kind(summary),
        "path": str(path),
        "model": saved.model.name,
        "model_sha256": saved.model.weights,
        "weight_type": saved.model.weight_type or None,
        "model_location": saved.model.location or None,
        "tokens": saved.snapshot.n_tokens,
        "bytes": status.st_size,
        "compact": summary.compact,
        "can_go_on_without_prompt": saved.snapshot.logits is not None,
        "template": saved.template.name if saved.template else None,
        "settings": plain_settings(saved.settings),
        "created": saved.created,
        "modified": _date(status.st_mtime),
        "turns": len(turns) if isinstance(turns, list) else None,
        "characters": None if saved.text is None else len(saved.text),
        "last_text": None if saved.text is None else saved.text[-_LAST:],
    }


def show_facts(facts: StateFacts) -> None:
    """Print the facts as a table; those that are not known are left out."""
    weights = f", {facts['weight_type']} weights" if facts["weight_type"] else ""
    rounded = "compact (float16)" if facts["compact"] else "exact (float32)"
    rows = {
        "file": facts["path"],
        "kind": facts["kind"],
        "model": f"{facts['model']}{weights}, sha256 {facts['model_sha256'][:8]}…",
        "read": f"{facts['tokens']:,} tokens",
        "size": f"{format_size(facts['bytes'])}, {rounded}",
        "template": facts["template"] or "",
        "turns": "" if facts["turns"] is None else str(facts["turns"]),
        "settings": ", ".join(f"{name} {json.dumps(value)}" for name, value in facts["settings"].items()),
        "created": _local(facts["created"]),
        "modified": _local(facts["modified"]),
        "text": "not kept" if facts["characters"] is None else f"{facts['characters']:,} characters",
    }
    ui.table(facts["name"], {name: text for name, text in rows.items() if text})
    if facts["last_text"]:
        cut = "…" if (facts["characters"] or 0) > len(facts["last_text"]) else ""
        show_title("last text")
        print(ui.printable(cut + facts["last_text"]))


def tell(path: Path, saved: SavedState, *, as_json: bool) -> None:
    """Print a line about a state that was written, or its facts as JSON."""
    if as_json:
        ui.write_json(facts(path, saved))
        return
    trained = "; a trained state" if saved.snapshot.logits is None else ""
    print(ui.printable(f"{resume.described(path, saved)}{trained}"))


def show_title(title: str) -> None:
    """Print the heading of a section."""
    print(ui.styled(title, ui.BOLD, sys.stdout), flush=True)


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _local(date: str) -> str:
    """A date in local time; a text that is not a date, which a file may hold, as it is."""
    try:
        return f"{datetime.fromisoformat(date).astimezone():%Y-%m-%d %H:%M}"
    except (ValueError, OverflowError, OSError):
        return date
