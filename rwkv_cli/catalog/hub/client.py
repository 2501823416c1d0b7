"""The client of the hub: what it takes from the environment is checked first, so that an error names the variable.

Imported before huggingface_hub, which reads some variables when it is imported, and fails where a number is none.
"""

from __future__ import annotations

import importlib.util
import os
import re
import ssl
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import urlsplit
from urllib.request import proxy_bypass

import httpx2

from rwkv_cli.catalog.names import is_url, without_secrets
from rwkv_cli.errors import UsageError, literal

_SECONDS = ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT")
_MOST_SECONDS = 86_400
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
_SOCKS = ("socks5", "socks5h")
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")
_HEADER = re.compile(r"[!-~]*")


class Proxy(NamedTuple):
    """What a request goes through."""

    variable: str  # that names it
    host: str  # with its port, if one is given; it may be shown, other than a user and a password


def check_settings() -> None:
    """Raise UsageError for a variable that huggingface_hub cannot use; an empty one counts as not set."""
    for name in _SECONDS:
        value = os.environ.get(name, "").strip()
        if value and not (re.fullmatch(r"[0-9]{1,6}", value) and int(value) <= _MOST_SECONDS):
            raise _refused(name, f"a whole number of seconds, at most {_MOST_SECONDS:,}")
    for name in (*_SECONDS, "HF_ENDPOINT"):
        if not os.environ.get(name, "x").strip():
            del os.environ[name]
    endpoint = os.environ.get("HF_ENDPOINT")
    if endpoint and (not is_url(endpoint) or set(endpoint) & set("?#")):
        raise _refused("HF_ENDPOINT", "the address of a hub, such as https://huggingface.co")
    if not _HEADER.fullmatch(os.environ.get("HF_HUB_USER_AGENT_ORIGIN", "")):
        raise _refused("HF_HUB_USER_AGENT_ORIGIN", "a word in ASCII")


def _refused(name: str, demand: str) -> UsageError:
    shown = without_secrets(os.environ[name])[:80]
    return UsageError(f"{name} is {literal(repr(shown))}: it must be {demand}")


check_settings()

from huggingface_hub import constants, get_session  # noqa: E402
from huggingface_hub.utils import get_token  # type: ignore[attr-defined]  # noqa: E402  # resolved lazily


def check_token() -> None:
    """Raise UsageError for a token that cannot be sent; it is never shown."""
    session()
    if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:
        return
    given = next((name for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN") if os.environ.get(name)), None)
    source = given or constants.HF_TOKEN_PATH
    try:
        token = get_token()
    except (OSError, ValueError) as error:  # the message of the latter shows what was read
        reason = str(getattr(error, "strerror", None) or "it is not text")
        raise UsageError(f"the token of the hub cannot be read from {source}: {reason.lower()}") from None
    if token and not _HEADER.fullmatch(token):
        raise UsageError(
            f"{source} holds characters that no token has, such as spaces, line breaks or letters with accents: "
            "copy the token again"
        )


def session() -> httpx2.Client:
    """The client that huggingface_hub and this package share. Raises UsageError where the environment forbids one."""
    for name, value in _proxies():
        _check_proxy(name, value)
    try:
        return get_session()
    except OSError as error:  # ssl.SSLError is one
        named = next((each for each in _CERTIFICATES if os.environ.get(each)), None)
        reason = (
            "there are none in it"
            if isinstance(error, ssl.SSLError)
            else str(error.strerror or error).lower()
        )
        what = (
            f"the certificates of {named}={os.environ[named][:120]!r}"
            if named
            else "the system's certificates"
        )
        hint = f": unset {named}, or set it to the file of your certificates" if named else ""
        raise UsageError(f"{literal(what)} cannot be read ({reason}){hint}") from None
    except (ValueError, ImportError, httpx2.InvalidURL):
        raise UsageError(
            "the settings of proxies cannot be used: correct HTTP_PROXY, HTTPS_PROXY, ALL_PROXY or NO_PROXY"
        ) from None


def proxy_for(url: str) -> Proxy | None:
    """The proxy that requests to an address go through, according to the environment."""
    parts = urlsplit(url)
    if proxy_bypass(parts.netloc.rpartition("@")[2]):
        return None
    named = {name.upper(): (name, value) for name, value in _proxies()}
    found = named.get(f"{parts.scheme.upper()}_PROXY") or named.get("ALL_PROXY")
    if found is None:
        return None
    variable, value = found
    return Proxy(variable, value.rpartition("://")[2].rpartition("@")[2].partition("/")[0])


def _proxies() -> Iterator[tuple[str, str]]:
    """The variables that name a proxy, with their values, unless NO_PROXY turns them all off."""
    excepted = os.environ.get("no_proxy", os.environ.get("NO_PROXY", ""))
    if "*" in [host.strip() for host in excepted.split(",")]:
        return
    for upper in _PROXIES:
        for name in (upper.lower(), upper):
            if value := os.environ.get(name, "").strip():
                yield name, value
                break


def _check_proxy(name: str, value: str) -> None:
    """Raise UsageError for what is no address of a proxy. It may hold a password, and is not shown."""
    try:
        parts = urlsplit(value if "://" in value else f"http://{value}")
        is_sound = bool(parts.hostname) and parts.port != 0 and value.isprintable() and " " not in value
    except ValueError:
        is_sound = False
    if not is_sound:
        raise UsageError(f"{name} must be the address of a proxy, such as http://proxy.example:8080")
    if parts.scheme not in ("http", "https", *_SOCKS):
        raise UsageError(
            f"{name} names a proxy of the kind {parts.scheme[:20]}: it must be http, https, socks5 or socks5h"
        )
    if parts.scheme in _SOCKS and importlib.util.find_spec("socksio") is None:
        raise UsageError(
            f"{name} names a SOCKS proxy, which needs a package more: install it with `pip install socksio`, "
            f"or unset {name}"
        )


constants.HF_HUB_DISABLE_TELEMETRY = (
    True  # which asks the hub for the names of other programs before each command
)
