"""A server that cannot be reached at all: which one, through which proxy, why, and what may be set instead."""

from __future__ import annotations

import errno
import os
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx2
from huggingface_hub import constants

from rwkv_cli.catalog.hub import proxies

KINDS = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ProxyError)
"""The exceptions of a connection that never came about."""

_NO_NETWORK = {errno.ENETUNREACH, errno.ENETDOWN, errno.EADDRNOTAVAIL}
_OF_THE_HUB = (".huggingface.co", ".hf.co")  # hosts that huggingface.co sends on to


@dataclass(frozen=True)
class Unreachable:
    """Why a connection never came about."""

    reason: str
    advice: str
    may_pass: bool  # False if another attempt in a moment would fail, too
    has_names: bool = True  # False if the name service did not answer


def describe(error: httpx2.TransportError, detail: str) -> Unreachable:
    """What to say about one of `KINDS`; `detail` is its message, for what has no words here."""
    url = _url(error)
    host = url.netloc.decode("ascii", "replace") if url else "the server"
    proxy = proxies.proxy_for(str(url)) if url else None
    failed = next((each for each in _causes(error) if isinstance(each, OSError)), None)
    through = f" through the proxy {proxy.host}, which {proxy.variable} names" if proxy else ""
    if isinstance(failed, ssl.SSLCertVerificationError):
        return Unreachable(
            reason=f"the certificate of {host} is not trusted{through} ({failed.verify_message.lower()})",
            advice="behind a proxy that reads along, SSL_CERT_FILE must name the file of its certificates",
            may_pass=False,
        )
    number = failed.errno if failed else None
    is_lookup = isinstance(failed, socket.gaierror)
    return Unreachable(
        reason=f"{host} cannot be reached{through} ({_why(error, failed, detail)})",
        advice=_advice(url, proxy),
        may_pass=not is_lookup and number not in _NO_NETWORK,
        has_names=not (is_lookup and number == socket.EAI_AGAIN),
    )


def _why(error: httpx2.TransportError, failed: OSError | None, detail: str) -> str:
    if isinstance(failed, socket.gaierror):
        no_answer = failed.errno == socket.EAI_AGAIN
        return (
            "the name service does not answer" if no_answer else "its name is not known to the name service"
        )
    if isinstance(error, httpx2.ConnectTimeout):
        return "it does not answer in time"
    return (failed.strerror or detail).lower() if failed and failed.strerror else detail


def _advice(url: httpx2.URL | None, proxy: proxies.Proxy | None) -> str:
    """What to do about it, naming the variables that decide where a download comes from."""
    ways = [f"correct or unset {proxy.variable}" if proxy else "check the connection"]
    host, hub = url.host if url else "", urlsplit(constants.ENDPOINT).hostname
    if host == hub and os.environ.get("HF_ENDPOINT"):
        ways.append("correct or unset HF_ENDPOINT")
    elif host == hub or host.endswith(_OF_THE_HUB):
        ways.append("set HF_ENDPOINT to a mirror of the hub")
    if not proxy:
        ways.append(f"set {url.scheme.upper() if url else 'HTTPS'}_PROXY to a proxy")
    return ", or ".join(ways)


def _url(error: httpx2.TransportError) -> httpx2.URL | None:
    try:
        return error.request.url
    except RuntimeError:  # httpx2's, for an exception without a request
        return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An exception and those that led to it."""
    seen = set[int]()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__
