"""What a repository of the hub holds, in one request: its commit and the names of its files, perhaps with sizes."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from huggingface_hub import HfApi, ModelInfo, constants

from rwkv_cli.catalog.hub import failures
from rwkv_cli.catalog.hub.failures import Note
from rwkv_cli.catalog.hub.remote import safe_name
from rwkv_cli.catalog.names import DEFAULT_REVISION
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
    api = HfApi(endpoint=constants.ENDPOINT)

    def ask() -> Listing:
        try:
            return _checked(
                api.model_info(
                    repository,
                    revision=revision,
                    timeout=timeout or constants.HF_HUB_DOWNLOAD_TIMEOUT,
                    files_metadata=with_sizes,
                )
            )
        except (AttributeError, KeyError, TypeError, ValueError):  # no JSON, or not in this form
            raise DownloadError(f"what the server sends is not a list of the files of {repository}") from None

    return failures.attempt(f"the list of files of {repository}", ask, note, tries)


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


def _checked(info: ModelInfo) -> Listing:
    """What is used of an answer. Raises TypeError, AttributeError for one of another form."""
    files = {}
    for sibling in info.siblings or ():
        if not isinstance(sibling.rfilename, str):
            raise TypeError
        files[sibling.rfilename] = sibling.size if type(sibling.size) is int and sibling.size > 0 else None
    return Listing(safe_name(info.sha), files)
