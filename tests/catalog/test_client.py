"""What the environment says of the hub, of proxies, certificates and tokens: an error names the variable."""

import os
import subprocess

import huggingface_hub
import pytest
from conftest import RWKV
from huggingface_hub import constants

from rwkv_cli.catalog import hub as downloads
from rwkv_cli.catalog import reference
from rwkv_cli.catalog.hub import client, failures
from rwkv_cli.errors import DownloadError, UsageError

DATA = b"a model" * 1000
pytestmark = pytest.mark.usefixtures("hub")
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


@pytest.fixture
def hub(local_hub, monkeypatch):
    for name in (*PROXIES, *CERTIFICATES):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    local_hub.files["owner/repo"] = {"model.pth": DATA}
    local_hub.plain["model.pth"] = DATA
    huggingface_hub.close_session()
    yield local_hub
    huggingface_hub.close_session()


def bring(text="hf:owner/repo"):
    remote = downloads.find(reference.parse(text), lambda _: None)
    return downloads.fetch(remote, lambda *_: None, lambda _: None).path.read_bytes()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("HF_HUB_DOWNLOAD_TIMEOUT", value) for value in ("abc", "-1", "1.5", "²", "9" * 5000, "86401")),
        ("HF_HUB_ETAG_TIMEOUT", "ten"),
        *(
            ("HF_ENDPOINT", value)
            for value in ("host:1", "http://[::1", "ftp://x", "http://x?a", "http://x:y")
        ),
        *(("HF_HUB_USER_AGENT_ORIGIN", value) for value in ("é", "a\nb")),
    ],
)
def test_a_setting_that_cannot_be_used(name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=f"^{name} is '") as raised:
        client.check_settings()
    assert len(str(raised.value)) < 220


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HF_HUB_DOWNLOAD_TIMEOUT", "60"),
        ("HF_HUB_ETAG_TIMEOUT", ""),
        ("HF_ENDPOINT", ""),
        ("HF_ENDPOINT", "https://user:pw@mirror.example:8080/hub"),
    ],
)
def test_a_setting_that_can_be_used(name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    client.check_settings()


def test_a_setting_is_checked_before_the_library_reads_it():
    environment = os.environ | {"HF_HUB_DOWNLOAD_TIMEOUT": "abc"}
    done = subprocess.run([*RWKV, "pull", "hf:me/tiny"], env=environment, capture_output=True, text=True)
    sentence = "HF_HUB_DOWNLOAD_TIMEOUT is 'abc': it must be a whole number of seconds, at most 86,400"
    assert (done.returncode, done.stderr) == (2, f"rwkv: {sentence}\n")


@pytest.mark.parametrize("name", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"])
@pytest.mark.parametrize("token", ["hf_S3CRETé", "hf_S3 CRET", "hf_S3CRET\x07"])
def test_a_token_that_cannot_be_sent(monkeypatch, name, token):
    monkeypatch.setenv(name, token)
    with pytest.raises(UsageError, match=f"^{name} holds characters that no token has") as raised:
        bring()
    assert "S3" not in str(raised.value)


@pytest.mark.parametrize("content", [b"hf_S3CRET\xff", "hf_S3CRETé".encode()])
def test_a_file_with_a_token_that_cannot_be_sent(monkeypatch, tmp_path, content):
    file = tmp_path / "token"
    file.write_bytes(content)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(file))
    with pytest.raises(UsageError, match="token") as raised:
        bring()
    assert str(file) in str(raised.value)
    assert "S3CRET" not in str(raised.value)


def test_line_breaks_around_a_token_are_left_out(hub, monkeypatch):
    hub.token = "hf_x"
    monkeypatch.setenv("HF_TOKEN", " hf_x\r\n")
    assert bring() == DATA


@pytest.mark.parametrize(
    "text",
    [
        "Illegal header value b'Bearer S3CRET\\n'",
        "authorization: bearer S3CRET",
        "no host in https://me:S3CRET@x/y",
        "token hf_S3CRETS3CRET",
        "Basic S3CRET=",
        "error for url (https://cas.example/x?X-Amz-Signature=S3CRET&z=1)",
        "cannot parse http://me:S3/CRET:S3CRET@x/y",
    ],
)
def test_errors_of_libraries_show_no_secrets(text):
    assert "S3CRET" not in failures.reason_of(ValueError(text))


def test_errors_of_libraries_show_whom_they_asked():
    error = ValueError("error for url (https://me:S3CRET@cas.example/x?X-Amz-Signature=S3CRET&z=1)")
    assert failures.reason_of(error) == "error for url (https://cas.example/x"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ALL_PROXY", "socks5://127.0.0.1:9"),
        ("HTTPS_PROXY", "ftp://x"),
        ("SSL_CERT_FILE", "/nonexistent"),
        ("HF_TOKEN", "hf_é"),
    ],
)
def test_offline_no_setting_of_the_network_matters(monkeypatch, name, value):
    kept = reference.parse("hf:owner/repo")
    downloads.keep(downloads.fetch(downloads.find(kept, print), lambda *_: None, print), print)
    huggingface_hub.close_session()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv(name, value)
    assert bring() == DATA
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE is set, and it is not in the cache"):
        bring("hf:owner/repo/other.pth")
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE is set"):
        bring("https://example.org/x.pth")


def test_the_hub_is_asked_for_nothing_else(hub):
    bring()
    assert all(
        "/api/models/owner/repo" in path or "/resolve/" in path or "/lfs/" in path
        for _, path, _ in hub.requests
    )
