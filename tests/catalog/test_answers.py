"""Servers that send something else than what was asked for: web pages, other JSON, odd headers."""

import json

import pytest
from helpers.hub_server import Fault

from rwkv_cli.catalog import hub as downloads
from rwkv_cli.catalog import reference
from rwkv_cli.catalog.hub import answers, failures, transfer
from rwkv_cli.errors import DownloadError, StorageError, VerificationError

PAGE = b"\n<!DOCTYPE html><html><title>Log in</title></html>"
DATA = bytes(range(256)) * 100


@pytest.fixture
def hub(local_hub):
    local_hub.files["owner/repo"] = {"model.pth": DATA, "README.md": b"x"}
    return local_hub


def bring(text):
    remote = downloads.find(reference.parse(text), lambda _: None)
    return downloads.fetch(remote, lambda *_: None, lambda _: None).path.read_bytes()


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/octet-stream"])
def test_a_web_page_in_place_of_a_file(hub, kind, tmp_path):
    hub.plain["model.pth"] = PAGE
    hub.faults.extend([Fault(headers={"Content-Type": kind})])
    with pytest.raises(
        DownloadError, match=r"model\.pth: 127\.0\.0\.1 sends a web page in its place"
    ) as raised:
        bring(f"{hub.endpoint}/plain/model.pth")
    assert not isinstance(raised.value, VerificationError)
    assert not [path for path in tmp_path.rglob("*.pth") if path.is_file()]


def test_a_login_page_keeps_what_has_arrived(hub):
    login = Fault(headers={"Content-Type": "text/html"}, no_ranges=True)
    hub.faults.extend([Fault(cut_after=20_000), login])
    with pytest.raises(DownloadError, match="a web page in its place"):
        bring("hf:owner/repo/model.pth")
    assert bring("hf:owner/repo/model.pth") == DATA
    assert hub.gets()[-1][2]["Range"] == "bytes=20000-"


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (PAGE, "sends a web page in its place"),
        (b"", "the list of files of owner/repo is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"9" * 5000, "is not valid JSON"),
        (b"\xff\xfe\x00", "is not valid JSON"),
        *(
            (json.dumps(value).encode(), "HF_ENDPOINT must be the address of a hub")
            for value in (
                [],
                None,
                "x",
                7,
                {"error": "x"},
                {"siblings": None},
                {"siblings": {}},
                {"siblings": [{}]},
                {"siblings": [None]},
                {"siblings": ["model.pth"]},
                {"siblings": [{"rfilename": 7}]},
                {"siblings": [{"rfilename": "a.pth"}], "sha": 7},
                {"siblings": [{"rfilename": "a.pth"}], "sha": ["a"]},
            )
        ),
    ],
)
def test_what_is_no_list_of_files(hub, body, problem):
    hub.listing_body = body
    with pytest.raises(DownloadError, match=problem):
        bring("hf:owner/repo")


def test_fields_that_are_not_used_may_hold_anything(hub):
    siblings = [{"rfilename": "model.pth", "size": "x", "lfs": 7}]
    about = {
        "id": 7,
        "sha": "..",
        "siblings": siblings,
        "lastModified": "2025-01-02T03:04:05+00:00",
        "tags": 1,
    }
    hub.listing_body = json.dumps(about).encode()
    assert bring("hf:owner/repo") == DATA


def test_a_list_of_files_has_a_limit(hub, monkeypatch):
    monkeypatch.setattr(answers, "_MAX_JSON", 1000)
    hub.listing_body = b" " * 1001
    with pytest.raises(DownloadError, match="it is too large to be a list of files"):
        bring("hf:owner/repo")


@pytest.mark.parametrize(
    "index", [[], {}, {"weight_map": []}, {"weight_map": {"a": 7}}, {"weight_map": {"a": "../b"}}]
)
def test_an_index_that_lists_no_weights(hub, index):
    hub.files["owner/repo"] = {
        "model.safetensors.index.json": json.dumps(index).encode(),
        "config.json": b"{}",
    }
    with pytest.raises(DownloadError, match=r"lists no weight files|is missing"):
        bring("hf:owner/repo")


@pytest.mark.parametrize("text", ["", "x", "-1", "1.5", "²", "9" * 5000, " 7"])
def test_a_length_that_is_none(text):
    assert answers.count(text) is None


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("7", 7), ("007", 7), ("0", 0), ("-5", None), ("²", None), ("x", None), ("", None), ("1e9", None)],
)
def test_how_long_a_server_asks_to_wait(value, seconds):
    assert failures.retry_after({"Retry-After": value}) == seconds


@pytest.mark.parametrize("value", ["9" * 5000, "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_a_server_that_asks_to_wait_for_years(hub, value):
    hub.refusals.append(Fault(status=503, headers={"Retry-After": value}))
    with pytest.raises(DownloadError, match="the server asks to wait"):
        bring("hf:owner/repo")


@pytest.mark.parametrize("value", ["-5", "x", "Thu, 01 Jan 1970 00:00:00 GMT"])
def test_a_time_to_wait_that_is_none_or_over(hub, value):
    hub.refusals.append(Fault(status=503, headers={"Retry-After": value}))
    assert bring("hf:owner/repo") == DATA


@pytest.mark.parametrize("with_lengths", [True, False])
@pytest.mark.parametrize("text", ["hf:owner/repo/model.pth", "plain"])
def test_an_empty_file_is_called_empty(hub, text, with_lengths, tmp_path):
    hub.plain["model.pth"] = hub.files["owner/repo"]["model.pth"] = b""
    hub.with_lengths = with_lengths
    with pytest.raises(DownloadError, match="the file on the server is empty"):
        bring(text if text != "plain" else f"{hub.endpoint}/plain/model.pth")
    assert not list(tmp_path.rglob("*.rwkv-part"))


def test_an_empty_file_beside_the_weights(hub):
    hub.files["owner/repo"] = {"model.safetensors": DATA, "chat_template.jinja": b""}
    remote = downloads.find(reference.parse("hf:owner/repo"), lambda _: None)
    fetched = downloads.fetch(remote, lambda *_: None, lambda _: None)
    assert {file.name: file.read_bytes() for file in fetched.files} == hub.files["owner/repo"]


def test_a_file_of_unknown_length_has_a_limit(hub, monkeypatch):
    hub.plain["model.pth"], hub.with_lengths = DATA, False
    monkeypatch.setattr(transfer, "_CHECKED_EVERY", 1)
    monkeypatch.setattr(transfer, "LARGEST", len(DATA) - 1)
    with pytest.raises(DownloadError, match="does not say how long it is, and sends more than"):
        bring(f"{hub.endpoint}/plain/model.pth")
    monkeypatch.setattr(transfer, "LARGEST", len(DATA))
    assert bring(f"{hub.endpoint}/plain/model.pth") == DATA


def test_a_file_of_unknown_length_does_not_fill_the_disk(hub, monkeypatch):
    hub.plain["model.pth"], hub.with_lengths = DATA, False
    monkeypatch.setattr(transfer, "LEFT_FREE", 1 << 60)
    with pytest.raises(StorageError, match=r"are free on the disk of .*downloads"):
        bring(f"{hub.endpoint}/plain/model.pth")
    hub.with_lengths = True
    assert bring(f"{hub.endpoint}/plain/model.pth") == DATA


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        (
            "file:///etc/passwd",
            "sends on to an address of the kind file://, and only http and https are followed",
        ),
        ("file:/etc/passwd", "sends on to an address of the kind file://"),
        ("ftp://127.0.0.1/x", "sends on to an address of the kind ftp://"),
        (f"{'x' * 5000}://127.0.0.1/x", "sends on to an address of the kind x{20}://"),
        ("javascript:x", "Invalid URL in location header"),
        ("http://[::1", "cannot download"),
        ("http://127.0.0.1:99999/x", "cannot download"),
        ("/owner/repo/resolve/main/model.pth", "redirects"),
        ("//", "cannot download"),
    ],
)
@pytest.mark.parametrize("text", ["hf:owner/repo", "hf:owner/repo/model.pth"])
def test_a_redirect_that_leads_nowhere(hub, target, problem, text):
    hub.refusals.extend(Fault(status=302, headers={"Location": target}) for _ in range(100))
    with pytest.raises(DownloadError, match=problem) as raised:
        bring(text)
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Range": "bytes 0-9/" + "9" * 5000},
        {"Content-Range": "bytes 5-9/10"},
        {"Content-Range": "x"},
        {"Content-Range": "bytes ²-9/10"},
        {},
    ],
)
def test_odd_ranges(hub, headers):
    cut = Fault(cut_after=10_000)
    hub.faults.extend([cut, *[Fault(status=206, headers=headers)] * 2])
    assert bring("hf:owner/repo/model.pth") == DATA


@pytest.mark.parametrize("name", ["..", "../x", ".", "a/b", "x" * 5000, "²"])
def test_commits_that_are_no_names(hub, name, tmp_path):
    hub.commit = name.encode("latin-1", "replace").decode("latin-1")
    fetched = downloads.fetch(
        downloads.find(reference.parse("hf:owner/repo/model.pth"), lambda _: None),
        lambda *_: None,
        lambda _: None,
    )
    assert fetched.remote.commit is None
    assert fetched.path.is_relative_to(tmp_path / "hf" / "assets")
