"""The newest model of a size: what the publisher's repository has now, beside what models.toml knows.

Only a repository whose files are named by generation can be asked for it; see `rwkv_cli.text.generations`.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rwkv_cli.catalog import reference as references
from rwkv_cli.catalog import registry
from rwkv_cli.catalog.entries import Entry
from rwkv_cli.catalog.names import DEFAULT_REVISION, HUB, without_secrets
from rwkv_cli.catalog.reference import Reference
from rwkv_cli.errors import DownloadError, UsageError
from rwkv_cli.reporting import Reporter
from rwkv_cli.text import generations
from rwkv_cli.text.generations import Published

if TYPE_CHECKING:
    from rwkv_cli.catalog.hub import Listing

_FEW_TRIES = 2  # of a listing for which somebody waits who has asked for nothing else


@dataclass(frozen=True)
class Comparison:
    """The newest model of one size in a repository, as models.toml knows it and as the main branch has it."""

    repository: str
    size: str
    known: Published | None
    found: Published | None
    bytes: int | None  # of what was found, if the hub tells
    command: str  # that gets the newer one of both

    @property
    def is_new(self) -> bool:
        """Whether models.toml does not know it yet."""
        return self.found is not None and (self.known is None or self.found.order > self.known.order)


def newest_of(reference: Reference, reporter: Reporter) -> Reference:
    """The newest model of the same size: on the main branch, pinned to its commit, or in models.toml.

    Raises DownloadError without an answer, UsageError for a model whose name tells no generation.
    """
    from rwkv_cli.catalog import hub

    place = _place(reference)
    if place is None:
        raise UsageError(
            f"{{newest}} cannot be used with {reference.name}: its file is not named by generation and size"
        )
    repository, published = place
    contents = hub.contents_of(repository, DEFAULT_REVISION, reporter.note)
    found = generations.newest(contents.files).get(published.size)
    known = _known(repository, published.size)
    if known and (found is None or found.order <= known[-1][1].order):
        return references.of_entry(known[-1][0])
    if found is None or found.order <= published.order:
        return reference
    return _reference_to(repository, found, contents)


def remark_on_newer(reference: Reference, wanted: str) -> str | None:
    """A sentence if the main branch has a newer model of this size, with the command that gets it.

    Takes `hub.listing.LIMIT` at most and never fails.
    """
    from rwkv_cli.catalog import hub

    place = _place(reference)
    if place is None:
        return None
    repository, published = place
    contents = hub.glance(repository)
    found = generations.newest(contents.files).get(published.size) if contents else None
    if found is None or found.order <= published.order:
        return None
    return (
        f"{found.name} of {found.day} is newer than {published.name} of {published.day}: "
        f"`rwkv pull {shlex.quote(without_secrets(wanted))} --newest` downloads it"
    )


def in_place_of(reference: Reference, error: DownloadError, reporter: Reporter) -> Reference | None:
    """What to take for a known model whose commit or file is gone: the same file, or the newest of its size, from main.

    None if the error is another one, or if there is nothing to take.
    """
    from rwkv_cli.catalog import hub

    place = _place(reference)
    if place is None or reference.entry is None or not isinstance(error, hub.GoneError):
        return None
    repository, published = place
    try:
        contents = hub.contents_of(repository, DEFAULT_REVISION, reporter.note)
    except DownloadError:
        return None
    revision = contents.commit or DEFAULT_REVISION
    if published.file in contents.files:
        reporter.note(f"{error}; taking the same file from the main branch")
        return replace(reference, revision=revision)
    found = generations.newest(contents.files).get(published.size)
    if found is None:
        return None
    reporter.note(f"{error}; taking {found.name}, the newest of this size, from the main branch")
    for entry, known in _known(repository, published.size):
        if known == found:
            return replace(references.of_entry(entry), revision=revision)
    return _reference_to(repository, found, contents)


def compared(reporter: Reporter) -> list[Comparison]:
    """A row for each size in each repository of models.toml that can be asked. Raises DownloadError."""
    from rwkv_cli.catalog import hub

    rows = []
    for repository in dict.fromkeys(entry.repository or "" for entry, _ in registry.published()):
        contents = hub.contents_of(
            repository, DEFAULT_REVISION, reporter.note, with_sizes=True, tries=_FEW_TRIES
        )
        newest = generations.newest(contents.files)
        known = {known.size for entry, known in registry.published() if entry.repository == repository}
        rows += [
            _compared(repository, size, newest.get(size), contents)
            for size in sorted(known | newest.keys(), key=generations.parameters_of)
        ]
    return rows


def _compared(repository: str, size: str, found: Published | None, contents: Listing) -> Comparison:
    known = _known(repository, size)
    row = Comparison(
        repository,
        size,
        known=known[-1][1] if known else None,
        found=found,
        bytes=contents.files.get(found.file) if found else None,
        command="rwkv pull ",
    )
    if known:
        command = f"{_short_name(known)} --newest" if row.is_new else _short_name(known[-1:])
    else:
        command = f"{HUB}{repository}/{found.file if found else ''}"
    return replace(row, command=row.command + command)


def _place(reference: Reference) -> tuple[str, Published] | None:
    """The repository that can be asked for newer models, and what the name of this one tells; or None."""
    published = generations.parse(reference.file or "")
    return (reference.repository, published) if reference.repository and published else None


def _known(repository: str, size: str) -> list[tuple[Entry, Published]]:
    """The models in models.toml of one size in a repository, the newest last."""
    there = [
        (entry, known)
        for entry, known in registry.published()
        if entry.repository == repository and known.size == size
    ]
    return sorted(there, key=lambda pair: pair[1].order)


def _short_name(known: list[tuple[Entry, Published]]) -> str:
    """What one would type for the newest of some models: an alias, if any of them has one."""
    short = ((entry, registry.short_name(entry)) for entry, _ in reversed(known))
    return next((name for entry, name in short if name != entry.name), known[-1][0].name)


def _reference_to(repository: str, found: Published, contents: Listing) -> Reference:
    """A model that models.toml does not have, named as those are that it has."""
    reference = references.parse(f"{HUB}{repository}/{found.file}")
    named = {entry.name: entry for entry, known in registry.published() if entry.name == known.name}
    if any(entry.repository == repository for entry in named.values()):
        name = f"{found.name}-{found.date}" if found.name in named else found.name
        reference = replace(reference, name=name)
    return replace(reference, revision=contents.commit or DEFAULT_REVISION)
