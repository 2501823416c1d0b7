"""How models, repositories, files and addresses may be written; what leads out of a folder is never valid."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import parse_qsl, urlencode, urlsplit

DEFAULT_REVISION = "main"
HUB = "hf:"

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,79}")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_ADDRESS = re.compile(r"[a-z]+://\S+", re.I)
# Parameters of an address that are no part of what it names: signatures, tokens, times and who asks.
_SECRET = re.compile(
    r"x-(amz|goog)-.*|.*sig(nature)?|.*token|.*secret|.*credentials?|.*access(key)?id|key-pair-id|api[_-]?key"
    r"|pass(word)?|pwd|auth|jwt|expires|policy|s[eprstv]|spr|srt",
    re.I,
)
# Names that are reserved by Windows.
_DEVICES = frozenset(
    {"con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in range(10))}
)


class HubParts(NamedTuple):
    """The parts of hf:owner/repo[@revision][/file], not checked; empty for what is not there."""

    repository: str
    revision: str
    file: str


def is_name(text: str) -> bool:
    """Whether this is a valid name of a model, which is also a file name on every system."""
    sound = bool(_NAME.fullmatch(text)) and ".." not in text and not text.endswith(".")
    return sound and text.split(".")[0] not in _DEVICES


def is_repository(text: str) -> bool:
    """Whether this is a valid owner/name on the hub."""
    return bool(_REPOSITORY.fullmatch(text)) and ".." not in text and "--" not in text


def is_relative_file(text: str) -> bool:
    """Whether this is a valid file name in a repository, which cannot lead out of it."""
    parts = text.split("/")
    sound = all(part not in ("", ".", "..") and not part.endswith((" ", ".")) for part in parts)
    return sound and len(text) <= 400 and text.isprintable() and not set(text) & set('\\:*?"<>|')


def is_revision(text: str) -> bool:
    """Whether this is a valid branch, tag or commit."""
    return is_relative_file(text) and not set(text) & set("@#%& ")


def is_url(text: str) -> bool:
    """Whether this is a valid http or https URL."""
    try:
        parts = urlsplit(text)
        return (
            parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and parts.port != 0  # the property raises ValueError for what is no port
            and text.isprintable()
            and " " not in text
        )
    except ValueError:
        return False


def without_secrets(url: str) -> str:
    """An address as it may be shown or recorded: without a user, a password, or what follows `?` or `#`.

    Of one that is malformed, more may be missing. Other texts stay as they are.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or not scheme.isalpha():
        return url
    host, slash, path = rest.partition("/")
    if not is_url(url):  # a password may hold any of the separators
        return f"{scheme}://{re.split('[?#]', rest.rpartition('@')[2])[0]}"
    host = re.split("[?#]", host)[0].rpartition("@")[2]
    return f"{scheme}://{host}{slash}{re.split('[?#]', path)[0]}"


def hide_secrets(text: str) -> str:
    """A text whose addresses are as `without_secrets` leaves them."""
    return _ADDRESS.sub(lambda found: without_secrets(found[0]), text)


def identity_of(url: str) -> str:
    """What an address names: the same for other users, passwords and signatures. For hashes, not to be shown."""
    known = [(name, value) for name, value in parse_qsl(urlsplit(url).query) if not _SECRET.fullmatch(name)]
    return without_secrets(url) + (f"?{urlencode(known)}" if known else "")


def split_hub(text: str) -> HubParts:
    """The parts of a text that begins with hf: or hf://, in upper or lower case; ".git" is no part of a name."""
    owner, _, rest = text[len(HUB) :].removeprefix("//").rstrip("/").partition("/")
    name, _, file = rest.partition("/")
    name, _, revision = name.partition("@")
    return HubParts(without_git(f"{owner}/{name}"), revision, file)


def without_git(repository: str) -> str:
    """An owner/name without the ".git" of an address to clone: no name on the hub ends so."""
    return repository.removesuffix(".git")


def is_file_reference(text: str) -> bool:
    """Whether this is a valid hf:owner/repo[@revision]/file or a URL, which name one file."""
    if not text.lower().startswith(HUB):
        return is_url(text)
    repository, revision, file = split_hub(text)
    return is_repository(repository) and is_relative_file(file) and (not revision or is_revision(revision))
