"""The client of the hub: what it takes from the environment is checked first, so that an error names the variable.

Imported before huggingface_hub, which reads some variables when it is imported, and fails where a number is none.
"""

from __future__ import annotations

import functools
import os
import re

import httpx2

from rwkv_cli.catalog.names import is_url, without_secrets
from rwkv_cli.errors import UsageError, literal

_SECONDS = ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT")
_MOST_SECONDS = 86_400
_HEADER = re.compile(r"[!-~]*")


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

from huggingface_hub import constants, get_session, set_client_factory  # noqa: E402
from huggingface_hub.errors import OfflineModeIsEnabled  # noqa: E402
from huggingface_hub.utils import get_token  # type: ignore[attr-defined]  # noqa: E402  # resolved lazily

from rwkv_cli.catalog.hub import certificates, proxies  # noqa: E402


def check_token() -> None:
    """Raise UsageError for a token that cannot be sent; it is never shown."""
    if constants.is_offline_mode():
        return
    session()
    if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:
        return
    given = next((name for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN") if os.environ.get(name)), None)
    source = given or constants.HF_TOKEN_PATH
    try:
        token = get_token()
    except (
        PermissionError,
        NotADirectoryError,
    ):  # HF_HOME is another user's, or no folder: it has no token of ours
        constants.HF_TOKEN_PATH = os.devnull  # which huggingface_hub reads, too
        return
    except (OSError, ValueError) as error:  # the message of the latter shows what was read
        reason = str(getattr(error, "strerror", None) or "it is not text")
        raise UsageError(f"the token of the hub cannot be read from {source}: {reason.lower()}") from None
    if token and not _HEADER.fullmatch(token):
        raise UsageError(
            f"{source} holds characters that no token has, such as spaces, line breaks or letters with accents: "
            "copy the token again"
        )


def session() -> httpx2.Client:
    """The client that huggingface_hub and this package share. Raises UsageError where the environment forbids one.

    Offline it raises OfflineModeIsEnabled: what is in the cache needs no proxy and no certificate.
    """
    if constants.is_offline_mode():
        raise OfflineModeIsEnabled
    _use_own_transport()
    try:
        return get_session()
    except OSError as error:  # ssl.SSLError is one
        raise certificates.unreadable(error) from None


@functools.cache
def _install() -> None:
    set_client_factory(
        lambda: httpx2.Client(
            transport=proxies.Transport(certificates.context()), follow_redirects=True, timeout=None
        )
    )


def _use_own_transport() -> None:
    """Have huggingface_hub use our transport, too, where the environment has something to say of connections.

    Elsewhere a client that another program has given to it stays.
    """
    if proxies.are_named() or certificates.variable():
        _install()


constants.HF_HUB_DISABLE_TELEMETRY = (
    True  # which asks the hub for the names of other programs before each command
)
