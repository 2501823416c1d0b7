"""What the publisher's repository has now, beside what is known by name."""

import hashlib
import json
import threading

import pytest
from helpers.hub_server import Fault
from helpers.writers import TINY, random_weights, write_pth
from huggingface_hub import constants

from rwkv_cli.catalog import hub as downloads
from rwkv_cli.catalog import model_store, pull, registry
from rwkv_cli.catalog.hub import failures, listing
from rwkv_cli.config import ModelConfig
from rwkv_cli.errors import DownloadError, UsageError, VerificationError
from rwkv_cli.files.model_file import ModelFile
from rwkv_cli.reporting import Reporter

REPOSITORY = "BlinkDL/rwkv7-g1"
OLD, NEW, NEWER = "a" * 40, "b" * 40, "c" * 40
G1J = "rwkv7-g1j-1.5b-20260831-ctx16384.pth"
G1K = "rwkv7-g1k-1.5b-20260930-ctx25600.pth"
G1L = "rwkv7-g1l-1.5b-20261031-ctx32768.pth"
G1M = "rwkv7-g1m-1.5b-20261130-ctx32768.pth"
EXPERIMENT = "rwkv7a-g1z-1.5b-20270101-ctx32768.pth"
MINE = f"""
["g1j-1.5b"]
revision = "{OLD}"
["g1k-1.5b"]
revision = "{OLD}"
sha256 = "{{}}"
"""

pytestmark = pytest.mark.usefixtures("hub")


class Notes(Reporter):
    """Keeps what is noted."""

    def __init__(self):
        self.texts = []

    def note(self, text):
        self.texts.append(text)

    def about(self, text):
        return [note for note in self.texts if text in note]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Published files: of G1J, of G1K and of anything newer."""
    folder = tmp_path_factory.mktemp("published")
    return [write_pth(folder / f"{seed}.pth", random_weights(seed=seed)).read_bytes() for seed in range(3)]


@pytest.fixture
def hub(local_hub, tmp_path, weights):
    """A repository whose main branch has the known models, at the commit that they are pinned to."""
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "models.toml").write_text(MINE.format(hashlib.sha256(weights[1]).hexdigest()))
    registry.entries.cache_clear()
    local_hub.push(REPOSITORY, OLD, {G1J: weights[0], G1K: weights[1]})
    return local_hub


@pytest.fixture
def publish(hub, weights):
    """`publish(commit, files)` puts new models on the main branch, in place of those that were there."""
    return lambda commit=NEW, files=(G1L,): hub.push(REPOSITORY, commit, dict.fromkeys(files, weights[2]))


def pulled(name, **options):
    notes = Notes()
    return pull.pull(name, reporter=notes, **options), notes


# ------------------------------------------------------------------------------------------ a remark


@pytest.mark.parametrize("name", ["g1-1.5b", "g1k-1.5b", "latest", f"hf:{REPOSITORY}/{G1K}"])
def test_a_newer_generation_is_remarked_on(hub, publish, name):
    publish(files=(G1K, G1L, G1J, EXPERIMENT, "README.md"))
    result, notes = pulled(name)
    assert result.stored.name == "g1k-1.5b-int8"
    assert result.checked_by == "the sha256 in models.toml"
    assert notes.about("newer") == [
        "g1l-1.5b of 2026-10-31 is newer than g1k-1.5b of 2026-09-30: "
        f"`rwkv pull {name} --newest` downloads it"
    ]
    assert hub.listings() == [f"/api/models/{REPOSITORY}/revision/main"]
    assert not hub.requests[-1][1].endswith("main")  # the download comes after it


def test_there_is_nothing_newer(hub):
    _, notes = pulled("g1-1.5b")
    assert notes.about("newer") == []
    assert len(hub.listings()) == 1
    _, notes = pulled("g1j-1.5b")
    assert len(notes.about("g1k-1.5b of 2026-09-30 is newer than g1j-1.5b of 2026-08-31: ")) == 1


def test_experiments_and_other_sizes_are_not_newer(publish):
    publish(files=(G1K, EXPERIMENT, G1L.replace("1.5b", "2.9b"), "rwkv7-g1z-1.5b.pth", f"old/{G1M}"))
    _, notes = pulled("g1-1.5b")
    assert notes.about("newer") == []


def test_an_installed_model_is_found_without_a_request(hub, publish):
    pulled("g1-1.5b")
    publish()
    before = len(hub.requests)
    result, notes = pulled("g1-1.5b")
    assert not result.is_new
    assert notes.texts == []
    assert registry.locate("g1-1.5b") == result.stored.path
    assert len(hub.requests) == before


def test_a_slow_listing_delays_nothing(hub, publish, monkeypatch):
    """The list of files comes only when all is over: so nothing can have waited for it."""
    monkeypatch.setattr(listing, "LIMIT", 0.3)
    publish(files=(G1K, G1L))
    hub.listing_opens = threading.Event()
    result, notes = pulled("g1-1.5b")
    assert len(hub.listings()) == 1
    hub.listing_opens.set()
    assert result.is_new
    assert notes.about("newer") == []


@pytest.mark.parametrize("status", [401, 404, 429, 500, 503])
def test_a_listing_that_fails_is_asked_for_once(hub, publish, status, monkeypatch):
    publish(files=(G1K, G1L))
    waits = []
    monkeypatch.setattr(failures, "pause", lambda *details: waits.append(details))
    hub.refusals.extend([Fault(), Fault(status=status, headers={"Retry-After": "60"})])
    result, notes = pulled("g1-1.5b")
    assert result.is_new
    assert waits == []
    assert len(notes.texts) == 1
    assert len(hub.listings()) == 1


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"7",
        b"{}",
        b'{"id": 7, "siblings": 7}',
        b'{"id": "x", "siblings": [{}]}',
        b'{"id": "x", "siblings": [{"rfilename": null}]}',
    ],
)
def test_a_listing_that_is_none(hub, body):
    hub.listing_body = body
    result, notes = pulled("g1-1.5b")
    assert result.is_new
    assert len(notes.texts) == 1
    with pytest.raises(DownloadError, match=r"is not valid JSON|sends a web page|the address of a hub"):
        pull.pull("g1-1.5b", newest=True)


def test_offline_nothing_is_asked(hub, publish, monkeypatch):
    pull.pull("g1-1.5b", keep=True)
    publish()
    before = len(hub.requests)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    result, notes = pulled("g1-1.5b", force=True)
    assert result.is_new
    assert notes.about("newer") == []
    assert len(hub.requests) == before


def test_without_a_route_the_listing_is_not_asked_for(hub, monkeypatch):
    """What is in the cache is taken, once the hub cannot be reached; asking again for something else could wait."""
    pull.pull("g1-1.5b", keep=True)
    before = len(hub.requests)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    glances = []
    monkeypatch.setattr(downloads, "glance", glances.append)
    result, notes = pulled("g1-1.5b", force=True)
    assert result.is_new
    assert glances == []
    assert len(notes.texts) == 1
    assert len(hub.requests) == before


def test_models_of_other_names_have_no_generations(hub):
    hub.files["owner/repo"] = {"model.pth": hub.files[REPOSITORY][G1K]}
    pulled("hf:owner/repo/model.pth")
    assert hub.listings() == []
    for name in ("world-0.1b", "hf:owner/repo/model.pth", "hf:owner/repo"):
        with pytest.raises(
            UsageError, match=r"newest cannot be used with .*: its file is not named by generation"
        ):
            pull.pull(name, newest=True)


# ------------------------------------------------------------------------------------------ --newest


@pytest.mark.parametrize("name", ["g1-1.5b", "g1j-1.5b"])
def test_the_newest_of_a_size(hub, publish, name):
    publish(files=(G1K, G1L, G1M, G1J, EXPERIMENT, G1M.replace("1.5b", "7.2b")))
    result, notes = pulled(name, newest=True)
    assert result.stored.name == "g1m-1.5b-int8"
    assert result.reference.text == f"hf:{REPOSITORY}@{NEW}/{G1M}"
    assert result.checked_by == "the sha256 that the hub gives"
    assert ModelFile(result.stored.path).info.source["commit"] == NEW
    assert notes.about("newer") == []
    assert registry.locate("g1m-1.5b") == result.stored.path
    assert len(hub.listings()) == 1
    again, _ = pulled(name, newest=True)
    assert not again.is_new


def test_it_is_pinned_to_the_commit_of_the_listing(publish, monkeypatch):
    publish()
    real = pull.newest_of

    def then_main_moves_on(reference, reporter):
        found = real(reference, reporter)
        publish(NEWER, (G1M,))
        return found

    monkeypatch.setattr(pull, "newest_of", then_main_moves_on)
    result, _ = pulled("g1-1.5b", newest=True)
    assert result.stored.name == "g1l-1.5b-int8"
    assert ModelFile(result.stored.path).info.source["commit"] == NEW


def test_the_newest_may_be_known(hub, publish):
    """Then it is the known one, with its checksum; also where the main branch has lost it."""
    for _ in range(2):
        result, _ = pulled("g1j-1.5b", newest=True, force=True)
        assert result.stored.name == "g1k-1.5b-int8"
        assert result.checked_by == "the sha256 in models.toml"
        publish(files=(G1J,))
    assert len(hub.listings()) == 2


def test_a_known_model_of_another_day_has_a_name_of_its_own(publish):
    publish(files=(G1K.replace("20260930", "20261005"),))
    result, _ = pulled("g1-1.5b", newest=True)
    assert result.stored.name == "g1k-1.5b-20261005-int8"
    assert registry.locate("g1k-1.5b-20261005") == result.stored.path


def test_another_repository_names_models_in_its_own_way(hub, weights):
    """Two repositories may have different models of one generation and size."""
    hub.files["me/copy"] = {G1K: weights[1], G1L: weights[2]}
    result, _ = pulled(f"hf:me/copy@v1/{G1K}", newest=True)
    assert result.stored.name == "me--copy--rwkv7-g1l-1.5b-20261031-ctx32768-int8"
    assert registry.locate(f"hf:me/copy/{G1L}") == result.stored.path


@pytest.mark.parametrize(("file", "template"), [(G1L, "g1h"), (G1J.replace("g1j", "g1g2"), "g1")])
def test_the_template_is_that_of_the_generation(hub, tmp_path, file, template):
    shape = ModelConfig(**(vars(TINY) | {"n_layer": 1, "n_embd": 64, "n_ffn": 64, "vocab_size": 65536}))
    data = write_pth(tmp_path / "large.pth", random_weights(shape)).read_bytes()
    (tmp_path / "config" / "models.toml").write_text(
        '["g0-1.5b"]\nrepository = "me/g"\nfile = "rwkv7-g0-1.5b-20250101-ctx4096.pth"\n'
    )
    registry.entries.cache_clear()
    hub.files["me/g"] = {file: data}
    result, _ = pulled("g0-1.5b", newest=True)
    assert result.stored.name == f"{'-'.join(file.split('-')[1:3])}-int8"
    assert ModelFile(result.stored.path).info.template.name == template


def test_the_newest_has_to_be_asked_for(hub, monkeypatch):
    hub.refusals.extend([Fault(status=503)] * 6)
    with pytest.raises(
        DownloadError, match=r"cannot download the list of files of BlinkDL/rwkv7-g1: .*error 503"
    ):
        pull.pull("g1-1.5b", newest=True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError, match="list of files of BlinkDL/rwkv7-g1: HF_HUB_OFFLINE is set"):
        pull.pull("g1-1.5b", newest=True)
    assert model_store.listed() == []


def test_many_requests_are_waited_for(hub, publish, monkeypatch):
    waits = []
    monkeypatch.setattr(failures.time, "sleep", waits.append)
    publish()
    hub.refusals.append(Fault(status=429, headers={"Retry-After": "7"}))
    result, notes = pulled("g1-1.5b", newest=True)
    assert result.stored.name == "g1l-1.5b-int8"
    assert waits.count(7) == 1
    assert notes.texts[0] == "the server gets too many requests; trying again in 7 s"


def test_the_newest_is_checked_too(hub, publish):
    publish()
    with pytest.raises(VerificationError):
        pull.pull("g1-1.5b", newest=True, sha256="0" * 64)
    hub.faults.append(Fault(corrupt=True))
    with pytest.raises(VerificationError):
        pull.pull("g1-1.5b", newest=True)
    assert model_store.listed() == []


# ------------------------------------------------------------------------------------------ what is gone


@pytest.mark.parametrize("what", ["revision", "file"])
def test_a_known_model_that_is_gone(hub, publish, what):
    publish(files=(G1L, G1J.replace("g1j", "g1i")))
    if what == "revision":
        del hub.history[REPOSITORY][OLD]
    else:
        hub.history[REPOSITORY][OLD] = {}
    result, notes = pulled("g1-1.5b")
    assert result.stored.name == "g1l-1.5b-int8"
    assert ModelFile(result.stored.path).info.source["commit"] == NEW
    assert notes.texts[0] == (
        f"cannot download {G1K} of BlinkDL/rwkv7-g1: there is no such {what}; "
        "taking g1l-1.5b, the newest of this size, from the main branch"
    )
    assert len(notes.texts) == 2  # and that it is downloaded
    again, _ = pulled("g1-1.5b")
    assert (again.stored, again.is_new) == (result.stored, False)


def test_a_commit_that_is_gone_from_a_branch_that_has_the_file(hub, publish, weights):
    publish(files=(G1K, G1L))
    hub.files[REPOSITORY][G1K] = weights[1]
    del hub.history[REPOSITORY][OLD]
    result, notes = pulled("g1-1.5b")
    assert result.stored.name == "g1k-1.5b-int8"
    assert result.checked_by == "the sha256 in models.toml"
    assert notes.about("there is no such revision; taking the same file from the main branch")
    hub.files[REPOSITORY][G1K] = weights[2]  # of the same name, but not the same
    with pytest.raises(VerificationError, match=r"not the file that models\.toml describes"):
        pull.pull("g1-1.5b", force=True)


def test_the_newest_in_its_place_may_be_known_with_its_checksum(hub, publish, weights):
    publish(files=(G1K,))
    del hub.history[REPOSITORY][OLD]
    with pytest.raises(VerificationError, match=r"not the file that models\.toml describes"):
        pull.pull("g1j-1.5b")
    hub.files[REPOSITORY][G1K] = weights[1]
    result, _ = pulled("g1j-1.5b")
    assert result.stored.name == "g1k-1.5b-int8"
    assert result.checked_by == "the sha256 in models.toml"


def test_a_mirror_of_the_very_model_comes_before_another_model(hub, publish, weights, tmp_path):
    publish()
    del hub.history[REPOSITORY][OLD]
    hub.plain["x.pth"] = weights[1]
    own = tmp_path / "config" / "models.toml"
    own.write_text(own.read_text() + f'mirrors = ["{hub.endpoint}/plain/x.pth"]\n')
    registry.entries.cache_clear()
    result, _ = pulled("g1-1.5b")
    assert (result.stored.name, result.mirror) == ("g1k-1.5b-int8", f"{hub.endpoint}/plain/x.pth")
    del hub.plain["x.pth"]
    result, notes = pulled("g1-1.5b", force=True)
    assert result.stored.name == "g1l-1.5b-int8"
    assert "; its mirrors failed too: " in notes.texts[1]
    assert notes.texts[1].endswith("; taking g1l-1.5b, the newest of this size, from the main branch")


def test_what_is_not_replaced_by_another_model(hub, publish, weights):
    publish()
    del hub.history[REPOSITORY][OLD]
    gone = "cannot download .* there is no such"
    with pytest.raises(DownloadError, match=f"{gone} revision$"):
        pull.pull("g1-1.5b", sha256=hashlib.sha256(weights[1]).hexdigest())  # of that very file
    with pytest.raises(DownloadError, match=f"{gone} file$"):
        pull.pull(f"hf:{REPOSITORY}/{G1K.replace('20260930', '20260931')}")  # the user knows which
    hub.files[REPOSITORY] = {"README.md": b""}
    with pytest.raises(DownloadError, match=f"{gone} revision$"):
        pull.pull("g1-1.5b")
    del hub.files[REPOSITORY]
    with pytest.raises(DownloadError, match=f"{gone} repository"):
        pull.pull("g1-1.5b")
    assert model_store.listed() == []


# ------------------------------------------------------------------------------------------ commands


def test_the_command(publish, rwkv):
    publish(files=(G1K, G1L))
    result = rwkv("pull", "g1-1.5b", "--newest")
    assert result.code == 0
    assert result.out.startswith("g1l-1.5b-int8, ")
    assert rwkv("models", "verify", "g1l-1.5b").out == "g1l-1.5b-int8: intact\n"
    assert json.loads(rwkv("models", "show", "g1l-1.5b", "--json").out)["name"] == "g1l-1.5b-int8"
    assert json.loads(rwkv("models", "path", "g1-1.5b", "--json").out)["path"].endswith(
        "g1l-1.5b-int8.safetensors"
    )
    assert rwkv("models", "rm", "g1l-1.5b").out.startswith("removed g1l-1.5b-int8")
    unknown = rwkv("pull", "g1l-1.5b").sentence
    assert unknown.endswith("is g1k-1.5b; `rwkv pull g1k-1.5b --newest` gets what is newer")
    refused = rwkv("pull", "world-0.1b", "--newest")
    assert refused.code == 2
    assert refused.sentence.startswith("--newest cannot be used with world-0.1b: ")


def test_the_list_of_what_is_newer(hub, publish, weights, rwkv):
    publish(
        files=(
            G1L,
            "rwkv7-g1k-2.9b-20260930-ctx25600.pth",
            "rwkv7-g1i-7.2b-20260805-ctx16384.pth",
            "rwkv7-g1l-30b-20261101-ctx32768.pth",
            EXPERIMENT,
        )
    )
    result = rwkv("models", "list", "--known", "--newest", "--json")
    assert len(hub.listings()) == 1
    rows = json.loads(result.out)
    assert [row["size"] for row in rows] == ["0.1b", "0.4b", "1.5b", "2.9b", "7.2b", "13.3b", "30b"]
    by_size = {row["size"]: row for row in rows}
    assert by_size["1.5b"] == {
        "repository": REPOSITORY,
        "size": "1.5b",
        "known": "g1k-1.5b",
        "known_date": "2026-09-30",
        "newest": "g1l-1.5b",
        "newest_date": "2026-10-31",
        "file": G1L,
        "bytes": len(weights[2]),
        "new": True,
        "command": "rwkv pull g1-1.5b --newest",
    }
    assert {size: row["command"] for size, row in by_size.items()} == {
        "0.1b": "rwkv pull g1-0.1b",
        "0.4b": "rwkv pull g1-0.4b",
        "1.5b": "rwkv pull g1-1.5b --newest",
        "2.9b": "rwkv pull g1k-2.9b",
        "7.2b": "rwkv pull g1k-7.2b",
        "13.3b": "rwkv pull g1-13.3b",
        "30b": f"rwkv pull hf:{REPOSITORY}/rwkv7-g1l-30b-20261101-ctx32768.pth",
    }
    assert [row["size"] for row in rows if row["new"]] == ["1.5b", "30b"]
    assert by_size["0.1b"]["newest"] is by_size["0.1b"]["bytes"] is by_size["30b"]["known"] is None
    lines = rwkv("models", "list", "--known", "--newest").out.splitlines()
    assert lines[0].split()[:2] == ["size", "known"]
    assert lines[3].split() == (
        "1.5b g1k-1.5b g1l-1.5b (new) 2026-10-31".split()
        + f"{len(weights[2]) / 1e6:.1f} MB rwkv pull g1-1.5b --newest".split()
    )
    assert lines[4].split()[-3:] == ["rwkv", "pull", "g1k-2.9b"]


def test_the_list_of_what_is_newer_without_a_connection(hub, rwkv, monkeypatch):
    hub.close()
    sentence = rwkv("models", "list", "--known", "--newest").sentence
    assert sentence.startswith("cannot download the list of files of BlinkDL/rwkv7-g1: 127.0.0.1:")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in rwkv("models", "list", "--known", "--newest", "--json").err
    assert "--newest compares the known models" in rwkv("models", "list", "--newest").sentence
