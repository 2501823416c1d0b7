"""What is to be fetched, as the hub or a web server describes it: files, sizes, checksums."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from huggingface_hub import HfApi, ModelInfo, constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.utils._headers import build_hf_headers

from rwkv_cli.catalog.entries import DEFAULT_REVISION, is_relative_file
from rwkv_cli.catalog.hub import failures
from rwkv_cli.catalog.reference import Reference
from rwkv_cli.errors import DownloadError, UnsupportedModelError, UsageError, VerificationError

_SHA256 = re.compile(r"[0-9a-f]{64}")
_GIT_SHA1 = re.compile(r"[0-9a-f]{40}")
_SAFE_NAME = re.compile(r"[\w.-]{1,120}", re.ASCII)

# The files of a folder in the layout of Hugging Face that a conversion reads.
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_INDEX = ".index.json"
_BESIDES = ("config.json", "tokenizer.json")
_SINGLE = (".pth", ".gguf")
_MAX_INDEX = 16 << 20


@dataclass(frozen=True)
class RemoteFile:
    """One file on a server."""

    name: str  # in its repository
    url: str
    what: str  # for messages
    size: int | None
    sha256: str | None = None
    git_sha1: str | None = None  # of a small file that git itself keeps
    checked_by: str | None = None  # where the checksum is from, in words
    size_is_certain: bool = True
    identity: str = ""  # what the cache calls its content
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Remote:
    """A model on a server: one file, or the files of a folder."""

    reference: Reference
    files: tuple[RemoteFile, ...]
    commit: str | None  # of the repository
    is_folder: bool

    @property
    def size(self) -> int | None:
        """Bytes of all files, if they are known."""
        sizes = [file.size for file in self.files]
        return None if None in sizes else sum(size for size in sizes if size is not None)


Note = Callable[[str], None]


def find(reference: Reference, note: Note, sha256: str | None = None) -> Remote:
    """Ask a server what a reference stands for; `sha256` is what a user says of its only file.

    Raises DownloadError, VerificationError when the server's word contradicts models.toml, UsageError where the choice
    is not clear, UnsupportedModelError for a repository without weights that could be of RWKV-7.
    """
    try:
        return _asked(reference, note, sha256)
    except failures.OfflineError:
        from rwkv_cli.catalog.hub.offline import find_cached

        cached = find_cached(reference)
        if cached is None:
            raise
        if sha256 and not cached.is_folder:
            cached = replace(cached, files=(claimed(cached.files[0], reference, sha256),))
        return cached


def _asked(reference: Reference, note: Note, sha256: str | None) -> Remote:
    if reference.url:
        return Remote(reference, (_plain(reference, note, sha256),), None, is_folder=False)
    if reference.file:
        file, commit = _hub_file(reference, reference.file, reference.revision, note)
        return Remote(reference, (claimed(file, reference, sha256),), commit, is_folder=False)
    return _folder(reference, note)


def _hub_file(reference: Reference, name: str, revision: str, note: Note) -> tuple[RemoteFile, str | None]:
    """A file of a repository and the commit that it belongs to."""
    assert reference.repository is not None
    url = hf_hub_url(reference.repository, name, revision=revision, endpoint=constants.ENDPOINT)
    what = f"{name} of {reference.repository}"
    metadata = failures.attempt(
        what, lambda: get_hf_file_metadata(url, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT), note
    )
    etag = (metadata.etag or "").lower()
    sha256, git_sha1 = checksums(etag)
    kind = "sha256" if sha256 else "git hash"
    commit = metadata.commit_hash
    return RemoteFile(
        name=name,
        url=url,
        what=what,
        size=metadata.size,
        sha256=sha256,
        git_sha1=git_sha1,
        checked_by=f"the {kind} that the hub gives" if sha256 or git_sha1 else None,
        identity=etag if _SAFE_NAME.fullmatch(etag) else "",
        headers=build_hf_headers(),
    ), commit if commit and _SAFE_NAME.fullmatch(commit) else None


def checksums(identity: str) -> tuple[str | None, str | None]:
    """The sha256 of a large file or the git hash of a small one, which is what the hub and its cache call them by."""
    sha256 = identity if _SHA256.fullmatch(identity) else None
    return sha256, identity if _GIT_SHA1.fullmatch(identity) else None


def claimed(file: RemoteFile, reference: Reference, sha256: str | None) -> RemoteFile:
    """The file with what models.toml and the user say of it, which has to agree with what the server says."""
    entry, changes = reference.entry, dict[str, Any]()
    claims = [(sha256, "--sha256"), (entry.sha256 if entry else None, "models.toml")]
    for digest, source in claims:
        known = changes.get("sha256") or file.sha256
        if digest and known and known != digest:
            raise VerificationError(
                f"{file.what} is not the file that {source} describes: its sha256 is {known[:16]}..., "
                f"not {digest[:16]}..."
            )
        if digest and "checked_by" not in changes:
            changes |= {"sha256": digest, "git_sha1": None, "checked_by": f"the sha256 in {source}"}
            if source == "--sha256":
                changes["checked_by"] = "the sha256 of --sha256"
            changes["identity"] = file.identity or digest
    if entry and entry.bytes:
        if file.size not in (None, entry.bytes):
            raise VerificationError(
                f"{file.what} is not the file that models.toml describes: it has {file.size:,} bytes, "
                f"not {entry.bytes:,}"
            )
        changes |= {"size": entry.bytes, "size_is_certain": True}
    return replace(file, **changes)


def _plain(reference: Reference, note: Note, sha256: str | None) -> RemoteFile:
    """A file at an address, of which a server may say nothing but its length."""
    assert reference.url is not None
    url, what = reference.url, _shown(reference.url)
    size = failures.attempt(what, lambda: _length(url, what), note)
    name = PurePosixPath(unquote(urlsplit(url).path)).name
    file = RemoteFile(
        name=name if is_relative_file(name) else "model", url=url, what=what, size=size, size_is_certain=False
    )
    return claimed(file, reference, sha256)


def _shown(url: str) -> str:
    """An address without a password or a signature that may be in it."""
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname}{port}{parts.path}"[:200]


def _length(url: str, what: str) -> int | None:
    """The length of what is at an address: asked for alone, or, where that is refused, with a single byte."""
    headers = {"Accept-Encoding": "identity"}
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    response = failures.session().head(url, headers=headers, timeout=timeout, follow_redirects=True)
    announced = response.headers.get("Content-Length", "")
    if response.status_code == 200:
        return int(announced) if announced.isdigit() else None
    if response.status_code in (401, 404, 410) or response.status_code == 429 or response.status_code >= 500:
        raise failures.refusal(what, response.status_code, response.headers)
    headers["Range"] = "bytes=0-0"
    with failures.session().stream(
        "GET", url, headers=headers, timeout=timeout, follow_redirects=True
    ) as response:
        if response.status_code not in (200, 206):
            raise failures.refusal(what, response.status_code, response.headers)
        announced = response.headers.get("Content-Length", "")
        if response.status_code == 206:
            announced = response.headers.get("Content-Range", "").rpartition("/")[2]
        return int(announced) if announced.isdigit() else None


def _folder(reference: Reference, note: Note) -> Remote:
    """The model in a repository: its only .pth or .gguf file, or its folder in the layout of Hugging Face."""
    repository, revision = reference.repository, reference.revision
    assert repository is not None
    info = _described(repository, revision, note)
    there = [sibling.rfilename for sibling in info.siblings or ()]
    commit = info.sha if info.sha and _SAFE_NAME.fullmatch(info.sha) else None
    at = commit or revision
    names = model_files(reference, there, lambda name: _small_json(reference, name, at, note))
    files = tuple(_hub_file(reference, name, at, note)[0] for name in names)
    return Remote(reference, files, commit, is_folder=is_folder(names))


def _described(repository: str, revision: str, note: Note) -> ModelInfo:
    """What the hub says of a repository. Raises DownloadError."""

    def ask(revision: str | None) -> ModelInfo:
        api, timeout = HfApi(endpoint=constants.ENDPOINT), constants.HF_HUB_DOWNLOAD_TIMEOUT
        return failures.attempt(
            repository, lambda: api.model_info(repository, revision=revision, timeout=timeout), note
        )

    try:
        return ask(revision)
    except failures.OfflineError:
        raise
    except DownloadError:
        if revision != DEFAULT_REVISION:
            raise
        return ask(None)  # the branch that the repository itself takes for the main one


def model_files(reference: Reference, there: Sequence[str], read: Callable[[str], Any]) -> tuple[str, ...]:
    """Which files of a repository make its model; `read` gives the content of a JSON file.

    Raises UsageError where the choice is not clear, UnsupportedModelError where there is none.
    """
    assert reference.repository is not None
    top = [name for name in there if "/" not in name and is_relative_file(name)]
    names = _whole_folder(reference, top, read)
    return names or (_only(reference.repository, [name for name in there if name.endswith(_SINGLE)]),)


def is_folder(names: Sequence[str]) -> bool:
    """Whether these are the files of a folder in the layout of Hugging Face, rather than one that is a model."""
    return not names[0].endswith(_SINGLE)


def _whole_folder(
    reference: Reference, top: Sequence[str], read: Callable[[str], Any]
) -> tuple[str, ...] | None:
    """The names of the weights and of what belongs to them; None where there are none in this layout."""
    besides = [name for name in _BESIDES if name in top]
    for weights in _WEIGHTS:
        if weights in top:
            return (weights, *besides)
        if weights + _INDEX in top:
            table = read(weights + _INDEX)
            shards = table.get("weight_map") if isinstance(table, dict) else None
            if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
                raise DownloadError(f"{weights}{_INDEX} of {reference.repository} lists no weight files")
            wanted = sorted(set(shards.values()))
            missing = next((shard for shard in wanted if shard not in top), None)
            if missing is not None:
                raise DownloadError(
                    f"{reference.repository} is incomplete: the file {missing[:80]!r} of {weights}{_INDEX} is missing"
                )
            return (*wanted, weights + _INDEX, *besides)
    single = [name for name in top if name.endswith(".safetensors")]
    return (single[0], *besides) if len(single) == 1 else None


def _only(repository: str, candidates: Sequence[str]) -> str:
    """The one file that may hold a model. Raises UsageError for several, UnsupportedModelError for none."""
    sound = [name for name in candidates if is_relative_file(name)]
    if not sound:
        raise UnsupportedModelError(
            f"{repository} holds no weights of an RWKV-7 model: no .pth, .gguf or .safetensors"
        )
    if len(sound) > 1:
        shown = ", ".join(sound[:12]) + (", ..." if len(sound) > 12 else "")
        raise UsageError(
            f"{repository} holds {len(sound)} models: name one, hf:{repository}/FILE; there are {shown}"
        )
    return sound[0]


def _small_json(reference: Reference, name: str, revision: str, note: Note) -> Any:
    """A small JSON file of a repository, which says what else to fetch; it is fetched again, and checked."""
    file, _ = _hub_file(reference, name, revision, note)

    def read() -> bytes:
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        with failures.session().stream(
            "GET", file.url, headers=dict(file.headers), timeout=timeout, follow_redirects=True
        ) as response:
            if response.status_code != 200:
                raise failures.refusal(file.what, response.status_code, response.headers)
            data = b""
            for piece in response.iter_bytes():
                data += piece
                if len(data) > _MAX_INDEX:
                    raise DownloadError(f"{file.what} is larger than any list of files")
            return data

    return parsed(failures.attempt(file.what, read, note), file.what)


def parsed(data: bytes, what: str) -> Any:
    """JSON values. Raises DownloadError."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise DownloadError(f"{what} is no JSON") from None
