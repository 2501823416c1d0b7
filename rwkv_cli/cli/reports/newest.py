"""What `rwkv models list --known --newest` shows: the newest known models beside those that the hub has now."""

from __future__ import annotations

from typing import TypedDict, final

from rwkv_cli.catalog import newest
from rwkv_cli.catalog.newest import Comparison
from rwkv_cli.reporting import Reporter, format_size

TITLES = ("size", "known", "on the hub", "of", "download", "command")


@final
class NewestRow(TypedDict):
    """The newest model of a size in a repository: as it is known, and as its main branch has it."""

    repository: str
    size: str
    known: str | None
    known_date: str | None
    newest: str | None
    newest_date: str | None
    file: str | None
    bytes: int | None
    new: bool
    command: str


def rows(reporter: Reporter) -> list[NewestRow]:
    """A row for every size, small ones first. Raises DownloadError."""
    return [_row(comparison) for comparison in newest.compared(reporter)]


def _row(comparison: Comparison) -> NewestRow:
    known, found = comparison.known, comparison.found
    return {
        "repository": comparison.repository,
        "size": comparison.size,
        "known": known.name if known else None,
        "known_date": known.day if known else None,
        "newest": found.name if found else None,
        "newest_date": found.day if found else None,
        "file": found.file if found else None,
        "bytes": comparison.bytes,
        "new": comparison.is_new,
        "command": comparison.command,
    }


def cells(row: NewestRow) -> tuple[str, ...]:
    """The cells of a row, formatted for display."""
    return (
        row["size"],
        row["known"] or "none",
        (row["newest"] or "none") + (" (new)" if row["new"] else ""),
        row["newest_date"] or "",
        format_size(row["bytes"]) if row["bytes"] else "",
        row["command"],
    )
