"""What a repository of the hub holds, in one request: its commit and the names of its files, perhaps with sizes."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from huggingface_hub import constants

from rwkv_cli.catalog.hub import failures
from rwkv_cli.catalog.hub.answers import read_json
from rwkv_cli.catalog.hub.failures import Note
from rwkv_cli.catalog.hub.remote import safe_name
from rwkv_cli.catalog.names import DEFAULT_REVISION, without_secrets
from rwkv_cli.errors import DownloadError

LIMIT = 3.0
"""Seconds that `glance` takes at most."""


@dataclass(frozen=True)
class Listing:
    """The files of a repository at one commit."""

    commit: str | None
    files: Mapping[str, int | None]  # by name; bytes, if the hub was asked for them and told


def contents_of(
    repository: str,
    revision: str | None,
    note: Note,
    *,
    with_sizes: bool = False,
    tries: int = failures.TRIES,
    timeout: float | None = None,
) -> Listing:
    """What the hub says of a repository; without a revision, of its own default branch. Raises DownloadError."""
    url = f"{constants.ENDPOINT}/api/models/{repository}"
    if revision is not None:
        url += f"/revision/{quote(revision, safe='')}"
    what = f"the list of files of {repository}"
    params = {"blobs": "true"} if with_sizes else None
    return _checked(what, read_json(what, url, note, params=params, tries=tries, timeout=timeout))


def glance(repository: str) -> Listing | None:
    """What is on the main branch of a repository now, if the hub tells at once; None if not, whatever the reason.

    Asks once. A thread waits for the answer: no timeout of a connection covers the look-up of a host, or a server that
    sends a byte now and then.
    """
    found: list[Listing] = []

    def ask() -> None:
        with suppress(Exception):  # a failure is of no interest to anyone
            found.append(contents_of(repository, DEFAULT_REVISION, lambda _: None, tries=1, timeout=LIMIT))

    thread = threading.Thread(target=ask, daemon=True, name="listing")
    thread.start()
    thread.join(LIMIT)
    return found[0] if found else None


def _checked(what: str, data: Any) -> Listing:
    """What is used of an answer; other fields may hold anything. Raises DownloadError for one of another form."""
    siblings, commit = (data.get("siblings"), data.get("sha")) if isinstance(data, dict) else (None, None)
    is_sound = isinstance(siblings, list) and isinstance(commit, str | None)
    files = dict[str, int | None]()
    for sibling in siblings if isinstance(siblings, list) else ():
        name = sibling.get("rfilename") if isinstance(sibling, dict) else None
        if not isinstance(name, str):
            is_sound = False
            break
        size = sibling.get("size")
        files[name] = size if type(size) is int and size > 0 else None
    if not is_sound:
        raise DownloadError(
            f"cannot download {what}: the server at {without_secrets(constants.ENDPOINT)} sends something else; "
            "HF_ENDPOINT must be the address of a hub"
        )
    return Listing(safe_name(commit), files)
