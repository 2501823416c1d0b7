"""A model from the first source that delivers it: where it is published, and then its mirrors.

Anybody can put a file on a mirror. So one is used only where the checksum of the file is known from elsewhere: from
models.toml, from the user, or from the hub, if that still told it before it failed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from urllib.parse import urlsplit

from huggingface_hub import constants

from rwkv_cli.catalog import reference as references
from rwkv_cli.catalog.hub.discovery import find_claimed
from rwkv_cli.catalog.hub.download import Fetched, fetch, forget
from rwkv_cli.catalog.hub.failures import Note, OfflineError
from rwkv_cli.catalog.hub.remote import Claim, Remote, claims_of
from rwkv_cli.catalog.hub.transfer import Progress
from rwkv_cli.catalog.names import without_secrets
from rwkv_cli.catalog.reference import Reference
from rwkv_cli.errors import DownloadError, VerificationError

_LONG = 3.0  # seconds for a name, which usually takes milliseconds


def obtain(
    reference: Reference,
    sha256: str | None,
    ready: Callable[[Remote], None],
    progress: Progress,
    note: Note,
) -> Fetched:
    """Find a model, and bring its files here verified; a file that its source does not deliver, from a mirror.

    `sha256` is what the user expects of its only file. `ready` is called with what was found before it is downloaded.
    Raises what `find` and `fetch` do: of several sources that failed the error of the first, which mentions the others.
    """
    claims, found, began = claims_of(reference, sha256), list[Remote](), time.monotonic()
    try:
        found.append(find_claimed(reference, claims, note))
        ready(found[0])
        return fetch(found[0], progress, note)
    except DownloadError as error:
        mirrors = reference.entry.mirrors if reference.entry else ()
        contradict = len({claim.sha256 for claim in claims if claim.sha256}) > 1
        if not mirrors or contradict or constants.is_offline_mode() or _has_no_names(error, began):
            raise
        failure = error
    expected = [*claims, *_claims_of_hub(found)]
    if not any(claim.sha256 for claim in expected):
        raise type(failure)(
            f"{_problem(failure.args[0])}; its mirrors were not asked, since no checksum is known to check them by: "
            "give {sha256} to use them"
        )
    fetched = _from_mirrors(mirrors, failure, expected, ready, progress, note)
    for remote in found:
        forget(remote)  # what has arrived from there is not needed any more
    return fetched


def _has_no_names(error: DownloadError, began: float) -> bool:
    """Whether the name service is silent, for seconds: a mirror would take as long, to fail in the same way."""
    failure = error.failure if isinstance(error, OfflineError) else None
    return failure is not None and not failure.has_names and time.monotonic() - began > _LONG


def _claims_of_hub(found: Sequence[Remote]) -> list[Claim]:
    """What the hub told of the file before it failed to deliver it; a plain web server tells no checksum."""
    files = [remote.files[0] for remote in found if remote.files[0].sha256]
    return [Claim("the hub", "the sha256 that the hub gives", file.sha256, file.size) for file in files]


def _from_mirrors(
    mirrors: Sequence[str],
    failure: DownloadError,
    expected: Sequence[Claim],
    ready: Callable[[Remote], None],
    progress: Progress,
    note: Note,
) -> Fetched:
    """The file from the first mirror that has the right one. Raises the first failure, with those of the mirrors."""
    problem, failed, offline = _problem(str(failure)), list[str](), set[str]()
    for mirror in mirrors:
        host = _host(mirror)
        if host in offline:
            continue
        note(f"{problem}; trying the mirror {host}")
        try:
            remote = find_claimed(references.parse(mirror), expected, note)
            if remote.is_folder:
                raise VerificationError(f"{without_secrets(mirror)} is a folder, not a file")
            ready(remote)
            return replace(fetch(remote, progress, note), mirror=_shown(mirror))
        except DownloadError as error:
            problem = _problem(str(error))
            if isinstance(error, OfflineError):
                offline.add(host)
            reason = problem.partition(": ")[2] or problem
            failed.append(reason if reason.startswith(f"{host} cannot be reached") else f"{host} ({reason})")
    reasons = ", ".join(dict.fromkeys(failed))
    message = f"{_problem(failure.args[0])}; its mirrors failed too: {reasons}"
    raise (
        OfflineError(message, failure.failure)
        if isinstance(failure, OfflineError)
        else type(failure)(message)
    )


def _problem(message: str) -> str:
    """What is wrong, without what to do about it."""
    return message.partition("; ")[0]


def _host(mirror: str) -> str:
    """Who runs a mirror: the host of an address, the owner and name of a repository on the hub."""
    if repository := references.parse(mirror).repository:
        return repository
    parts = urlsplit(mirror)
    return f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)


def _shown(mirror: str) -> str:
    """A mirror as it may be recorded."""
    return references.parse(mirror).text
