"""Datasets elsewhere: what fsspec reaches, and an S3 server on this machine."""

import json
import socket
import subprocess
import sys
import time
import urllib.request
import uuid

import fsspec
import pytest

from rwkv_cli.datasets import storage
from rwkv_cli.datasets.storage import OutputFolder, find
from rwkv_cli.errors import StorageError, UsageError

LINES = "".join(json.dumps({"prompt": f"row {i}", "n": i}) + "\n" for i in range(20))


@pytest.fixture(scope="module")
def s3():
    """The URL of a bucket on a server of moto."""
    pytest.importorskip("moto")
    pytest.importorskip("s3fs")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    endpoint = f"http://127.0.0.1:{port}"
    for _ in range(200):
        try:
            urllib.request.urlopen(endpoint, timeout=1).close()
            break
        except OSError:
            time.sleep(0.1)
    yield endpoint
    server.kill()
    server.wait()


@pytest.fixture(params=["memory", "s3"])
def bucket(request, monkeypatch):
    """The URL of a folder elsewhere, with a file of prompts in it."""
    if request.param == "memory":
        url = f"memory://{uuid.uuid4().hex}"
    else:
        endpoint = request.getfixturevalue("s3")
        for name, value in (
            ("ACCESS_KEY_ID", "test"),
            ("SECRET_ACCESS_KEY", "test"),
            ("ENDPOINT_URL", endpoint),
        ):
            monkeypatch.setenv(f"AWS_{name}", value)
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        name = uuid.uuid4().hex
        fsspec.filesystem("s3").mkdir(name)
        url = f"s3://{name}/data"
    system, path = fsspec.core.url_to_fs(url)
    system.pipe_file(f"{path}/in/a.jsonl", LINES[: LINES.index("\n") + 1].encode())
    system.pipe_file(f"{path}/in/b.jsonl", LINES[LINES.index("\n") + 1 :].encode())
    return url


def answers(url):
    system, path = fsspec.core.url_to_fs(url)
    system.invalidate_cache()
    return [
        json.loads(line)
        for part in sorted(system.glob(f"{path}/part-*"))
        for line in system.cat(part).splitlines()
    ]


def test_a_dataset_elsewhere_is_answered(rwkv, tiny_model, bucket):
    """From there to there; after an interruption only what is not there is computed."""
    command = ("batch", f"{bucket}/in", f"{bucket}/out", "-m", tiny_model, "-n", "5", "--seed", "1")
    result = rwkv(*command, "--shard-rows", "4")
    assert (result.code, result.out) == (0, ""), result.err
    whole = answers(f"{bucket}/out")
    assert [row["n"] for row in whole] == list(range(20))
    system, path = fsspec.core.url_to_fs(bucket)
    system.rm_file(f"{path}/out/part-000002.jsonl")
    result = rwkv(*command)
    assert (result.code, result.err.splitlines()[0]) == (
        0,
        "16 rows of an earlier run: continuing with the other rows",
    )
    assert answers(f"{bucket}/out") == whole
    system.invalidate_cache()
    names = {each.rsplit("/", 1)[-1] for each in system.ls(f"{path}/out", detail=False)}
    assert {name for name in names if not name.startswith("part-")} == {"_manifest.json", "_SUCCESS"}
    system.pipe_file(f"{path}/in/b.jsonl", b"{}")
    assert "the input has changed since" in rwkv(*command).sentence


def test_globs_elsewhere(bucket):
    assert [each.url for each in find([f"{bucket}/in/*.jsonl"], [".jsonl"])] == [
        f"{bucket}/in/a.jsonl".replace("memory://", "memory:///"),
        f"{bucket}/in/b.jsonl".replace("memory://", "memory:///"),
    ]


def test_a_place_that_is_not_there_is_a_sentence(rwkv, bucket):
    said = rwkv("batch", f"{bucket}/none.jsonl", f"{bucket}/out").sentence
    assert said == f"cannot read {bucket}/none.jsonl: no such file or directory"


@pytest.mark.parametrize(
    ("place", "said"),
    [
        (
            "gs://bucket/x.jsonl",
            "cannot read gs://bucket/x.jsonl: a package is missing (Please install gcsfs",
        ),
        ("abacus://bucket/x.jsonl", "cannot read abacus://bucket/x.jsonl: "),
    ],
)
def test_a_file_system_that_is_missing_is_a_sentence(rwkv, tmp_path, place, said):
    result = rwkv("batch", place, tmp_path / "out")
    assert result.code == 2
    assert result.sentence.startswith(said)


def test_a_file_elsewhere_is_complete_or_absent(monkeypatch):
    """Where a file system has no atomic writes, a file gets its name once it is complete."""
    folder = OutputFolder(f"memory://{uuid.uuid4().hex}")
    folder.write("part-000000.jsonl", b"first")
    system = fsspec.filesystem("memory")

    def full(_path, _data):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(system, "mv", lambda *_: full(*_))
        with pytest.raises(StorageError, match="no space left on the disk"):
            folder.write("part-000000.jsonl", b"second")
    assert folder.read("part-000000.jsonl") == b"first"
    assert folder.has("part-000000.jsonl")
    assert not folder.has("part-000001.jsonl")


def test_a_glob_is_a_file_where_there_is_one_of_its_name(tmp_path):
    odd = tmp_path / "a[1].jsonl"
    odd.write_text("x")
    assert [each.url for each in find([str(odd)], [".jsonl"])] == [str(odd)]
    with pytest.raises(UsageError, match="no file of prompts"):
        find([str(tmp_path / "b*.jsonl")], [".jsonl"])


def test_two_programs_do_not_write_to_one_folder(rwkv, tmp_path):
    file = tmp_path / "in.jsonl"
    file.write_text(LINES)
    with OutputFolder(str(tmp_path / "out")).locked():
        result = rwkv("batch", file, tmp_path / "out")
    assert result.code == 2
    assert result.sentence == f"another rwkv is writing to {tmp_path / 'out'}: wait for it, or end it"


def test_places():
    assert storage.is_remote("s3://bucket/key")
    assert not storage.is_remote("file:///x")
    assert storage.absolute("s3://bucket/key/") == "s3://bucket/key"
    assert storage.absolute("file:///x/y") == "/x/y"
