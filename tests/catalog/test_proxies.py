"""Proxies: which one a request goes through, and what is said of one that fails."""

import importlib.util
import socketserver
import time

import huggingface_hub
import pytest
from helpers.proxy_server import HttpProxy, SocksProxy, serving

from rwkv_cli.catalog import hub as downloads
from rwkv_cli.catalog import reference
from rwkv_cli.catalog.hub import client, proxies
from rwkv_cli.errors import DownloadError, UsageError

DATA = b"a model" * 1000
VARIABLES = [f"{kind}_PROXY" for kind in ("HTTP", "HTTPS", "ALL", "NO")]
CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
DEAD = "http://127.0.0.1:9"
needs_socks = pytest.mark.skipif(
    importlib.util.find_spec("socksio") is None, reason="needs the extra `socks`"
)
pytestmark = pytest.mark.usefixtures("hub")


@pytest.fixture
def hub(local_hub, monkeypatch):
    for name in (*VARIABLES, *CERTIFICATES, "REQUEST_METHOD"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    local_hub.files["owner/repo"] = {"model.pth": DATA}
    local_hub.plain["model.pth"] = DATA
    huggingface_hub.close_session()
    yield local_hub
    huggingface_hub.close_session()


@pytest.fixture
def socks():
    with serving(SocksProxy) as asked:
        yield asked


@pytest.fixture
def proxy():
    with serving(HttpProxy) as asked:
        yield asked


def bring(text="hf:owner/repo"):
    remote = downloads.find(reference.parse(text), lambda _: None)
    return downloads.fetch(remote, lambda *_: None, lambda _: None).path.read_bytes()


def hosts_of(hub):
    """The hub and its storage, to which it sends on."""
    return {address.partition("://")[2].partition("/")[0] for address in (hub.endpoint, hub.storage_address)}


# ------------------------------------------------------------------------------------------ which one


@pytest.mark.parametrize(
    "unused", ["socks5://127.0.0.1:9", "socks4://h:1", "ftp://h", "http://me:S3CRET@h:x", ":::", "socks://h"]
)
@pytest.mark.parametrize("text", ["hf:owner/repo", "hf:owner/repo/model.pth", "plain"])
def test_a_proxy_that_is_not_used_stops_nothing(hub, proxy, monkeypatch, unused, text):
    monkeypatch.setattr(proxies.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setenv("ALL_PROXY", unused)
    monkeypatch.setenv("HTTPS_PROXY", unused)
    monkeypatch.setenv("http_proxy", f"127.0.0.1:{proxy.port}")
    assert bring(text if text != "plain" else f"{hub.endpoint}/plain/model.pth") == DATA
    assert proxy.hosts
    assert set(proxy.hosts) <= hosts_of(hub)


@pytest.mark.parametrize("excepted", ["*", "127.0.0.1", "x.y,127.0.0.1", "127.0.0.0/8", "a b, 127.0.0.1 c"])
@pytest.mark.parametrize("name", ["NO_PROXY", "no_proxy"])
@pytest.mark.parametrize("value", [DEAD, "socks5://h:x", "ftp://h"])
def test_hosts_that_need_no_proxy(monkeypatch, name, value, excepted):
    monkeypatch.setenv("ALL_PROXY", value)
    monkeypatch.setenv(name, excepted)
    assert bring() == DATA


def test_a_host_with_its_port_needs_no_proxy(hub, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", DEAD)
    monkeypatch.setenv("NO_PROXY", ",".join(hosts_of(hub)))
    assert bring() == DATA
    host, _, port = hub.endpoint.partition("://")[2].partition(":")
    monkeypatch.setenv("NO_PROXY", f"{host}:{int(port) - 1}")
    with pytest.raises(DownloadError):
        bring()


HUB = "https://huggingface.co/x"


@pytest.mark.parametrize(
    ("excepted", "url", "is_covered"),
    [
        ("huggingface.co", HUB, True),
        ("HuggingFace.CO", HUB, True),
        (".huggingface.co", HUB, True),
        ("*.huggingface.co", HUB, True),
        ("co", HUB, True),
        (".co.", HUB, True),
        ("huggingface.co:443", HUB, True),
        ("huggingface.co:80", HUB, False),
        ("huggingface.co:80", "http://huggingface.co/x", True),
        ("huggingface.co:8080", "http://huggingface.co:8080/x", True),
        ("https://huggingface.co", HUB, True),
        ("http://huggingface.co", HUB, False),
        ("huggingface.co", "https://cdn.huggingface.co/x", True),
        ("face.co", HUB, False),
        ("hf.co", HUB, False),
        ("cdn.huggingface.co", HUB, False),
        ("", HUB, False),
        (".", HUB, False),
        (",,", HUB, False),
        ("[", HUB, False),
        ("10.0.0.1", "http://10.0.0.1:8/x", True),
        ("10.0.0.1:8", "http://10.0.0.1:8/x", True),
        ("10.0.0.1:9", "http://10.0.0.1:8/x", False),
        ("10.0.0.1", "http://10.0.0.2/x", False),
        ("0.1", "http://10.0.0.1/x", False),
        ("10.0.0.0/8", "http://10.9.9.9/x", True),
        ("10.0.0.0/99", "http://10.9.9.9/x", False),
        ("10.0.0.0/8", HUB, False),
        ("::1", "http://[::1]:8/x", True),
        ("[::1]", "http://[0:0::1]/x", True),
        ("[::1]:8", "http://[::1]:8/x", True),
        ("[::1]:9", "http://[::1]:8/x", False),
        ("fe80::/10", "http://[fe80::7]/x", True),
        ("localhost", "http://localhost:8/x", True),
    ],
)
@pytest.mark.parametrize("name", ["NO_PROXY", "no_proxy"])
def test_what_no_proxy_covers(monkeypatch, name, excepted, url, is_covered):
    monkeypatch.setenv("ALL_PROXY", "http://p:1")
    monkeypatch.setenv(name, f"other.example, {excepted}")
    assert proxies.proxy_for(url) == (None if is_covered else ("ALL_PROXY", "p:1"))


@pytest.mark.parametrize(
    ("variables", "url", "expected"),
    [
        ({}, HUB, None),
        ({"HTTP_PROXY": "a:1"}, HUB, None),
        ({"ALL_PROXY": "a:1", "HTTPS_PROXY": "http://me:pw@b/"}, HUB, ("HTTPS_PROXY", "b")),
        ({"ALL_PROXY": "a:1", "HTTPS_PROXY": "b:1"}, "http://x.org", ("ALL_PROXY", "a:1")),
        ({"HTTPS_PROXY": "a:1", "https_proxy": "b:1"}, HUB, ("https_proxy", "b:1")),
        ({"HTTPS_PROXY": "a:1", "https_proxy": ""}, HUB, None),
        ({"HTTPS_PROXY": "  ", "ALL_PROXY": "a:1"}, HUB, ("ALL_PROXY", "a:1")),
        ({"HTTPS_PROXY": "a:1", "NO_PROXY": "huggingface.co", "no_proxy": "x"}, HUB, ("HTTPS_PROXY", "a:1")),
        ({"HTTP_PROXY": "a:1", "REQUEST_METHOD": "GET"}, "http://x.org", None),
        ({"http_proxy": "a:1", "REQUEST_METHOD": "GET"}, "http://x.org", ("http_proxy", "a:1")),
    ],
)
def test_which_proxy_is_used(monkeypatch, variables, url, expected):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert proxies.proxy_for(url) == expected


def test_the_settings_of_the_system_count_where_there_are_no_variables(monkeypatch):
    monkeypatch.setattr(proxies.urllib.request, "getproxies", lambda: {"https": "http://s:1", "ftp": "x"})
    monkeypatch.setattr(proxies.urllib.request, "proxy_bypass", lambda host: host == "near.example")
    assert proxies.proxy_for(HUB) == ("the system", "s:1")
    assert proxies.proxy_for("https://near.example/x") is None
    monkeypatch.setenv("HTTP_PROXY", "a:1")
    assert proxies.proxy_for(HUB) is None


def test_the_address_that_a_server_sends_on_to_has_its_own_proxy(hub, proxy, monkeypatch):
    storage = hub.storage_address.partition("://")[2]
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.port}")
    monkeypatch.setenv("NO_PROXY", hub.endpoint.partition("://")[2])
    assert bring() == DATA
    assert set(proxy.hosts) == {storage}


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("socks4://h:1", "names a proxy of the kind socks4"),
        ("ftp://h", "names a proxy of the kind ftp"),
        ("socks5h://me:S3CRET@h:1", r"names a SOCKS proxy.*pip install socksio.*or unset"),
        ("SOCKS://h:1", r"names a SOCKS proxy.*pip install socksio"),
        *(
            (value, "must be the address of a proxy")
            for value in (
                "http://me:S3CRET@h:x",
                ":::",
                "http://",
                "h:99999",
                "http://[S3CRET",
                "a b",
                "http://é\u2028x",
            )
        ),
    ],
)
@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
@pytest.mark.parametrize("text", ["hf:owner/repo", "hf:owner/repo/model.pth", "plain"])
def test_a_proxy_that_cannot_be_used(hub, monkeypatch, name, value, problem, text):
    monkeypatch.setattr(proxies.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=f"^{name} {problem}") as raised:
        bring(text if text != "plain" else f"{hub.endpoint}/plain/model.pth")
    assert "S3CRET" not in str(raised.value)


def test_the_client_of_another_program_stays_where_nothing_is_set(monkeypatch):
    monkeypatch.setattr(client, "_install", lambda: pytest.fail("it is replaced"))
    assert bring() == DATA


# ------------------------------------------------------------------------------------------ SOCKS


@needs_socks
@pytest.mark.parametrize("scheme", ["socks5", "socks5h", "socks", "Socks"])
@pytest.mark.parametrize("name", ["ALL_PROXY", "http_proxy"])
def test_a_socks_proxy(hub, socks, monkeypatch, scheme, name):
    monkeypatch.setenv(name, f"{scheme}://127.0.0.1:{socks.port}")
    assert bring() == DATA
    assert set(socks.hosts) == hosts_of(hub)


@needs_socks
def test_a_socks_proxy_with_a_login(socks, monkeypatch):
    socks.login = ("me", "S3C@RET")
    monkeypatch.setenv("ALL_PROXY", f"socks5://me:S3C%40RET@127.0.0.1:{socks.port}")
    assert bring() == DATA


@needs_socks
@pytest.mark.parametrize(
    ("login", "problem"),
    [
        (
            "",
            r"wants a user and a password: write them into its address, socks5://USER:PASSWORD@127.0.0.1:\d+$",
        ),
        ("me:S3CRET@", "refuses the user and the password in its address$"),
    ],
)
def test_a_socks_proxy_that_wants_another_login(socks, monkeypatch, login, problem):
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it is asked again"))
    socks.login = ("me", "other")
    monkeypatch.setenv("ALL_PROXY", f"socks5://{login}127.0.0.1:{socks.port}")
    with pytest.raises(
        DownloadError, match=rf"the proxy 127.0.0.1:{socks.port}, which ALL_PROXY names, {problem}"
    ):
        bring()


@needs_socks
@pytest.mark.parametrize(
    "answer", [b"", b"\x05", b"\x04\x00", b"\x05\x09", b"HTTP/1.0 400 Bad Request\r\n\r\n"]
)
def test_a_proxy_that_does_not_speak_socks(monkeypatch, answer):
    class Other(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.recv(100)
            self.request.sendall(answer)

    monkeypatch.setattr(time, "sleep", lambda _: None)
    with serving(Other) as other:
        monkeypatch.setenv("ALL_PROXY", f"socks5://127.0.0.1:{other.port}")
        with pytest.raises(
            DownloadError,
            match=rf"the proxy 127.0.0.1:{other.port}, which ALL_PROXY names, does not speak SOCKS",
        ):
            bring()


# ------------------------------------------------------------------------------------------ what fails


@pytest.mark.parametrize("name", ["HTTP_PROXY", "all_proxy"])
@pytest.mark.parametrize("text", ["hf:owner/repo", "hf:owner/repo/model.pth", "plain"])
@pytest.mark.parametrize("host", ["127.0.0.1:9", "nobody.invalid:3128"])
def test_a_proxy_that_cannot_be_reached_is_named(hub, monkeypatch, name, text, host):
    monkeypatch.setattr(time, "sleep", lambda _: None)
    monkeypatch.setenv(name, f"http://me:S3CRET@{host}/")
    with pytest.raises(DownloadError, match=rf"through the proxy {host}, which {name} names") as raised:
        bring(text if text != "plain" else f"{hub.endpoint}/plain/model.pth")
    assert "S3CRET" not in str(raised.value)


@pytest.mark.parametrize(
    ("login", "problem"),
    [
        (
            "",
            r"wants a user and a password: write them into its address, http://USER:PASSWORD@127.0.0.1:\d+$",
        ),
        ("me:S3CRET@", "refuses the user and the password in its address$"),
    ],
)
@pytest.mark.parametrize(
    "text", ["hf:owner/repo", "hf:owner/repo/model.pth", "http://h.invalid/a.pth", "https"]
)
def test_a_proxy_that_wants_a_login_is_asked_once(proxy, monkeypatch, text, login, problem):
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it is asked again"))
    proxy.login = ("me", "other")
    for name in ("HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, f"http://{login}127.0.0.1:{proxy.port}")
    name = "HTTPS_PROXY" if text == "https" else "HTTP_PROXY"
    with pytest.raises(
        DownloadError, match=rf"the proxy 127.0.0.1:{proxy.port}, which {name} names, {problem}"
    ):
        bring("https://h.invalid/a.pth" if text == "https" else text)
    assert len(proxy.hosts) == 1


def test_what_is_cached_is_used_where_the_proxy_wants_a_login(proxy, monkeypatch):
    kept = reference.parse("hf:owner/repo")
    downloads.keep(downloads.fetch(downloads.find(kept, print), lambda *_: None, print), print)
    proxy.login = ("me", "other")
    monkeypatch.setenv("HTTP_PROXY", f"127.0.0.1:{proxy.port}")
    assert bring() == DATA
