"""Sentences for what goes wrong between here and a server, and what is worth another attempt."""

from __future__ import annotations

import email.utils
import re
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import httpx2
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from rwkv_cli.catalog.hub import unreachable
from rwkv_cli.catalog.hub.proxies import ProxyLoginError
from rwkv_cli.catalog.hub.unreachable import Unreachable
from rwkv_cli.catalog.names import hide_secrets
from rwkv_cli.errors import DownloadError

TRIES = 6
"""Attempts in a row that may bring nothing."""

UNREACHABLE_TRIES = 3
"""Attempts at a server that cannot be reached at all: who is offline should hear of it soon."""

FIRST_DELAY = 0.5  # seconds before the second attempt; each later one waits twice as long
LONGEST_DELAY = 8.0
SHORTEST_DELAY = 0.05  # after an attempt that has brought something
MAX_RETRY_AFTER = 300.0  # a server may ask for more; then the user decides

_WORTH_RETRYING = frozenset({408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524})

_SECRET = re.compile(r"(\b(?:bearer|basic)\s+|\bhf_(?=\w{8}))[^\s'\"]+", re.IGNORECASE)

Note = Callable[[str], None]
"""Called with a sentence for the user."""

T = TypeVar("T")


class OfflineError(DownloadError):
    """The server is unreachable; cached files may still be usable."""

    def __init__(self, message: str, failure: Unreachable | None = None) -> None:
        super().__init__(f"{message}; {failure.advice}" if failure else message)
        self.failure = failure


class GoneError(DownloadError):
    """The repository is there, but the revision or the file is not, or no longer."""


class TryAgainError(Exception):
    """An attempt failed in a way that may pass. `wait` is how many seconds the server asks for, if it does."""

    def __init__(
        self, reason: str, wait: float | None = None, unreachable: Unreachable | None = None
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.wait = wait
        self.unreachable = unreachable

    @property
    def tries(self) -> int:
        """Attempts that are worth while at a server that has not been reached yet, with this one."""
        if self.unreachable is None:
            return TRIES
        return UNREACHABLE_TRIES if self.unreachable.may_pass else 1

    def final(self, what: str, kept: str = "") -> DownloadError:
        """The error, once it is not tried again."""
        message = f"cannot download {what}: {self.reason}"
        if self.unreachable:
            return OfflineError(message + (f"; {kept}" if kept else ""), self.unreachable)
        return DownloadError(f"{message}; {kept + ', ' if kept else ''}try again later")


def attempt(what: str, ask: Callable[[], T], note: Note, tries: int = TRIES) -> T:
    """The result of `ask`, which is called again while what fails may pass. Raises DownloadError, OfflineError."""
    for number in range(1, tries + 1):
        try:
            return guarded(what, ask)
        except TryAgainError as failure:
            if number >= min(tries, failure.tries):
                raise failure.final(what) from None
            pause(number, failure, note)
    raise AssertionError("unreachable")


def pause(failures: int, failure: TryAgainError, note: Note) -> None:
    """Wait before the next attempt: as long as the server asks for, or else longer from one to the next."""
    if failure.wait is not None and failure.wait > MAX_RETRY_AFTER:
        raise DownloadError(
            f"the server asks to wait {failure.wait:.0f} s ({failure.reason}): try again after that"
        )
    delay = min(FIRST_DELAY * 2 ** (failures - 1), LONGEST_DELAY) if failures else SHORTEST_DELAY
    delay = delay if failure.wait is None else failure.wait
    if delay >= 3:
        note(f"{failure.reason}; trying again in {delay:.0f} s")
    time.sleep(delay)


def guarded(what: str, ask: Callable[[], T]) -> T:
    """The result of `ask`; exceptions of the network become TryAgainError, DownloadError or OfflineError."""
    try:
        return ask()
    except OfflineModeIsEnabled:
        raise OfflineError(
            f"cannot download {what}: HF_HUB_OFFLINE is set, and it is not in the cache"
        ) from None
    except ProxyLoginError as error:
        raise OfflineError(f"cannot download {what}: {error}") from None
    except HfHubHTTPError as error:
        raise _refusal_of_hub(what, error) from None
    except httpx2.UnsupportedProtocol as error:  # not of the first address, which was checked
        raise DownloadError(
            f"cannot download {what}: the server sends on to an address of the kind "
            f"{error.request.url.scheme[:20]}://, and only http and https are followed"
        ) from None
    except unreachable.KINDS as error:
        found = unreachable.describe(error, _reason(error))
        raise TryAgainError(found.reason, unreachable=found) from None
    except httpx2.TransportError as error:
        raise TryAgainError(_reason(error)) from None
    except (httpx2.TooManyRedirects, httpx2.InvalidURL, httpx2.DecodingError) as error:
        raise DownloadError(f"cannot download {what}: {_reason(error)}") from None
    except (ValueError, OverflowError) as error:  # of an address or a number in a header that is none
        raise DownloadError(
            f"cannot download {what}: the server's answer cannot be understood ({reason_of(error)})"
        ) from None


def refusal(what: str, status: int, headers: Mapping[str, str]) -> Exception:
    """The exception for an unsuccessful response: TryAgainError, or a DownloadError that says what to do."""
    if status in _WORTH_RETRYING:
        reason = (
            "the server gets too many requests"
            if status == 429
            else f"the server answers with error {status}"
        )
        return TryAgainError(reason, retry_after(headers))
    if status in (401, 403):
        return DownloadError(
            f"cannot download {what}: the server refuses access ({status}); set HF_TOKEN to a token that may read it"
        )
    if status in (404, 410):
        return DownloadError(f"cannot download {what}: there is no such file ({status})")
    return DownloadError(f"cannot download {what}: the server answers with error {status}")


def _refusal_of_hub(what: str, error: HfHubHTTPError) -> Exception:
    """The same for a response of the hub, which says more than a status."""
    response = error.response
    if isinstance(error, GatedRepoError):
        return DownloadError(
            f"cannot download {what}: its owner requires you to accept terms on the page of the repository; "
            "do so, then set HF_TOKEN to a token of your account"
        )
    missing = (
        (RepositoryNotFoundError, DownloadError, "repository (or it is private: then set HF_TOKEN)"),
        (RevisionNotFoundError, GoneError, "revision"),
        (EntryNotFoundError, GoneError, "file"),
    )
    for kind, raised, name in missing:
        if isinstance(error, kind) and response.status_code not in _WORTH_RETRYING:
            return raised(f"cannot download {what}: there is no such {name}")
    return refusal(what, response.status_code, response.headers)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds that a Retry-After header asks for, as a number or as a date."""
    value = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"[0-9]+", value):
        return float(value.lstrip("0")[:12] or 0)  # more digits are a long time, too
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, IndexError, OverflowError, OSError):
        return None


def _reason(error: Exception) -> str:
    if isinstance(error, httpx2.TimeoutException):
        return "the server does not answer in time"
    if isinstance(error, httpx2.TransportError) and not isinstance(error, unreachable.KINDS):
        return f"the connection broke ({reason_of(error)})"
    return reason_of(error)


def reason_of(error: Exception) -> str:
    """The message of an exception of a library in one short line, without tokens, passwords and signatures."""
    text = _SECRET.sub(r"\1...", hide_secrets(" ".join(str(error).split())))
    return (text or type(error).__name__)[:120]
