"""Without a network: the message names the host and what may be set, and comes at once."""

import errno
import socket
import ssl
import time

import httpx2
import huggingface_hub
import pytest
from huggingface_hub import constants

from rwkv_cli.catalog import hub as downloads
from rwkv_cli.catalog import reference
from rwkv_cli.catalog.entries import Entry
from rwkv_cli.catalog.hub import failures, mirrors, proxies, transfer, unreachable
from rwkv_cli.catalog.hub.remote import RemoteFile

SILENT = "the name service does not answer"
VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "HF_ENDPOINT")


class Names:
    """A name service that fails, and what it was asked for."""

    def __init__(self):
        self.number = socket.EAI_AGAIN
        self.asked = []

    def __call__(self, host, *_args, **_options):
        self.asked.append(host)
        raise socket.gaierror(self.number, "some words of the system")


@pytest.fixture(autouse=True)
def names(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", "https://huggingface.co")
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        "https://huggingface.co/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(socket, "getaddrinfo", service := Names())
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("a pause, although nothing can be reached"))
    huggingface_hub.close_session()
    yield service
    huggingface_hub.close_session()


def failure_of(text):
    with pytest.raises(failures.OfflineError) as raised:
        downloads.find(reference.parse(text), lambda _: None)
    return str(raised.value)


@pytest.mark.parametrize("text", ["hf:owner/repo", "hf:owner/repo/model.pth"])
@pytest.mark.parametrize(
    ("number", "why"),
    [(socket.EAI_AGAIN, SILENT), (socket.EAI_NONAME, "its name is not known to the name service")],
)
def test_the_hub_is_looked_up_once(names, text, number, why):
    names.number = number
    message = failure_of(text)
    assert names.asked == ["huggingface.co"]
    assert message.endswith(
        f" of owner/repo: huggingface.co cannot be reached ({why}); check the connection, or set HF_ENDPOINT to a "
        "mirror of the hub, or set HTTPS_PROXY to a proxy"
    )


def test_another_server_is_looked_up_once(names):
    assert failure_of("http://example.org:8080/a.gguf") == (
        f"cannot download http://example.org:8080/a.gguf: example.org:8080 cannot be reached ({SILENT}); "
        "check the connection, or set HTTP_PROXY to a proxy"
    )
    assert names.asked == ["example.org"]


def test_the_address_of_a_mirror_of_the_hub_is_named(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/hub")
    monkeypatch.setattr(constants, "ENDPOINT", "https://mirror.example/hub")
    assert (
        f"mirror.example cannot be reached ({SILENT}); check the connection, or correct or unset HF_ENDPOINT"
        in (failure_of("hf:owner/repo"))
    )


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
def test_the_proxy_is_named_without_its_password(names, monkeypatch, variable):
    monkeypatch.setenv(variable, "http://me:S3CRET@proxy.example:3128/")
    assert failure_of("hf:owner/repo").endswith(
        f"huggingface.co cannot be reached through the proxy proxy.example:3128, which {variable} names ({SILENT}); "
        f"correct or unset {variable}, or set HF_ENDPOINT to a mirror of the hub"
    )
    assert names.asked == ["proxy.example"]


@pytest.mark.parametrize(
    ("variables", "url", "expected"),
    [
        ({"HTTP_PROXY": "a:1"}, "https://x.org", None),
        ({"HTTP_PROXY": "a:1"}, "http://x.org", ("HTTP_PROXY", "a:1")),
        ({"ALL_PROXY": "a:1", "HTTPS_PROXY": "http://b/"}, "https://x.org", ("HTTPS_PROXY", "b")),
        ({"HTTPS_PROXY": "a:1", "NO_PROXY": "x.org"}, "https://x.org:8", None),
        ({"HTTPS_PROXY": "a:1", "NO_PROXY": "x.org"}, "https://y.org", ("HTTPS_PROXY", "a:1")),
        ({"HTTPS_PROXY": "a:1", "NO_PROXY": "*"}, "https://y.org", None),
    ],
)
def test_which_proxy_is_used(monkeypatch, variables, url, expected):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert proxies.proxy_for(url) == expected


def known(*mirror):
    entry = Entry(
        name="m", description="", repository="owner/repo", file="m.pth", sha256="0" * 64, mirrors=mirror
    )
    return reference.of_entry(entry)


def obtain(*mirror):
    notes = []
    with pytest.raises(failures.OfflineError) as raised:
        mirrors.obtain(known(*mirror), None, lambda _: None, lambda *_: None, notes.append)
    return str(raised.value), notes


def test_a_host_of_mirrors_is_asked_once(names):
    message, notes = obtain("https://a.org/1", "https://a.org/2", "https://b.org/1")
    assert names.asked == ["huggingface.co", "a.org", "b.org"]
    assert [note.rpartition(" ")[2] for note in notes] == ["a.org", "b.org"]
    assert (
        f"its mirrors failed too: a.org cannot be reached ({SILENT}), b.org cannot be reached ({SILENT})"
        in message
    )
    assert message.endswith("or set HF_ENDPOINT to a mirror of the hub, or set HTTPS_PROXY to a proxy")


def test_no_mirror_is_asked_where_no_name_is_found_for_seconds(names, monkeypatch):
    clock = iter((100.0, 110.0))
    monkeypatch.setattr(mirrors.time, "monotonic", lambda: next(clock, 110.0))
    message, notes = obtain("https://a.org/1")
    assert (names.asked, notes) == (["huggingface.co"], [])
    assert f"huggingface.co cannot be reached ({SILENT}); check the connection" in message


def described(cause, kind=httpx2.ConnectError):
    error = kind("words of the library", request=httpx2.Request("GET", "https://huggingface.co/x"))
    error.__cause__ = cause
    return unreachable.describe(error, "words of the library")


@pytest.mark.parametrize(
    ("number", "may_pass"),
    [(errno.ENETUNREACH, False), (errno.ECONNREFUSED, True), (errno.EHOSTUNREACH, True)],
)
def test_a_network_that_is_not_there_is_not_asked_again(number, may_pass):
    found = described(OSError(number, "Some Words"))
    assert (found.reason, found.may_pass) == ("huggingface.co cannot be reached (some words)", may_pass)


def test_other_reasons():
    assert described(None, httpx2.ConnectTimeout).reason.endswith("reached (it does not answer in time)")
    assert described(None, httpx2.ProxyError).reason.endswith("reached (words of the library)")
    untrusted = ssl.SSLCertVerificationError(1, "[SSL] words")
    untrusted.verify_message = "self-signed certificate"
    found = described(untrusted)
    assert found.reason == "the certificate of huggingface.co is not trusted (self-signed certificate)"
    assert "SSL_CERT_FILE" in found.advice
    assert not found.may_pass


def test_names_that_fail_after_an_answer_are_looked_up_again(names, tmp_path, monkeypatch):
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    file = RemoteFile("a.pth", "https://huggingface.co/a.pth", "a.pth", 10, sha256="0" * 64)
    part = tmp_path / "a.part"
    part.write_bytes(b"abc")
    moved = transfer.Transfer(file, part, lambda *_: None, lambda _: None)
    moved._has_answered = True
    with pytest.raises(failures.OfflineError, match=r"\); what has arrived is kept; check the connection"):
        moved.run()
    assert len(names.asked) == failures.TRIES
    assert len(pauses) == failures.TRIES - 1
    assert part.read_bytes() == b"abc"
