"""From a name to a model in the store, and what `rwkv models` tells of it."""

import hashlib
import json
import os
import random
import subprocess
import sys
import threading

import numpy as np
import pytest
from conftest import Result
from helpers.hub_server import Fault
from helpers.writers import TINY, random_weights, write_gguf, write_hf, write_pth, write_torch

from rwkv_cli.catalog import model_store, pull, registry
from rwkv_cli.catalog.hub import download
from rwkv_cli.errors import (
    DownloadError,
    StorageError,
    UnsupportedModelError,
    UsageError,
    VerificationError,
)
from rwkv_cli.files.model_file import ModelFile
from rwkv_cli.files.weight_layouts import WEIGHT_TYPES

WEIGHTS = random_weights(TINY, seed=3)
PTH = "hf:owner/repo/rwkv7-g1-tiny.pth"
MINE = """
[tiny]
description = "a tiny one"
repository = "owner/repo"
file = "rwkv7-g1-tiny.pth"
parameters = 700_000
template = "qa"
sampling = { temperature = 0.25 }
license = "CC0-1.0"
aliases = ["t"]
"""

pytestmark = pytest.mark.usefixtures("hub")


@pytest.fixture
def hub(local_hub, tmp_path):
    data = write_pth(tmp_path / "x.pth", WEIGHTS).read_bytes()
    local_hub.files["owner/repo"] = {"rwkv7-g1-tiny.pth": data}
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "models.toml").write_text(MINE)
    registry.entries.cache_clear()
    return local_hub


@pytest.fixture
def folder_of():
    """The contents of a folder, as files of a repository."""
    return lambda folder: {path.name: path.read_bytes() for path in folder.iterdir()}


def left(folder):
    return [path.name for path in folder.rglob("*") if path.is_file() and "lock" not in path.name]


def test_a_known_model(hub, tmp_path):
    pulled = pull.pull("T")
    assert pulled.stored.name == "tiny-int8"
    assert pulled.is_new
    assert pulled.checked_by == "the sha256 that the hub gives"
    assert registry.locate("t") == registry.locate("tiny") == registry.locate(PTH) == pulled.stored.path
    model = ModelFile(pulled.stored.path)
    np.testing.assert_allclose(model.tensor("head.weight"), WEIGHTS["head.weight"], atol=0.01)
    assert model.info.template.name == "qa"
    assert model.info.sampling == {"temperature": 0.25}
    source = model.info.source
    assert source["sha256"] == hashlib.sha256(hub.files["owner/repo"]["rwkv7-g1-tiny.pth"]).hexdigest()
    assert source["origin"] == PTH
    assert source["commit"] == hub.commit
    assert (source["registry"], source["license"]) == ("tiny", "CC0-1.0")
    assert model.is_intact()
    assert left(tmp_path / "hf") == []


def test_what_is_there_is_not_pulled_again(hub):
    pull.pull("tiny")
    before = len(hub.requests)
    again = pull.pull("tiny")
    assert not again.is_new
    assert len(hub.requests) == before
    assert pull.pull("tiny", force=True).is_new


def test_a_damaged_file_in_the_store_is_replaced():
    path = pull.pull("tiny").stored.path
    path.write_bytes(path.read_bytes()[:1000])
    assert pull.pull("tiny").is_new
    assert ModelFile(path).is_intact()


@pytest.mark.parametrize("weight_type", WEIGHT_TYPES)
def test_types(weight_type):
    pulled = pull.pull("tiny", weight_type)
    assert ModelFile(pulled.stored.path).info.weight_type == weight_type
    assert pulled.stored.name == f"tiny-{weight_type}"


def test_keep(hub):
    pulled = pull.pull("tiny", keep=True)
    assert pulled.original.read_bytes() == hub.files["owner/repo"]["rwkv7-g1-tiny.pth"]
    sent = hub.sent
    other = pull.pull("tiny", "int4")
    assert hub.sent == sent
    assert other.original == pulled.original  # it was there before, and stays


def test_a_folder_of_the_hub(hub, tmp_path, folder_of):
    hub.files["owner/rwkv7-0.1B-world"] = folder_of(write_hf(tmp_path / "x", WEIGHTS, shards=3))
    pulled = pull.pull("hf:owner/rwkv7-0.1B-world")
    assert pulled.stored.name == "owner--rwkv7-0.1b-world-int8"
    assert ModelFile(pulled.stored.path).info.source["name"] == "rwkv7-0.1B-world"
    assert left(tmp_path / "hf") == []


def test_a_folder_in_a_repository(hub, tmp_path, folder_of):
    name = "rwkv7-g1k-1.5b-20260930-ctx25600"
    files = folder_of(write_hf(tmp_path / "x", WEIGHTS))
    hub.files["owner/st"] = {f"{name}/{file}": data for file, data in files.items()}
    pulled = pull.pull(f"hf:owner/st/{name}")
    assert pulled.stored.name.startswith(f"owner--st--{name}")
    assert ModelFile(pulled.stored.path).info.source["name"] == name
    assert registry.locate(f"hf:owner/st/{name}") == pulled.stored.path
    assert left(tmp_path / "hf") == []


def test_a_gguf_at_an_address(hub, tmp_path):
    hub.plain["tiny.gguf"] = write_gguf(tmp_path / "x.gguf", WEIGHTS).read_bytes()
    pulled = pull.pull(f"{hub.endpoint}/plain/tiny.gguf")
    assert pulled.checked_by is None
    assert ModelFile(pulled.stored.path).info.source["checked_by"] == "nothing but the size"
    assert not left(tmp_path / "cache")


@pytest.mark.parametrize("seed", range(3))
def test_cuts_at_random_and_programs_that_end(hub, seed):
    """Each run is cut several times, until it fails; the next one goes on."""
    rng, size = random.Random(seed), len(hub.files["owner/repo"]["rwkv7-g1-tiny.pth"])
    for _ in range(3):
        hub.faults.append(Fault(cut_after=rng.randrange(size // 4)))
        hub.faults.extend(Fault(status=503) for _ in range(6))
        with pytest.raises(DownloadError):
            pull.pull("tiny")
        hub.faults.clear()
        assert model_store.listed() == []
    assert ModelFile(pull.pull("tiny").stored.path).is_intact()
    assert hub.sent == size


def test_a_wrong_file_never_gets_into_the_store(hub):
    hub.faults.append(Fault(corrupt=True))
    with pytest.raises(VerificationError):
        pull.pull("tiny")
    assert model_store.listed() == []


def test_a_conversion_that_fails_keeps_what_is_verified(hub, monkeypatch):
    def full(*_args, **_options):
        raise StorageError("no space left on the disk")

    with monkeypatch.context() as patched:
        patched.setattr(pull, "convert_checkpoint", full)
        with pytest.raises(StorageError):
            pull.pull("tiny")
    sent = hub.sent
    assert pull.pull("tiny").is_new
    assert hub.sent == sent


def test_other_models_are_refused_and_removed(hub, tmp_path):
    v6 = {
        "blocks.0.att.time_maa_x": np.zeros((1, 1, 64), np.float32),
        "emb.weight": np.zeros((90, 64), np.float32),
    }
    hub.files["owner/repo"]["v6.pth"] = write_torch(tmp_path / "v6.pth", v6).read_bytes()
    with pytest.raises(UnsupportedModelError, match="is an RWKV-6 model"):
        pull.pull("hf:owner/repo/v6.pth")
    assert left(tmp_path / "hf") == []
    assert model_store.listed() == []


def test_a_large_model_on_a_small_disk(hub, monkeypatch):
    (registry.paths.user_registry_file()).write_text(MINE.replace("700_000", "5_000_000_000"))
    registry.entries.cache_clear()
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10**9}))
    with pytest.raises(StorageError, match=r"not enough space .* it needs 6.0 GB, and 1.0 GB are free"):
        pull.pull("tiny")
    assert not hub.gets()


def test_two_pulls_at_once_are_one(hub):
    results = []
    threads = [threading.Thread(target=lambda: results.append(pull.pull("tiny"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(each.is_new for each in results) == [False, False, True]
    assert len(hub.gets()) == 1


def test_what_needs_no_pull():
    with pytest.raises(UsageError, match="gosling is built in: it needs no download"):
        pull.pull("gosling")
    with pytest.raises(UsageError, match="did you mean tiny"):
        pull.pull("tinny")


# ------------------------------------------------------------------------------------------ commands


def test_the_command(rwkv):
    result = rwkv("pull", "tiny")
    assert result.code == 0
    assert result.out.startswith("tiny-int8, ")
    assert "checked by the sha256 that the hub gives; " in result.out
    assert "downloading hf:owner/repo/rwkv7-g1-tiny.pth (" in result.err
    assert "is already installed" in rwkv("pull", "tiny").out
    assert rwkv("pull", "tiny", "--quiet") == Result(0, "", "")
    facts = json.loads(rwkv("pull", "tiny", "--force", "--keep", "--json").out)
    assert facts["new"] is True
    assert facts["original"].endswith("rwkv7-g1-tiny.pth")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["hf:owner/none"], 1, "there is no such repository"),
        (["../../x"], 2, "unknown model ../../x"),
        (["hf:owner/../x"], 2, "does not name a repository of a model"),
        (["tiny", "--sha256", "12"], 2, "64 hexadecimal digits"),
        (["tiny", "--sha256", "0" * 64], 1, "is not the file that --sha256 describes"),
        (["tiny", "--type", "int2"], 2, "int2"),
    ],
)
def test_what_is_wrong_is_one_sentence(rwkv, arguments, code, message):
    result = rwkv("pull", *arguments)
    assert result.code == code
    assert message in result.err
    assert result.err.count("\n") == 1
    assert result.out == ""


def test_models(rwkv):
    assert "no models installed yet" in rwkv("models", "list").err
    rwkv("pull", "tiny")
    assert "MATH500" in rwkv("pull", "tiny", "--type", "int4").err  # int4 takes much from small models
    listed = rwkv("models", "list").out.splitlines()
    assert listed[0].split() == ["name", "type", "size", "parameters", "last", "use"]
    assert [line.split()[:2] for line in listed[1:]] == [["tiny-int4", "int4"], ["tiny-int8", "int8"]]
    rows = json.loads(rwkv("models", "list", "--json").out)
    assert rows[0]["origin"] == PTH
    assert rows[0]["last_used"] is None
    known = json.loads(rwkv("models", "list", "--known", "--json").out)
    assert known[-1]["name"] == "tiny"
    assert known[-1]["path"].endswith("tiny-int8.safetensors")
    assert "world-0.1b" in rwkv("models", "list", "--known").out
    assert "weight type" in rwkv("models", "show", "tiny-int4").out.replace("_", " ")
    assert json.loads(rwkv("models", "show", "t", "--json").out)["file"]["template"] == "qa"
    assert rwkv("models", "path", "tiny").out.strip().endswith("tiny-int8.safetensors")
    assert rwkv("models", "path").out.strip() == str(model_store.folder())
    assert rwkv("models", "path", "--config").out.strip().endswith("models.toml")
    assert rwkv("models", "verify").out.splitlines() == ["tiny-int4: intact", "tiny-int8: intact"]
    result = rwkv("models", "rm", "tiny")
    assert result.code == 2
    assert "several types: choose tiny-int4 or tiny-int8" in result.err
    assert rwkv("models", "rm", "tiny-int4").out.startswith("removed tiny-int4, ")
    assert json.loads(rwkv("models", "rm", "tiny", "--json").out)[0]["name"] == "tiny-int8"
    assert rwkv("models", "rm", "tiny").code == 2


def test_models_by_reference(hub, rwkv):
    hub.files["owner/other"] = hub.files["owner/repo"]
    rwkv("pull", "hf:owner/other")
    assert json.loads(rwkv("models", "show", "hf:owner/other", "--json").out)["name"] == "owner--other-int8"
    assert rwkv("models", "verify", "hf:owner/other").out == "owner--other-int8: intact\n"
    assert rwkv("models", "path", "hf:owner/other").out.endswith("owner--other-int8.safetensors\n")
    assert rwkv("models", "rm", "hf:owner/other").code == 0
    missing = rwkv("models", "show", "https://x.y/a.pth?b&c")
    assert missing.sentence.endswith(
        "https://x.y/a.pth is not on this machine: download it with `rwkv pull` and its whole address"
    )


def test_verify_finds_a_changed_bit(rwkv):
    path = pull.pull("tiny").stored.path
    data = bytearray(path.read_bytes())
    data[-1000] ^= 1
    path.write_bytes(data)
    result = rwkv("models", "verify")
    assert result.code == 1
    assert "tiny-int8: damaged" in result.out
    assert "rwkv: damaged: tiny-int8; remove with `rwkv models rm` and pull again" in result.err


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "..", "a/../b", "x\x1b[31m"])
@pytest.mark.parametrize("command", ["show", "rm", "verify", "path"])
def test_names_that_would_leave_the_store(rwkv, command, name):
    result = rwkv("models", command, name)
    if result.code == 0:  # a file or folder that is there, for `path` alone
        assert command == "path"
        return
    assert result.code in (1, 2)
    assert result.err.count("\n") == 1
    assert "\x1b[31m" not in result.err


def test_use_shows_in_the_list(rwkv):
    rwkv("pull", "tiny")
    model_store.note_use(registry.locate("tiny"))
    assert json.loads(rwkv("models", "list", "--json").out)[0]["last_used"]


def test_a_model_that_is_not_here_in_a_pipe(rwkv):
    result = rwkv("generate", "--model", "tiny", stdin=b"Once")
    assert result == Result(
        1,
        "",
        "rwkv: the model tiny is not on this machine: download it with `rwkv pull tiny`\n",
    )


def test_a_model_that_is_not_here_on_a_terminal(hub, terminal, tmp_path):
    environment = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home")}
    command = ("generate", "--model", "tiny", "--prompt", "x", "--max-tokens", "1", "--device", "reference")
    with terminal(*command, **environment) as it:
        it.read_until("download it now (1.4 MB)?")
        os.write(it._master, b"n\n")
        assert it.finish() == 1
    with terminal(*command, **environment) as it:
        it.read_until("download it now (1.4 MB)?")
        os.write(it._master, b"y\n")
        it.finish()  # a tiny model without a tokenizer cannot read the prompt
    assert [stored.name for stored in model_store.listed()] == ["tiny-int8"]
    with terminal("pull", "tiny", "--force", **environment) as it:
        it.read_until("downloading")
        assert it.finish() == 0


def test_a_program_that_is_killed_leaves_nothing_but_what_it_can_use(hub, tmp_path):
    hub.faults.append(Fault(trickle=0.05))
    environment = os.environ | {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home")}
    process = subprocess.Popen([sys.executable, "-m", "rwkv_cli", "pull", "tiny"], env=environment)
    part = None
    while part is None or part.stat().st_size < 5000:
        assert process.poll() is None
        part = next((tmp_path / "home").rglob("*.rwkv-part"), None)
    process.kill()
    process.wait()
    assert model_store.listed() == []
    sent = hub.sent
    done = subprocess.run([sys.executable, "-m", "rwkv_cli", "pull", "tiny", "--quiet"], env=environment)
    assert done.returncode == 0
    assert hub.sent - sent < len(hub.files["owner/repo"]["rwkv7-g1-tiny.pth"])
    assert not left(tmp_path / "home")


def test_completion():
    environment = os.environ | {"_RWKV_COMPLETE": "complete_bash", "COMP_CWORD": "2"}

    def completed(line):
        done = subprocess.run(
            [sys.executable, "-c", "from rwkv_cli.cli.main import run; run([])"],
            env=environment | {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)},
            capture_output=True,
            text=True,
        )
        return done.stdout.split()

    assert completed("rwkv pull tin") == ["tiny"]
    pull.pull("tiny")
    assert completed("rwkv generate --model ti") == ["tiny", "tiny-int8"]
    assert completed("rwkv pull --type i") == ["int8", "int4"]


def test_what_is_secret_in_an_address_is_not_shown_or_recorded(rwkv, hub, tmp_path):
    hub.plain["m.pth"] = hub.files["owner/repo"]["rwkv7-g1-tiny.pth"]
    address = f"{hub.endpoint}/plain/m.pth"
    secret = address.replace("//", "//me:PASSW0RD@") + "?part=1&X-Amz-Signature=SIGNATURE#TOKEN"
    first = rwkv("pull", secret, "--json")
    again = rwkv("pull", secret.replace("SIGNATURE", "ANOTHER"))
    here = json.loads(first.out)
    assert (here["origin"], here["new"], first.code) == (address, True, 0)
    assert f"{here['name']} is already installed" in again.out
    assert ModelFile(model_store.path_of(here["name"])).info.source["origin"] == address
    other = rwkv("pull", secret.replace("part=1", "part=2"), "--json")
    assert json.loads(other.out)["name"] != here["name"]
    gone = secret.replace("m.pth", "gone.pth")
    malformed = "http://me:PASS/W0RD?@host:1/x?token=TOKEN"
    failed = [
        rwkv(*command)
        for address in (gone, malformed, secret.replace("http", "ftp"))
        for command in (("pull", address), ("generate", "-m", address, "-p", "x"), ("models", "rm", address))
    ]
    assert all(done.code for done in failed)
    shown = "".join(done.out + done.err for done in (first, again, other, *failed))
    saved = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    for word in ("PASS", "W0RD", "SIGNATURE", "ANOTHER", "TOKEN"):
        assert word not in shown
        assert word.encode() not in saved
    assert {header.get("Authorization") for _, path, header in hub.requests if "/plain/m" in path} == {
        "Basic bWU6UEFTU1cwUkQ="
    }
