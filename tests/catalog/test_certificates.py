"""The certificates that servers are checked by, and the variables that name them."""

import http.server
import os
import shutil
import ssl
import subprocess
import threading
import time

import huggingface_hub
import pytest
from huggingface_hub import constants

from rwkv_cli.catalog import hub as downloads
from rwkv_cli.catalog import reference
from rwkv_cli.catalog.hub import certificates
from rwkv_cli.errors import DownloadError, UsageError

DATA = b"a model" * 1000
FILES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
FOLDERS = ("SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
pytestmark = pytest.mark.usefixtures("local_hub")


@pytest.fixture(autouse=True)
def no_settings(monkeypatch):
    for name in (*FILES, "SSL_CERT_DIR", *PROXIES):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    huggingface_hub.close_session()
    yield
    huggingface_hub.close_session()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A file with a certificate of localhost, and one with its key."""
    if not (program := shutil.which("openssl")):
        pytest.skip("needs openssl")
    folder = tmp_path_factory.mktemp("certificate")
    made, key = folder / "own.pem", folder / "key.pem"
    command = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    names = ("-addext", "subjectAltName=DNS:localhost")
    subprocess.run(
        [program, *command.split(), *names, "-keyout", key, "-out", made], check=True, capture_output=True
    )
    return made, key


@pytest.fixture
def address(certificate):
    """An address that only those who trust the certificate can download."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(DATA)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(DATA)

        def do_HEAD(self):
            self.do_GET()

        def log_message(self, *_):
            pass

    made, key = certificate
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made, key)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"https://localhost:{server.server_port}/model.pth"
    server.shutdown()
    server.server_close()


@pytest.fixture
def folder(certificate, tmp_path):
    """A folder with the certificate, under the name that OpenSSL looks for."""
    made, _ = certificate
    command = ["openssl", "x509", "-hash", "-noout", "-in", made]
    name = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    target = tmp_path / "certificates"
    target.mkdir()
    shutil.copy(made, target / f"{name}.0")
    return target


def bring(text="hf:owner/repo"):
    remote = downloads.find(reference.parse(text), lambda _: None)
    return downloads.fetch(remote, lambda *_: None, lambda _: None).path.read_bytes()


def test_others_are_not_trusted(address):
    with pytest.raises(DownloadError, match=r"is not trusted.*SSL_CERT_FILE"):
        bring(address)


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_certificates(address, certificate, monkeypatch, name):
    monkeypatch.setenv(name, str(certificate[0]))
    assert bring(address) == DATA


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_of_certificates(address, folder, monkeypatch, name):
    monkeypatch.setenv(name, str(folder))
    assert bring(address) == DATA


def test_folders_of_which_one_is_there(address, folder, monkeypatch):
    monkeypatch.setenv("SSL_CERT_DIR", f"/nonexistent{os.pathsep}{folder}")
    assert bring(address) == DATA


def test_those_of_openssl_come_first(address, certificate, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    for name in ("SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.setenv(name, "/nonexistent")
    assert certificates.variable() == "SSL_CERT_FILE"
    assert bring(address) == DATA
    monkeypatch.setenv("SSL_CERT_FILE", "")
    assert certificates.variable() == "SSL_CERT_DIR"
    monkeypatch.delenv("SSL_CERT_DIR")
    assert certificates.variable() == "REQUESTS_CA_BUNDLE"


@pytest.mark.parametrize(
    ("kind", "reason", "names"),
    [
        ("missing", "no such file or directory", [*FILES, "SSL_CERT_DIR"]),
        ("junk", "there are none in it", FILES),
        ("empty", "there are none in it", FILES),
        ("junk", "not a directory", ["SSL_CERT_DIR"]),
        ("folder", "is a directory", ["SSL_CERT_FILE"]),
        ("folder", "no names in it that `openssl rehash` makes", FOLDERS),
    ],
)
def test_certificates_that_are_none(monkeypatch, tmp_path, kind, reason, names):
    place = tmp_path / "own.pem"
    if kind == "folder":
        place.mkdir()
        (place / "a.pem").write_text("junk")
    elif kind != "missing":
        place.write_text(kind.replace("empty", ""))
    for name in names:
        monkeypatch.setenv(name, str(place))
        huggingface_hub.close_session()
        with pytest.raises(UsageError) as raised:
            bring()
        wanted = "folder" if name == "SSL_CERT_DIR" else "file"
        assert str(raised.value) == (
            f"the certificates of {name}='{place}' cannot be read ({reason}): "
            f"unset {name}, or set it to the {wanted} of your certificates"
        )
        monkeypatch.delenv(name)


def test_offline_no_certificates_are_needed(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("SSL_CERT_DIR", "/nonexistent")
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE is set"):
        bring()


def test_the_certificates_of_the_system(monkeypatch):
    def refuse():
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("rwkv_cli.catalog.hub.client.get_session", refuse)
    with pytest.raises(UsageError, match=r"^the system's certificates cannot be read \(permission denied\)$"):
        bring()
