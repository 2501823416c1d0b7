"""The same file from elsewhere, when the place where it is published fails."""

import hashlib
import json
import os
import random
from urllib.parse import urlsplit

import pytest
from helpers.hub_server import Fault
from helpers.writers import random_weights, write_pth
from huggingface_hub import constants

from rwkv_cli.catalog import hub as downloads
from rwkv_cli.catalog import model_store, pull, reference, registry
from rwkv_cli.catalog.entries import Entry
from rwkv_cli.catalog.hub import transfer
from rwkv_cli.errors import DownloadError, StorageError, VerificationError
from rwkv_cli.files.model_file import ModelFile

DATA = random.Random(0).randbytes(300_000)
WRONG = random.Random(1).randbytes(300_000)
DIGEST = hashlib.sha256(DATA).hexdigest()

pytestmark = pytest.mark.usefixtures("hub")


@pytest.fixture
def hub(local_hub):
    local_hub.files["owner/repo"] = {"model.pth": DATA}
    local_hub.plain |= {"a/model.pth": DATA, "b/model.pth": DATA}
    return local_hub


@pytest.fixture
def bring(hub):
    """`bring(mirrors=...)` finds and fetches a known model; gives what was fetched, and the notes."""

    def call(mirrors=("a", "b"), given=None, ready=lambda _: None, sha256=DIGEST, **fields):
        addresses = tuple(
            name if ":" in name else f"{hub.endpoint}/plain/{name}/model.pth" for name in mirrors
        )
        place = {} if "url" in fields else {"repository": "owner/repo", "file": "model.pth"}
        entry = Entry("m", mirrors=addresses, sha256=sha256, **(place | fields))
        notes = []
        call.notes = notes
        fetched = downloads.obtain(reference.of_entry(entry), given, ready, lambda *_: None, notes.append)
        return fetched, notes

    return call


def left(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and "lock" not in path.name)


def down(status=503):
    """The hub answers every attempt like this."""
    return [Fault(status=status)] * 6


def plain_requests(hub):
    return [path for _, path, _ in hub.requests if path.startswith("/plain/")]


def host_of(hub):
    return urlsplit(hub.endpoint).netloc


def test_no_mirror_is_asked_while_the_source_delivers(hub, bring):
    fetched, notes = bring()
    assert fetched.path.read_bytes() == DATA
    assert fetched.mirror is None
    assert notes == []
    assert plain_requests(hub) == []


@pytest.mark.parametrize(
    ("refusals", "problem"),
    [
        (down(), "the server answers with error 503"),
        ([Fault(status=404, headers={"X-Error-Code": "EntryNotFound"})], "there is no such file"),
        ([Fault(status=404, headers={"X-Error-Code": "RevisionNotFound"})], "there is no such revision"),
        ([Fault(status=404, headers={"X-Error-Code": "RepoNotFound"})], "there is no such repository"),
        ([Fault(status=403)], "the server refuses access (403)"),
    ],
)
def test_a_source_that_does_not_say_what_it_has(hub, bring, refusals, problem):
    hub.refusals.extend(refusals)
    fetched, notes = bring()
    assert fetched.path.read_bytes() == DATA
    assert fetched.checked_by == "the sha256 in models.toml"
    assert fetched.mirror == f"{hub.endpoint}/plain/a/model.pth"
    [note] = notes
    assert note.startswith(f"cannot download model.pth of owner/repo: {problem}")
    assert note.endswith(f"; trying the mirror {host_of(hub)}")
    assert "try again later" not in note


def test_a_source_that_asks_to_wait_for_hours(hub, bring):
    hub.refusals.append(Fault(status=429, headers={"Retry-After": "7200"}))
    fetched, notes = bring()
    assert fetched.mirror
    assert notes[0].startswith("the server asks to wait 7200 s")


def test_a_source_that_cannot_be_reached(bring, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    )
    fetched, notes = bring()
    assert fetched.path.read_bytes() == DATA
    assert "127.0.0.1:9 cannot be reached" in notes[0]
    assert len(notes) == 1


def test_a_source_that_fails_in_the_middle_leaves_nothing_behind(hub, bring, tmp_path):
    hub.faults.append(Fault(cut_after=100_000))
    hub.faults.extend(down())
    fetched, notes = bring()
    assert fetched.path.read_bytes() == DATA
    assert fetched.downloaded == len(DATA)
    assert "error 503; trying the mirror" in notes[0]
    downloads.discard(fetched)
    assert left(tmp_path / "hf") == left(tmp_path / "cache") == []


def test_a_source_with_a_wrong_file(hub, bring, tmp_path):
    hub.faults.append(Fault(corrupt=True))
    fetched, notes = bring()
    assert fetched.path.read_bytes() == DATA
    assert "is not the right file: its sha256 is" in notes[0]
    assert left(tmp_path / "hf") == []
    hub.files["owner/repo"]["model.pth"] = WRONG  # now the hub says so before the download
    fetched, notes = bring()
    assert "is not the file that models.toml describes" in notes[0]
    assert fetched.path.read_bytes() == DATA


def test_a_plain_address_has_mirrors_too(hub, bring):
    fetched, notes = bring(url=f"{hub.endpoint}/plain/none.pth")
    assert fetched.path.read_bytes() == DATA
    assert "there is no such file (404); trying the mirror" in notes[0]


def test_a_wrong_file_on_a_mirror_is_refused_and_the_next_one_tried(hub, bring, tmp_path):
    hub.refusals.extend(down())
    hub.plain["a/model.pth"] = WRONG
    fetched, notes = bring()
    assert fetched.path.read_bytes() == DATA
    assert fetched.mirror == f"{hub.endpoint}/plain/b/model.pth"
    assert len(notes) == 2
    assert notes[1].startswith(f"{hub.endpoint}/plain/a/model.pth is not the right file: its sha256 is")
    assert left(tmp_path / "cache") == ["model.pth"]


def test_a_mirror_with_another_size_is_refused_before_the_download(hub, bring):
    hub.refusals.extend(down())
    hub.plain["a/model.pth"] = WRONG + b"more"
    fetched, notes = bring(bytes=len(DATA))
    assert fetched.mirror == f"{hub.endpoint}/plain/b/model.pth"
    assert "it has 300,004 bytes, not 300,000; trying" in notes[1]
    assert hub.sent == len(DATA)


def test_a_mirror_on_the_hub(hub, bring):
    hub.files["other/copy"] = {"sub/model.pth": DATA}
    del hub.files["owner/repo"]["model.pth"]
    fetched, notes = bring(["hf:other/copy@v1/sub/model.pth"])
    assert fetched.path.read_bytes() == DATA
    assert fetched.mirror == "hf:other/copy@v1/sub/model.pth"
    assert notes[0].endswith("; trying the mirror other/copy")
    kept = downloads.keep(fetched, notes.append)
    assert len(notes) == 1
    assert kept.path.read_bytes() == DATA
    assert "models--other--copy" in str(kept.path)


def test_a_mirror_on_the_hub_that_has_another_file_or_a_folder(hub, bring):
    hub.files["other/copy"] = {
        "model.pth": WRONG,
        "folder/config.json": b"{}",
        "folder/model.safetensors": DATA,
    }
    del hub.files["owner/repo"]["model.pth"]
    with pytest.raises(DownloadError) as caught:
        bring(["hf:other/copy/model.pth", "hf:other/copy/folder"])
    assert not hub.gets()
    assert "is a folder, not a file" in str(caught.value)


def test_when_all_fail_the_first_failure_is_the_error(hub, bring, tmp_path):
    hub.refusals.extend(down())
    hub.plain["a/model.pth"] = WRONG
    del hub.plain["b/model.pth"]
    with pytest.raises(DownloadError) as caught:
        bring()
    found = hashlib.sha256(WRONG).hexdigest()[:16]
    assert str(caught.value) == (
        "cannot download model.pth of owner/repo: the server answers with error 503; its mirrors failed too: "
        f"{host_of(hub)} (its sha256 is {found}..., not {DIGEST[:16]}...), "
        f"{host_of(hub)} (there is no such file (404))"
    )
    assert not isinstance(caught.value, VerificationError)
    assert len(bring.notes) == 2
    assert left(tmp_path / "hf") == left(tmp_path / "cache") == []
    hub.faults.append(Fault(corrupt=True))
    with pytest.raises(VerificationError, match=r"is not the right file: .*; its mirrors failed too: "):
        bring()


# ------------------------------------------------------------------------------------------ what it is checked by


def test_without_a_checksum_no_mirror_is_asked(hub, bring):
    hub.refusals.extend(down())
    with pytest.raises(DownloadError) as caught:
        bring(sha256=None, bytes=len(DATA))
    assert str(caught.value) == (
        "cannot download model.pth of owner/repo: the server answers with error 503; its mirrors were not asked, "
        "since no checksum is known to check them by: give sha256 to use them"
    )
    assert bring.notes == []
    assert plain_requests(hub) == []


def test_the_checksum_that_the_user_gives(hub, bring):
    hub.refusals.extend(down())
    fetched, _ = bring(sha256=None, given=DIGEST)
    assert fetched.checked_by == "the given sha256"
    assert fetched.mirror


def test_the_checksum_that_the_hub_gave_before_it_failed(hub, bring):
    hub.faults.extend(down())
    fetched, _ = bring(sha256=None)
    assert fetched.checked_by == "the sha256 that the hub gives"
    assert fetched.mirror
    downloads.discard(fetched)
    hub.faults.extend(down())
    hub.plain["a/model.pth"] = hub.plain["b/model.pth"] = WRONG
    with pytest.raises(DownloadError, match="its mirrors failed too"):
        bring(sha256=None)


def test_checksums_that_contradict_each_other_are_settled_by_no_mirror(hub, bring):
    with pytest.raises(VerificationError):
        bring(given="0" * 64)
    assert plain_requests(hub) == []


# ------------------------------------------------------------------------------------------ what needs no mirror


def test_an_interruption_by_the_user_is_obeyed(hub, bring, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(transfer.Transfer, "_store", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bring()
    assert plain_requests(hub) == []


def test_a_full_disk_is_no_fault_of_the_source(hub, bring, monkeypatch):
    def full(self, *_):
        raise transfer.storage_error(self.part, OSError(28, os.strerror(28)), self.size)

    monkeypatch.setattr(transfer.Transfer, "_store", full)
    with pytest.raises(StorageError, match="no space left"):
        bring()
    assert plain_requests(hub) == []

    def small(_remote):
        raise StorageError("there is not enough space")

    with pytest.raises(StorageError, match="not enough space"):
        bring(ready=small)
    assert plain_requests(hub) == []


def test_offline_no_mirror_is_asked(hub, bring, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError, match=r"HF_HUB_OFFLINE is set, and it is not in the cache$"):
        bring()
    assert hub.requests == []


# ------------------------------------------------------------------------------------------ from the command line


@pytest.fixture
def known(hub, tmp_path):
    """The name of a known model whose commit is gone from the hub, and which is on a mirror."""
    data = write_pth(tmp_path / "x.pth", random_weights(seed=3)).read_bytes()
    hub.history["owner/repo"] = {}
    hub.plain = {"other-name.pth": data}
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "models.toml").write_text(
        f'[tiny]\nrepository = "owner/repo"\nfile = "rwkv7-g1-tiny.pth"\nrevision = "{"b" * 40}"\n'
        f'sha256 = "{hashlib.sha256(data).hexdigest()}"\n'
        f'mirrors = ["{hub.endpoint}/plain/other-name.pth?secret=1"]\ntemplate = "qa"\n'
    )
    registry.entries.cache_clear()
    return "tiny"


def test_a_pull_from_a_mirror(hub, known, rwkv):
    result = rwkv("pull", known)
    assert result.code == 0
    said, *advice = result.err.splitlines()
    assert said == (
        "cannot download rwkv7-g1-tiny.pth of owner/repo: there is no such revision; "
        f"trying the mirror {host_of(hub)}"
    )
    assert advice == [
        "it is the default model now; for gosling again: rwkv models default gosling",
        "to talk with it: rwkv chat",
    ]
    assert f"checked by the sha256 in models.toml, from {hub.endpoint}/plain/other-name.pth; " in result.out
    [stored] = model_store.listed()
    source = ModelFile(stored.path).info.source
    assert stored.name == "tiny-int8"
    assert source["origin"] == f"hf:owner/repo@{'b' * 40}/rwkv7-g1-tiny.pth"
    assert source["mirror"] == f"{hub.endpoint}/plain/other-name.pth"
    assert "commit" not in source
    facts = json.loads(rwkv("pull", known, "--force", "--json").out)
    assert facts["mirror"] == f"{hub.endpoint}/plain/other-name.pth"


def test_a_pull_that_fails_everywhere_is_one_sentence(hub, known, rwkv):
    hub.plain = {"other-name.pth": WRONG}
    result = rwkv("pull", known, "--quiet")
    assert result.code == 1
    assert result.sentence.startswith(
        "cannot download rwkv7-g1-tiny.pth of owner/repo: there is no such revision; "
    )
    assert model_store.listed() == []


def test_without_a_checksum_the_option_is_named(hub, known, rwkv, tmp_path):
    own = tmp_path / "config" / "models.toml"
    own.write_text("".join(line for line in own.read_text().splitlines(True) if "sha256" not in line))
    registry.entries.cache_clear()
    assert rwkv("pull", known).sentence.endswith("to check them by: give --sha256 to use them")
    [data] = hub.plain.values()
    assert rwkv("pull", known, "--sha256", hashlib.sha256(data).hexdigest()).code == 0


def test_mirrors_are_shown(known, rwkv):
    assert "/plain/other-name.pth" in rwkv("models", "show", known).out
    assert len(json.loads(rwkv("models", "show", "g1k-1.5b", "--json").out)["mirrors"]) == 2
    assert pull.registry.entries()["tiny"].mirrors
