"""Downloads from a server that fails in the ways that networks do; see hub_server."""

import hashlib
import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from helpers.hub_server import Fault
from huggingface_hub import constants

from rwkv_cli.catalog import hub as downloads
from rwkv_cli.catalog import reference
from rwkv_cli.catalog.entries import Entry
from rwkv_cli.catalog.hub import cache, download, failures, transfer, xet
from rwkv_cli.errors import (
    DownloadError,
    StorageError,
    UnsupportedModelError,
    UsageError,
    VerificationError,
)

DATA = random.Random(0).randbytes(300_000)
OTHER = random.Random(1).randbytes(300_000)
FILE = "hf:owner/repo/model.pth"

pytestmark = pytest.mark.usefixtures("hub")


@pytest.fixture
def hub(local_hub):
    local_hub.files["owner/repo"] = {"model.pth": DATA, "README.md": b"x"}
    return local_hub


def bring(text=FILE, sha256=None, entry=None, notes=None, seen=None):
    """Find and fetch."""
    note = (notes if notes is not None else []).append
    wanted = reference.of_entry(entry) if entry else reference.parse(text)
    remote = downloads.find(wanted, note, sha256)
    progress = (lambda *step: seen.append(step)) if seen is not None else (lambda *_: None)
    return downloads.fetch(remote, progress, note)


def left(folder):
    """All files below a folder that hold content."""
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and "lock" not in path.name)


def test_a_file_of_the_hub(tmp_path):
    seen = []
    fetched = bring(seen=seen)
    assert fetched.path.read_bytes() == DATA
    assert fetched.path.name == "model.pth"
    assert fetched.checked_by == "the sha256 that the hub gives"
    assert fetched.downloaded == len(DATA)
    assert seen[0] == (0, len(DATA))
    assert seen[-1] == (len(DATA), len(DATA))
    downloads.discard(fetched)
    assert left(tmp_path / "hf") == []


def test_what_is_kept_is_where_other_programs_look(hub):
    from huggingface_hub import hf_hub_download

    fetched = bring()
    downloads.keep(fetched, print)
    before = hub.sent
    found = hf_hub_download(
        "owner/repo", "model.pth", cache_dir=constants.HF_HUB_CACHE, endpoint=hub.endpoint
    )
    assert hub.sent == before
    assert Path(found).read_bytes() == DATA


def test_nothing_verified_is_fetched_again(hub):
    bring()
    sent = hub.sent
    assert bring().downloaded == 0
    assert hub.sent == sent


def test_what_another_program_has_fetched_is_used_and_stays(hub, tmp_path):
    from huggingface_hub import hf_hub_download

    hf_hub_download("owner/repo", "model.pth", cache_dir=constants.HF_HUB_CACHE, endpoint=hub.endpoint)
    sent, files = hub.sent, left(tmp_path / "hf")
    fetched = bring()
    assert hub.sent == sent
    downloads.discard(fetched)
    assert fetched.path.read_bytes() == DATA
    assert [name for name in left(tmp_path / "hf") if name not in files] == []


def test_damage_in_the_cache_is_noticed():
    fetched = bring()
    content = fetched.path.resolve()
    content.write_bytes(b"?" + DATA[1:])
    notes = []
    assert bring(notes=notes).path.read_bytes() == DATA
    assert "in the cache is damaged" in notes[0]


@pytest.mark.parametrize("seed", range(5))
def test_cuts_anywhere(hub, seed):
    rng = random.Random(seed)
    hub.faults.extend(Fault(cut_after=rng.randrange(60_000)) for _ in range(12))
    assert bring().path.read_bytes() == DATA
    assert hub.sent < 1.2 * len(DATA)


def test_a_later_run_goes_on_where_an_earlier_one_stopped(hub):
    hub.faults.append(Fault(cut_after=100_000))
    hub.faults.extend(Fault(status=500) for _ in range(20))
    with pytest.raises(DownloadError, match=r"error 500; what has arrived is kept"):
        bring()
    hub.faults.clear()
    fetched = bring()
    assert fetched.path.read_bytes() == DATA
    assert fetched.downloaded == len(DATA) - 100_000
    assert hub.sent == len(DATA)


def test_a_server_without_ranges_sends_it_all_again(hub):
    hub.faults.extend([Fault(cut_after=100_000), Fault(no_ranges=True)])
    assert bring().path.read_bytes() == DATA


def test_a_server_that_never_gets_further_is_given_up(hub):
    hub.faults.extend(Fault(cut_after=1000, no_ranges=True) for _ in range(50))
    with pytest.raises(DownloadError, match=r"cannot download model.pth of owner/repo: the connection broke"):
        bring()
    assert len(hub.gets()) <= 2 * failures.TRIES


@pytest.mark.parametrize("with_checksums", [True, False])
def test_cuts_of_a_file_whose_length_nobody_says(hub, with_checksums):
    """Only the end of the connection shows the end of the file: the rest is asked for, until there is none."""
    hub.with_lengths, hub.with_checksums = False, with_checksums
    hub.faults.extend([Fault(cut_after=100_000), Fault(status=503), Fault(cut_after=50_000)])
    assert bring().path.read_bytes() == DATA
    assert hub.sent == len(DATA)


def test_a_file_whose_length_nobody_says_without_ranges(hub):
    hub.with_lengths = False
    hub.faults.extend([Fault(no_ranges=True)] * 5)
    assert bring().path.read_bytes() == DATA


def test_another_part_than_was_asked_for(hub):
    hub.faults.extend([Fault(cut_after=100_000), Fault(wrong_range=True)])
    assert bring().path.read_bytes() == DATA


def test_a_wrong_hash_is_never_used(hub, tmp_path):
    hub.faults.append(Fault(corrupt=True))
    with pytest.raises(
        VerificationError, match=r"not the right file: its sha256 is .*; nothing of it was kept"
    ):
        bring()
    assert left(tmp_path / "hf") == []
    assert len(hub.gets()) == 1


def test_a_wrong_hash_of_pieces_is_fetched_again_in_one(hub):
    hub.faults.extend([Fault(cut_after=100_000, corrupt=True)])
    notes = []
    assert bring(notes=notes).path.read_bytes() == DATA
    assert "was assembled from mismatched pieces" in notes[0]
    hub.files["owner/repo"]["model.pth"] = OTHER
    hub.faults.extend([Fault(cut_after=100_000, corrupt=True), Fault(), Fault(corrupt=True)])
    with pytest.raises(VerificationError):
        bring()


def test_a_longer_or_shorter_file_than_announced(hub, tmp_path):
    hub.faults.append(Fault(extend=b"more"))
    with pytest.raises(DownloadError, match=r"should have 300,000 bytes, and the server has 300004"):
        bring()
    hub.faults.append(Fault(headers={"Content-Length": "299999"}, cut_after=299_999))
    with pytest.raises(DownloadError, match=r"should have 300,000 bytes, and the server has 299999"):
        bring()
    assert not [name for name in left(tmp_path / "hf") if name == "model.pth"]


def test_a_file_that_changes_between_two_ranges(hub):
    """The storage has another file of the same length under the same name."""

    def change():
        hub.files["owner/repo"]["model.pth"] = OTHER

    hub.faults.append(Fault(cut_after=100_000, then=change))
    with pytest.raises(VerificationError, match="not the right file"):
        bring()
    assert bring().path.read_bytes() == OTHER


def test_a_plain_file_that_changes_is_taken_anew(hub):
    hub.plain["x.pth"] = DATA

    def change():
        hub.plain["x.pth"] = OTHER + b"longer"

    hub.faults.append(Fault(cut_after=100_000, then=change))
    assert bring(f"{hub.endpoint}/plain/x.pth").path.read_bytes() == OTHER + b"longer"


@pytest.mark.parametrize("status", [401, 403])
def test_no_access(hub, status):
    hub.refusals.append(Fault(status=status))
    with pytest.raises(DownloadError, match=r"HF_TOKEN"):
        bring()
    assert len(hub.requests) == 1


def test_a_token_goes_to_the_hub_and_no_further(hub, monkeypatch):
    hub.token = "hf_secret"
    with pytest.raises(DownloadError, match="HF_TOKEN"):
        bring()
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert bring().path.read_bytes() == DATA  # the storage refuses a token


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hf:owner/none/model.pth", "no such repository"),
        ("hf:owner/repo/none.pth", "no such file"),
        ("hf:owner/none", "no such repository"),
    ],
)
def test_what_is_not_there(text, message):
    with pytest.raises(DownloadError, match=message):
        bring(text)


def test_too_many_requests_wait_as_long_as_the_server_says(hub, monkeypatch):
    waits = []
    monkeypatch.setattr(failures.time, "sleep", waits.append)
    hub.refusals.append(Fault(status=429, headers={"Retry-After": "7"}))
    hub.faults.append(Fault(status=429, headers={"Retry-After": "11"}))
    notes = []
    assert bring(notes=notes).path.read_bytes() == DATA
    assert waits.count(7) == waits.count(11) == 1
    assert notes == [
        "the server gets too many requests; trying again in 7 s",
        "the server gets too many requests; trying again in 11 s",
    ]


def test_a_server_that_asks_to_wait_for_hours(hub):
    hub.faults.append(Fault(status=429, headers={"Retry-After": "7200"}))
    with pytest.raises(DownloadError, match="asks to wait 7200 s"):
        bring()


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_errors_of_the_server_pass(hub, status):
    hub.refusals.extend([Fault(status=status)] * 2)
    hub.faults.extend([Fault(status=status)] * 2)
    assert bring().path.read_bytes() == DATA


def test_a_slow_trickle_arrives(hub):
    hub.files["owner/repo"]["model.pth"] = DATA[:20_000]
    hub.faults.append(Fault(trickle=0.005))
    assert bring().path.read_bytes() == DATA[:20_000]


def test_a_server_that_sends_next_to_nothing_is_given_up(hub, monkeypatch):
    """However often it says something; what it has sent is the beginning of the next attempt."""
    monkeypatch.setattr(transfer, "PATIENCE", 0.1)
    monkeypatch.setattr(transfer, "LEAST", len(DATA))
    hub.faults.append(Fault(trickle=0.02))
    with pytest.raises(DownloadError, match=r"has sent [\d,]+,000 bytes in 0 s; what has arrived is kept"):
        bring()
    monkeypatch.setattr(transfer, "PATIENCE", 60)
    fetched = bring()
    assert fetched.path.read_bytes() == DATA
    assert fetched.downloaded < len(DATA)


def test_a_server_that_falls_silent_is_asked_again(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
    hub.faults.append(Fault(stall=0.5))
    assert bring().path.read_bytes() == DATA


def test_no_connection(hub):
    hub.close()
    with pytest.raises(
        DownloadError,
        match=r"cannot download model.pth of owner/repo: 127.0.0.1:\d+ cannot be reached \(connection refused\)",
    ):
        bring()


def test_offline_takes_what_is_in_the_cache(monkeypatch):
    downloads.keep(bring(), print)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    fetched = bring()
    assert fetched.path.read_bytes() == DATA
    assert fetched.downloaded == 0
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE is set, and it is not in the cache"):
        bring("hf:owner/repo/other.pth")
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE is set"):
        bring("https://example.org/x.pth")


@pytest.mark.parametrize("damage", ["a broken link", "a branch without files"])
def test_a_damaged_part_of_the_cache_does_not_hide_the_rest(monkeypatch, damage):
    kept = downloads.keep(bring(), print)
    snapshot = kept.path.parent
    if damage == "a broken link":
        (snapshot / "config.json").symlink_to("../../blobs/none")
    else:
        (snapshot.parents[1] / "refs" / "other").write_text("b" * 40)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    fetched = bring()
    assert fetched.path == kept.path
    assert fetched.checked_by == "the checksum in the cache of the hub"
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE is set, and it is not in the cache"):
        bring("hf:owner/repo/config.json")


def test_a_full_disk_is_one_sentence_and_what_arrived_stays(hub, monkeypatch):
    from rwkv_cli.catalog.hub.transfer import Transfer

    real, room = Transfer._store, 100_000

    def store(self, file, piece):
        if self.present() + len(piece) > room:
            raise transfer.storage_error(self.part, OSError(28, os.strerror(28)), self.size)
        real(self, file, piece)
        file.flush()

    monkeypatch.setattr(Transfer, "_store", store)
    with pytest.raises(StorageError, match=r"no space left on the disk \(needs 300.0 kB\)"):
        bring()
    monkeypatch.setattr(Transfer, "_store", real)
    assert bring().path.read_bytes() == DATA
    assert hub.sent < 2 * len(DATA)


def test_free_space_is_checked_first(tmp_path, monkeypatch):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10**9}))
    with pytest.raises(StorageError, match=r"not enough space .* needs 10.0 GB, and 1.0 GB are free"):
        download.require_space(tmp_path / "not" / "there", 10**10, "the download")


def test_two_at_once_fetch_it_once(hub):
    hub.files["owner/repo"]["model.pth"] = DATA[:50_000]
    hub.faults.append(Fault(trickle=0.005))
    results = []
    threads = [threading.Thread(target=lambda: results.append(bring())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {each.path.read_bytes() for each in results} == {DATA[:50_000]}
    assert len(hub.gets()) == 1


# ------------------------------------------------------------------------------------------ the shared cache


def everything(folder):
    """All files below a folder with their contents; links count as what they point to."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_nothing_enters_the_shared_cache_unless_it_is_kept(hub, tmp_path):
    hub.faults.append(Fault(corrupt=True))
    with pytest.raises(VerificationError):
        bring()
    fetched = bring()
    assert not (tmp_path / "hf" / "hub").exists()
    kept = downloads.keep(fetched, print)
    assert kept.path.is_relative_to(tmp_path / "hf" / "hub")
    assert left(tmp_path / "hf" / "assets") == []
    downloads.discard(kept)
    assert kept.path.read_bytes() == DATA


def test_damage_in_the_shared_cache_is_removed_there():
    kept = downloads.keep(bring(), print)
    content = kept.path.resolve()
    content.write_bytes(b"?" + DATA[1:])
    notes = []
    fetched = bring(notes=notes)
    assert "in the cache is damaged" in notes[0]
    assert fetched.path.read_bytes() == DATA
    assert not content.exists()
    assert not kept.path.exists()
    assert downloads.keep(fetched, print).path == kept.path


def test_a_wrong_sha256_of_the_user_does_no_harm_to_the_shared_cache(hub):
    hub.with_checksums = False
    kept = downloads.keep(bring(), print)
    with pytest.raises(VerificationError):
        bring(sha256="0" * 64)
    assert kept.path.read_bytes() == DATA


def test_the_same_content_at_another_commit_is_used(hub):
    downloads.keep(bring(), print)
    sent, hub.commit = hub.sent, "b" * 40
    assert bring().downloaded == 0
    assert hub.sent == sent


def test_damage_in_the_cache_without_a_connection(monkeypatch):
    kept = downloads.keep(bring(), print)
    kept.path.resolve().write_bytes(b"?" + DATA[1:])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError, match=r"cannot download model.pth of owner/repo again"):
        bring()


def test_a_folder_that_is_partly_in_the_shared_cache(hub, tmp_path):
    from huggingface_hub import hf_hub_download

    hub.files["owner/folder"] = {"config.json": b"{}", "model.safetensors": DATA, "tokenizer.json": b"[]"}
    hf_hub_download(
        "owner/folder", "model.safetensors", cache_dir=constants.HF_HUB_CACHE, endpoint=hub.endpoint
    )
    sent, before = hub.sent, everything(tmp_path / "hf" / "hub")
    fetched = bring("hf:owner/folder")
    assert hub.sent == sent + 4
    assert (fetched.path / "model.safetensors").read_bytes() == DATA
    downloads.discard(fetched)
    assert everything(tmp_path / "hf" / "hub") == before
    kept = downloads.keep(bring("hf:owner/folder"), print)
    assert sorted(path.name for path in kept.path.iterdir()) == sorted(hub.files["owner/folder"])
    assert left(tmp_path / "hf" / "assets") == []


@pytest.mark.parametrize("failing", ["config.json", "model.safetensors"])
def test_what_cannot_be_kept_stays_usable(hub, monkeypatch, failing):
    hub.files["owner/folder"] = {"config.json": b"{}", "model.safetensors": DATA}
    fetched, real = bring("hf:owner/folder"), cache.hf_hub_download

    def refusing(repository, name, **options):
        if name == failing and not options.get("dry_run"):
            raise OSError("no permission")
        return real(repository, name, **options)

    monkeypatch.setattr(cache, "hf_hub_download", refusing)
    notes = []
    kept = downloads.keep(fetched, notes.append)
    assert f"{failing} of owner/folder stays in" in notes[0]
    assert kept.is_present()
    assert {path.name: path.read_bytes() for path in kept.path.iterdir()} == hub.files["owner/folder"]


@pytest.mark.parametrize("commit", ["a" * 40, "b" * 40])
def test_what_has_changed_on_the_hub_is_not_downloaded_by_keeping(hub, commit):
    fetched, sent = bring(), hub.sent
    hub.commit = commit
    hub.files["owner/repo"]["model.pth"] = OTHER
    notes = []
    kept = downloads.keep(fetched, notes.append)
    assert "has changed on the hub" in notes[0]
    assert hub.sent == sent
    assert kept.path.read_bytes() == DATA


# ------------------------------------------------------------------------------------------ Xet storage


@pytest.fixture
def xet_hub(hub, tmp_path):
    pytest.importorskip("hf_xet")
    hub.xet = tmp_path / "cas"
    hub.store_in_xet(DATA)
    return hub


def test_a_file_in_xet_storage(xet_hub, tmp_path):
    seen = []
    fetched = bring(seen=seen)
    assert fetched.path.read_bytes() == DATA
    assert fetched.downloaded == len(DATA)
    assert seen[-1] == (len(DATA), len(DATA))
    assert xet_hub.gets() == []
    downloads.discard(fetched)
    assert left(tmp_path / "hf") == []


def test_xet_storage_continues_what_http_began(xet_hub, monkeypatch):
    xet_hub.faults.append(Fault(cut_after=100_000))
    xet_hub.faults.extend(Fault(status=500) for _ in range(20))
    with monkeypatch.context() as patched:
        patched.setattr(constants, "HF_HUB_DISABLE_XET", True)
        with pytest.raises(DownloadError):
            bring()
    gets = len(xet_hub.gets())
    fetched = bring()
    assert fetched.path.read_bytes() == DATA
    assert fetched.downloaded == len(DATA) - 100_000
    assert len(xet_hub.gets()) == gets


def test_http_continues_what_xet_storage_began(xet_hub, monkeypatch):
    def broken(*_):
        yield DATA[:100_000]
        raise xet.XetError("it broke")

    monkeypatch.setattr(xet, "stream", broken)
    notes = []
    assert bring(notes=notes).path.read_bytes() == DATA
    assert xet_hub.sent == len(DATA) - 100_000
    assert "(it broke); continuing over HTTP" in notes[0]


def test_xet_storage_that_is_down(xet_hub):
    xet_hub.xet_is_down = True
    notes = []
    assert bring(notes=notes).path.read_bytes() == DATA
    assert "cannot be read from Xet storage" in notes[0]


def test_another_version_of_hf_xet(xet_hub, monkeypatch):
    monkeypatch.setattr(xet, "_SETTINGS", {"no.such.setting": 1})
    notes = []
    assert bring(notes=notes).path.read_bytes() == DATA
    assert "hf_xet cannot be used" in notes[0]
    assert xet_hub.sent == len(DATA)


def test_xet_storage_that_falls_silent(xet_hub, monkeypatch):
    monkeypatch.setattr(xet, "PATIENCE", 0.1)
    monkeypatch.setattr(xet, "_put", lambda *_: None)
    assert bring().path.read_bytes() == DATA
    assert xet_hub.sent == len(DATA)


def test_wrong_content_from_xet_storage_is_never_used(xet_hub, tmp_path):
    xet_hub.store_in_xet(OTHER)
    xet_hub.xet_hashes[DATA] = xet_hub.xet_hashes[OTHER]
    with pytest.raises(VerificationError, match="not the right file"):
        bring()
    assert left(tmp_path / "hf") == []


# ------------------------------------------------------------------------------------------ what is claimed


def entry(**fields):
    return Entry("m", repository="owner/repo", file="model.pth", **fields)


def test_models_toml_has_the_first_word(hub):
    digest = hashlib.sha256(DATA).hexdigest()
    assert bring(entry=entry(sha256=digest, bytes=len(DATA))).checked_by == "the sha256 in models.toml"
    with pytest.raises(VerificationError, match=r"not the file that models.toml describes: its sha256"):
        bring(entry=entry(sha256="0" * 64))
    with pytest.raises(
        VerificationError, match=r"not the file that models.toml describes: it has 300,000 bytes, not 5"
    ):
        bring(entry=entry(bytes=5))
    assert len(hub.gets()) == 1


def test_a_hub_without_checksums(hub):
    hub.with_checksums = False
    assert bring().checked_by is None
    digest = hashlib.sha256(DATA).hexdigest()
    assert bring(entry=entry(sha256=digest)).checked_by == "the sha256 in models.toml"
    hub.files["owner/repo"]["model.pth"] = OTHER
    hub.commit = "b" * 40
    with pytest.raises(VerificationError, match="not the right file"):
        bring(entry=entry(sha256="0" * 64))


def test_plain_addresses(hub):
    hub.plain["x.pth"] = DATA
    hub.faults.append(Fault(cut_after=100_000))
    url = f"{hub.endpoint}/plain/x.pth"
    fetched = bring(url)
    assert fetched.path.read_bytes() == DATA
    assert fetched.path.name == "x.pth"
    assert fetched.checked_by is None
    downloads.discard(fetched)
    assert not fetched.path.exists()
    assert bring(url, sha256=hashlib.sha256(DATA).hexdigest()).checked_by == "the given sha256"
    downloads.discard(bring(url))
    with pytest.raises(VerificationError):
        bring(url, sha256="0" * 64)


def test_an_address_that_refuses_to_tell_its_length(hub):
    hub.plain["x.pth"] = DATA
    hub.head_is_refused = True
    assert bring(f"{hub.endpoint}/plain/x.pth").path.read_bytes() == DATA
    with pytest.raises(DownloadError, match="no such file"):
        bring(f"{hub.endpoint}/plain/none.pth")


def test_without_checksum_and_validator_nothing_is_continued(hub):
    hub.with_checksums = False
    hub.plain["x.pth"] = DATA
    hub.faults.append(Fault(cut_after=100_000))
    assert bring(f"{hub.endpoint}/plain/x.pth").path.read_bytes() == DATA
    assert hub.sent == len(DATA) + 100_000


# ------------------------------------------------------------------------------------------ whole repositories


def test_a_folder_and_what_belongs_to_it(hub):
    files = {
        "config.json": b"{}",
        "model.safetensors": DATA,
        "tokenizer.json": b"[]",
        "README.md": b"",
        "x.py": b"",
    }
    hub.files["owner/folder"] = files
    fetched = bring("hf:owner/folder")
    assert sorted(path.name for path in fetched.path.iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert fetched.checked_by == "the git hash that the hub gives and the sha256 that the hub gives"


def test_the_only_model_of_a_repository():
    assert bring("hf:owner/repo").path.read_bytes() == DATA


def test_several_models_need_a_name(hub):
    hub.files["owner/repo"]["second.pth"] = OTHER
    with pytest.raises(
        UsageError, match=r"holds 2 models: name one, hf:owner/repo/FILE; there are model.pth, second.pth"
    ):
        bring("hf:owner/repo")


def test_a_repository_without_weights(hub):
    hub.files["owner/empty"] = {"README.md": b""}
    with pytest.raises(UnsupportedModelError, match="owner/empty holds no weights"):
        bring("hf:owner/empty")


def test_a_missing_shard_is_noticed_before_the_download(hub):
    index = b'{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}'
    hub.files["owner/shards"] = {
        "model.safetensors.index.json": index,
        "model-1.safetensors": DATA,
        "config.json": b"{}",
    }
    with pytest.raises(DownloadError, match=r"incomplete: the file 'model-2.safetensors' .* is missing"):
        bring("hf:owner/shards")
    hub.files["owner/shards"]["model-2.safetensors"] = OTHER
    fetched = bring("hf:owner/shards")
    assert (fetched.path / "model-2.safetensors").read_bytes() == OTHER


def test_shards_that_would_leave_the_folder(hub):
    index = b'{"weight_map": {"a": "../../x"}}'
    hub.files["owner/evil"] = {"model.safetensors.index.json": index, "../../x": DATA}
    with pytest.raises(DownloadError, match="is missing"):
        bring("hf:owner/evil")


BESIDES = {
    "config.json": b"{}",
    "tokenizer.json": b"[]",
    "tokenizer_config.json": b'{"a": 1}',
    "special_tokens_map.json": b"{ }",
    "generation_config.json": b"{  }",
    "chat_template.jinja": b"{{ x }}",
    "rwkv_vocab_v20230424.txt": b"1 'x' 1\n",
}


def test_what_a_folder_brings_beside_the_weights_comes_along(hub):
    hub.files["owner/folder"] = {"model.safetensors": DATA, **BESIDES, "optimizer.pt": DATA, "x.py": b""}
    fetched = bring("hf:owner/folder")
    assert {path.name for path in fetched.path.iterdir()} == {"model.safetensors", *BESIDES}
    assert (fetched.path / "chat_template.jinja").read_bytes() == b"{{ x }}"


# ------------------------------------------------------------------------------------------ folders of a repository

FOLDER = "rwkv7-g1k-1.5b-20260930-ctx25600"


@pytest.fixture
def collection(hub):
    """A repository with a model in each of several folders, one of them with a name that begins like another."""
    hub.files["owner/st"] = {
        "README.md": b"",
        "config.json": b"top",
        f"{FOLDER}/config.json": b"{}",
        f"{FOLDER}/chat_template.jinja": b"{{ x }}",
        f"{FOLDER}/model.safetensors.index.json": b'{"weight_map": {"a": "model-1.safetensors", "b": "m.safetensors"}}',
        f"{FOLDER}/model-1.safetensors": DATA,
        f"{FOLDER}/m.safetensors": OTHER,
        f"{FOLDER}/deep/config.json": b"deep",
        f"{FOLDER}-b/model.safetensors": OTHER,
        "single/deep/model.pth": DATA,
        "empty/README.md": b"",
    }
    return hub


def names_in(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_folder_of_a_repository(collection, tmp_path):
    fetched = bring(f"hf:owner/st/{FOLDER}")
    assert fetched.path.name == FOLDER
    assert names_in(fetched.path) == {
        name.removeprefix(f"{FOLDER}/"): data
        for name, data in collection.files["owner/st"].items()
        if name.startswith(f"{FOLDER}/") and "deep" not in name
    }
    assert fetched.checked_by == "the git hash that the hub gives and the sha256 that the hub gives"
    downloads.discard(fetched)
    assert left(tmp_path / "hf") == []
    collection.files["owner/st"]["1/2/3/model.pth"] = DATA
    downloads.discard(bring("hf:owner/st/1/2/3/model.pth"))
    folders = [path.name for path in (tmp_path / "hf" / "assets").rglob("*") if path.is_dir()]
    assert folders == ["rwkv", "owner--st"]  # with the lock files in it
    assert bring(f"hf:owner/st@v1/{FOLDER}/").path.name == FOLDER


def test_a_folder_of_a_repository_is_kept_and_found_without_a_connection(collection, tmp_path, monkeypatch):
    kept = downloads.keep(bring(f"hf:owner/st/{FOLDER}"), print)
    assert kept.path.name == FOLDER
    assert kept.path.is_relative_to(tmp_path / "hf" / "hub")
    assert left(tmp_path / "hf" / "assets") == []
    sent = collection.sent
    again = bring(f"hf:owner/st/{FOLDER}")
    assert (again.path, again.downloaded) == (kept.path, 0)
    assert collection.sent < sent + 1000  # the list of shards
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert bring(f"hf:owner/st/{FOLDER}").path == kept.path
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE is set"):
        bring(f"hf:owner/st/{FOLDER}-b")
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE is set"):
        bring("hf:owner/st/empty")


@pytest.mark.usefixtures("collection")
def test_the_only_file_in_a_folder():
    fetched = bring("hf:owner/st/single")
    assert fetched.path.read_bytes() == DATA
    assert fetched.path.name == "model.pth"
    assert bring("hf:owner/st/single/deep").path.read_bytes() == DATA


def test_folders_that_are_not_there(collection):
    for name in ("none", FOLDER[:-1], f"{FOLDER}/model", "README"):
        with pytest.raises(
            DownloadError, match=f"^cannot download {name} of owner/st: there is no such file$"
        ):
            bring(f"hf:owner/st/{name}")
    with pytest.raises(UnsupportedModelError, match=r"^owner/st/empty holds no weights"):
        bring("hf:owner/st/empty")
    assert len(collection.listings()) == 5
    with pytest.raises(DownloadError, match="there is no such file"):
        bring("hf:owner/st/none.pth")
    assert len(collection.listings()) == 5  # a name of a file with weights is none of a folder


def test_a_folder_with_several_models_needs_a_name(collection):
    collection.files["owner/st"]["single/other.pth"] = OTHER
    with pytest.raises(
        UsageError, match=r"name one, hf:owner/st/single/FILE; there are deep/model.pth, other.pth"
    ):
        bring("hf:owner/st/single")


# ------------------------------------------------------------------------------------------ revisions, and other hubs


def test_a_revision_keeps_its_files(hub):
    hub.push("owner/repo", "b" * 40, {"other.pth": OTHER})
    assert bring(f"hf:owner/repo@{'a' * 40}/model.pth").path.read_bytes() == DATA
    with pytest.raises(failures.GoneError, match="there is no such file"):
        bring()
    del hub.history["owner/repo"]["a" * 40]
    with pytest.raises(failures.GoneError, match="there is no such revision"):
        bring(f"hf:owner/repo@{'a' * 40}/model.pth")
    with pytest.raises(failures.GoneError, match="there is no such revision"):
        bring(f"hf:owner/repo@{'a' * 40}")


def test_an_endpoint_below_a_path(hub, monkeypatch, tmp_path):
    """As of a hub behind a proxy: files, folders, lists and what is kept."""
    hub.prefix = "/some/path"
    hub.files["owner/folder"] = {"config.json": b"{}", "model.safetensors": DATA}
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    hub.token = "hf_secret"
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert bring().path.read_bytes() == DATA
    kept = downloads.keep(bring("hf:owner/folder"), print)
    assert kept.path.is_relative_to(tmp_path / "hf" / "hub")
    assert downloads.glance("owner/folder").files.keys() == {"config.json", "model.safetensors"}
    assert {path.split("/")[1] for _, path, _ in hub.requests if "/lfs/" not in path} == {"some"}


def test_the_variable_for_an_endpoint_below_a_path(hub, tmp_path):
    hub.prefix = "/some/path"
    script = (
        "from rwkv_cli.catalog import hub, reference\n"
        f"remote = hub.find(reference.parse({FILE!r}), print)\n"
        "print(hub.fetch(remote, lambda *_: None, print).path)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"HF_ENDPOINT": f"{hub.endpoint}/", "HF_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    assert Path(done.stdout.strip()).read_bytes() == DATA
