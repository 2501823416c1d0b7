"""The proxy that a request goes through, and a transport that sets up no other.

httpx2 sets up every proxy of the environment when a client is made, so that one which no request would use stops them
all. Here the address of each request decides, those that servers send on to as well.

    HTTP_PROXY, HTTPS_PROXY, ALL_PROXY  by the scheme of the address; in lower case they come first, and an empty one
                                        turns off the same one in upper case
    NO_PROXY                            hosts that need none: names with all names below them, with or without a dot in
                                        front, addresses and networks, each perhaps with a port; `*` is all of them

Where none of them is set, the settings of macOS and of Windows count.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import re
import ssl
import threading
import urllib.request
from contextlib import suppress
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit

import httpx2
from huggingface_hub import constants
from huggingface_hub.errors import OfflineModeIsEnabled

from rwkv_cli.errors import UsageError

_SOCKS = ("socks5", "socks5h")
_PORTS = {"http": 80, "https": 443}
_KINDS = ("http", "https", "all", "no")
_SYSTEM = "the system"
_EXCEPTION = re.compile(
    r"(?:(?P<scheme>[a-z]+)://)?(?:\[(?P<bracketed>[^]]*)\]|(?P<host>[^:]*|[^:]*:[^:]*:.*))(?::(?P<port>[0-9]+))?/?"
)
# What httpcore2 says of a proxy that wants to know who asks: over HTTP, and two ways over SOCKS.
_LOGIN = re.compile(r"407\b|Invalid username/password|Requested .* from proxy server, but got")


class Proxy(NamedTuple):
    """What a request goes through."""

    variable: str  # that names it
    host: str  # with its port, if one is given; it may be shown, other than a user and a password


class ProxyLoginError(Exception):
    """A proxy wants a user and a password, or other ones; another attempt would bring the same."""


class Transport(httpx2.BaseTransport):
    """Sends each request through the proxy that the environment names for its address, or through none."""

    def __init__(self, verify: ssl.SSLContext) -> None:
        self._verify = verify
        self._transports = dict[str | None, httpx2.HTTPTransport]()
        self._lock = threading.Lock()

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """The response. Raises UsageError for a proxy that cannot be used, ProxyLoginError, and what httpx2 does."""
        if constants.is_offline_mode():
            raise OfflineModeIsEnabled
        url = str(request.url)
        found = _found(url)
        transport = self._transport(_address(*found) if found else None)
        if found is None:
            return transport.handle_request(request)
        proxy = _shown(*found)
        try:
            response = transport.handle_request(request)
        except (httpx2.ConnectError, httpx2.ProxyError) as error:
            if _LOGIN.match(str(error)):
                raise _login_error(proxy, found[1]) from None
            raise
        except (httpx2.HTTPError, httpx2.InvalidURL):
            raise
        except (
            Exception
        ) as error:  # of socksio, for answers of a proxy of another kind, and assertions of httpcore2
            if urlsplit(found[1]).scheme.startswith("socks"):
                raise httpx2.ProxyError(
                    f"the proxy {proxy.host}, which {proxy.variable} names, does not speak SOCKS",
                    request=request,
                ) from error
            raise
        if response.status_code == 407:
            response.close()
            raise _login_error(proxy, found[1])
        return response

    def close(self) -> None:
        """Close all connections."""
        for transport in self._transports.values():
            transport.close()

    def _transport(self, proxy: str | None) -> httpx2.HTTPTransport:
        with self._lock:
            if proxy not in self._transports:
                self._transports[proxy] = httpx2.HTTPTransport(verify=self._verify, proxy=proxy)
            return self._transports[proxy]


def are_named() -> bool:
    """Whether anything names a proxy, for whatever address."""
    return bool(set(_settings()) - {"no"})


def proxy_for(url: str) -> Proxy | None:
    """The proxy that requests to an address go through, which need not be one that can be used; None for none."""
    found = _found(url)
    return _shown(*found) if found else None


def _shown(variable: str, value: str) -> Proxy:
    return Proxy(variable, value.rpartition("://")[2].rpartition("@")[2].partition("/")[0])


def _login_error(proxy: Proxy, value: str) -> ProxyLoginError:
    what = f"the proxy {proxy.host}, which {proxy.variable} names,"
    if "@" in value:
        return ProxyLoginError(f"{what} refuses the user and the password in its address")
    scheme = value.partition("://")[0] if "://" in value else "http"
    return ProxyLoginError(
        f"{what} wants a user and a password: write them into its address, {scheme}://USER:PASSWORD@{proxy.host}"
    )


# ------------------------------------------------------------------------------------------ what the environment says


def _settings() -> dict[str, tuple[str, str]]:
    """The variable and the value of each kind that is set."""
    found = dict[str, tuple[str, str]]()
    for kind in _KINDS:
        lower = f"{kind}_proxy"
        name = lower if lower in os.environ else lower.upper()
        is_of_a_client = (
            name == "HTTP_PROXY" and "REQUEST_METHOD" in os.environ
        )  # the header Proxy, in a CGI script
        if (value := os.environ.get(name, "").strip()) and not is_of_a_client:
            found[kind] = (name, value)
    if not found:
        found = {
            kind: (_SYSTEM, value) for kind, value in urllib.request.getproxies().items() if kind in _KINDS
        }
    return found


def _found(url: str) -> tuple[str, str] | None:
    """The variable that names the proxy for an address, and its value."""
    parts, settings = urlsplit(url), _settings()
    found = settings.get(parts.scheme) or settings.get("all")
    if found is None or not parts.hostname:
        return None
    if found[0] == _SYSTEM:
        return None if urllib.request.proxy_bypass(parts.hostname) else found
    exceptions = re.split(r"[,\s]+", settings.get("no", ("", ""))[1].lower())
    return None if any(_covers(exception, parts) for exception in exceptions) else found


def _covers(exception: str, url: SplitResult) -> bool:
    """Whether one item of NO_PROXY stands for the host of an address; what cannot be understood stands for none."""
    if exception == "*":
        return True
    with suppress(ValueError):  # as it is: one host, or all addresses of a network
        network = ipaddress.ip_network(exception, strict=False)
        address = _ip_address(url.hostname)
        return address is not None and address in network
    parts = _EXCEPTION.fullmatch(exception)
    if parts is None or parts["scheme"] not in (None, "all", url.scheme):
        return False
    if parts["port"] and int(parts["port"][:6]) != (url.port or _PORTS.get(url.scheme)):
        return False
    name, host = parts["bracketed"] or parts["host"] or "", (url.hostname or "").rstrip(".")
    if (wanted := _ip_address(name)) is not None:
        return wanted == _ip_address(host)
    name = name.removeprefix("*").strip(".")
    return bool(name) and (host == name or (host.endswith(f".{name}") and _ip_address(host) is None))


def _ip_address(text: str | None) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text or "")
    except ValueError:
        return None


def _address(name: str, value: str) -> str:
    """The address of a proxy, as httpx2 wants it. Raises UsageError, which does not show it: it may hold a password."""
    full = value if "://" in value else f"http://{value}"
    try:
        parts = urlsplit(full)
        is_sound = bool(parts.hostname) and parts.port != 0 and value.isprintable() and " " not in value
        httpx2.URL(full)
    except (ValueError, httpx2.InvalidURL):
        is_sound = False
    if not is_sound:
        raise UsageError(f"{name} must be the address of a proxy, such as http://proxy.example:8080")
    scheme = "socks5" if parts.scheme == "socks" else parts.scheme  # GNOME's name for it
    if scheme not in ("http", "https", *_SOCKS):
        raise UsageError(
            f"{name} names a proxy of the kind {scheme[:20]}: it must be http, https, socks5 or socks5h"
        )
    if scheme in _SOCKS and importlib.util.find_spec("socksio") is None:
        raise UsageError(
            f"{name} names a SOCKS proxy, which needs a package more: install it with `pip install socksio`, "
            f"or unset {name}"
        )
    return f"{scheme}://{full.partition('://')[2]}"
