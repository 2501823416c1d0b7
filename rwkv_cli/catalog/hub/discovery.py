"""What a reference stands for: the hub, a web server or, without a connection, the cache is asked for its files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from huggingface_hub import HfFileMetadata, constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # public, but resolved lazily

from rwkv_cli.catalog.hub import cache, client, failures
from rwkv_cli.catalog.hub.answers import count, read_json
from rwkv_cli.catalog.hub.failures import Note
from rwkv_cli.catalog.hub.listing import Listing, contents_of
from rwkv_cli.catalog.hub.remote import (
    Claim,
    Remote,
    RemoteFile,
    checksums,
    claims_of,
    safe_name,
    with_claims,
)
from rwkv_cli.catalog.hub.selection import is_folder, may_be_folder, model_files, parse_json
from rwkv_cli.catalog.hub.xet import XetLocation
from rwkv_cli.catalog.names import DEFAULT_REVISION, is_relative_file, without_secrets
from rwkv_cli.catalog.reference import Reference
from rwkv_cli.errors import DownloadError, UnsupportedModelError


def find(reference: Reference, note: Note, sha256: str | None = None) -> Remote:
    """The files that a reference stands for; `sha256` is what the user expects of its only file.

    Raises DownloadError, VerificationError when the server contradicts models.toml, UsageError where the choice is not
    clear, UnsupportedModelError for a repository without weights that could be of RWKV-7.
    """
    return find_claimed(reference, claims_of(reference, sha256), note)


def find_claimed(reference: Reference, claims: Sequence[Claim], note: Note) -> Remote:
    """The files that a reference stands for; a single one has to be what is claimed. Raises what `find` does."""
    if reference.repository is None:
        return Remote(reference, (with_claims(_plain_file(reference, note), claims),))
    cached = cache.files_of(reference.repository)
    try:
        found = _on_the_hub(reference, reference.repository, note)
    except failures.OfflineError:
        offline = _in_the_cache(reference, reference.repository, cached)
        if offline is None:
            raise
        found = offline
    files = [
        replace(file, cached=file.cached or cache.find_file(cached, file.name, found.commit, file.etag))
        for file in found.files
    ]
    if not found.is_folder:
        files = [with_claims(files[0], claims)]
    return replace(found, files=tuple(files))


# ------------------------------------------------------------------------------------------ the hub


def _on_the_hub(reference: Reference, repository: str, note: Note) -> Remote:
    """One file, or the model in a repository or a folder of it: its only .pth or .gguf file, or the folder."""
    if not reference.file:
        return _in_folder(reference, "", _listed(repository, reference.revision, note), note)
    try:
        file, commit = _hub_file(repository, reference.file, reference.revision, note)
        return Remote(reference, (file,), commit)
    except failures.GoneError:
        if not may_be_folder(reference.file):
            raise
        listed = _listed(repository, reference.revision, note)
        if not any(name.startswith(f"{reference.file}/") for name in listed.files):
            raise
        return _in_folder(reference, reference.file, listed, note)


def _in_folder(reference: Reference, folder: str, listed: Listing, note: Note) -> Remote:
    """The model in a folder of a repository, "" for its top."""
    repository, revision = reference.repository or "", listed.commit or reference.revision
    names = _chosen(
        repository, folder, listed.files, lambda name: _small_json(repository, name, revision, note)
    )
    files = tuple(_hub_file(repository, name, revision, note)[0] for name in names)
    return Remote(reference, files, listed.commit, folder if is_folder(names) else None)


def _chosen(
    repository: str, folder: str, available: Iterable[str], read: Callable[[str], Any]
) -> tuple[str, ...]:
    """The names of the files of the model in a folder; see `model_files`."""
    prefix = f"{folder}/" if folder else ""
    inside = [name.removeprefix(prefix) for name in available if name.startswith(prefix)]
    shown = f"{repository}/{folder}" if folder else repository
    return tuple(prefix + name for name in model_files(shown, inside, lambda name: read(prefix + name)))


def _listed(repository: str, revision: str, note: Note) -> Listing:
    """What the hub says of a repository. Raises DownloadError."""
    try:
        return contents_of(repository, revision, note)
    except failures.GoneError:
        if revision != DEFAULT_REVISION:
            raise
        return contents_of(repository, None, note)  # the repository's own default branch, whatever its name


def _hub_file(repository: str, name: str, revision: str, note: Note) -> tuple[RemoteFile, str | None]:
    """A file of a repository and the commit that it belongs to."""
    url = hf_hub_url(repository, name, revision=revision, endpoint=constants.ENDPOINT)
    what = f"{name} of {repository}"
    client.check_token()

    def ask() -> HfFileMetadata:
        client.session()
        return get_hf_file_metadata(url, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)

    metadata = failures.attempt(what, ask, note)
    sha256, git_sha1 = checksums(metadata.etag)
    kind = "sha256" if sha256 else "git hash"
    xet = metadata.xet_file_data
    return RemoteFile(
        name=name,
        url=url,
        what=what,
        size=metadata.size if (metadata.size or 0) >= 0 else None,
        sha256=sha256,
        git_sha1=git_sha1,
        checked_by=f"the {kind} that the hub gives" if sha256 or git_sha1 else None,
        etag=safe_name(metadata.etag),
        headers=build_hf_headers(),
        xet=XetLocation(xet.file_hash, xet.refresh_route) if xet else None,
    ), safe_name(metadata.commit_hash)


def _small_json(repository: str, name: str, revision: str, note: Note) -> Any:
    """A small JSON file of a repository, which says what else to fetch.

    Read here rather than by hf_hub_download, which has no limit and leaves it in the cache; it is fetched again as one
    of the files of the model, and verified.
    """
    url = hf_hub_url(repository, name, revision=revision, endpoint=constants.ENDPOINT)
    return read_json(f"{name} of {repository}", url, note)


# ------------------------------------------------------------------------------------------ the cache


def _in_the_cache(reference: Reference, repository: str, files: list[cache.CachedFile]) -> Remote | None:
    """A model whose files are all in the cache, as another program or an earlier run left them; or None.

    Raises UsageError where the choice is not clear.
    """
    wanted = reference.revision
    there = {file.name: file for file in files if wanted == file.commit or wanted in file.refs}
    folder: str | None = reference.file or ""
    names: tuple[str, ...] = ()
    if reference.file in there:
        names, folder = (reference.file,), None
    elif not reference.file or may_be_folder(reference.file):
        try:
            names = _chosen(
                repository,
                reference.file or "",
                sorted(there),
                lambda name: parse_json(there[name].path.read_bytes(), name),
            )
        except (DownloadError, UnsupportedModelError, OSError):
            return None
    if not names or any(name not in there for name in names):
        return None
    found = tuple(_cached_file(repository, there[name]) for name in names)
    return Remote(reference, found, there[names[0]].commit, folder if is_folder(names) else None)


def _cached_file(repository: str, file: cache.CachedFile) -> RemoteFile:
    """A file of the cache, whose ETag is its checksum."""
    sha256, git_sha1 = checksums(file.etag)
    return RemoteFile(
        name=file.name,
        url="",
        what=f"{file.name} of {repository}",
        size=file.path.stat().st_size,
        sha256=sha256,
        git_sha1=git_sha1,
        checked_by="the checksum in the cache of the hub" if sha256 or git_sha1 else None,
        etag=file.etag,
        cached=file.path,
    )


# ------------------------------------------------------------------------------------------ other servers


def _plain_file(reference: Reference, note: Note) -> RemoteFile:
    """A file at an address, of which a server may say nothing but its length."""
    assert reference.url is not None
    url, what = reference.url, without_secrets(reference.url)[:200]
    size = failures.attempt(what, lambda: _length(url, what), note)
    name = PurePosixPath(unquote(urlsplit(url).path)).name
    return RemoteFile(
        name=name if is_relative_file(name) else "model", url=url, what=what, size=size, size_is_certain=False
    )


def _length(url: str, what: str) -> int | None:
    """The length of what is at an address: asked for alone, or, where that is refused, with a single byte."""
    headers = {"Accept-Encoding": "identity"}
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    response = client.session().head(url, headers=headers, timeout=timeout, follow_redirects=True)
    if response.status_code == 200:
        return count(response.headers.get("Content-Length"))
    if response.status_code in (401, 404, 410, 429) or response.status_code >= 500:
        raise failures.refusal(what, response.status_code, response.headers)
    headers["Range"] = "bytes=0-0"
    with client.session().stream(
        "GET", url, headers=headers, timeout=timeout, follow_redirects=True
    ) as response:
        if response.status_code not in (200, 206):
            raise failures.refusal(what, response.status_code, response.headers)
        if response.status_code == 206:
            return count(response.headers.get("Content-Range", "").rpartition("/")[2])
        return count(response.headers.get("Content-Length"))
