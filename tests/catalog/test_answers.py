"""Servers that send something else than what was asked for: web pages, other JSON, odd headers."""

import json

import pytest
from helpers.hub_server import Fault

from rwkv_cli.catalog import hub as downloads
from rwkv_cli.catalog import reference
from rwkv_cli.catalog.hub import answers, failures
from rwkv_cli.errors import DownloadError, VerificationError

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
