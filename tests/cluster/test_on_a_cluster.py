"""Datasets answered on a Ray cluster: rows of Ray Data, and `rwkv batch --ray`, also while parts of it are killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_AUTH_MODE"] = "disabled"  # otherwise a token is written to the home folder
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  # otherwise it is 15, and other programs go first

pytest.importorskip("ray")

import pyarrow as pa
import ray
from helpers.datasets import Versions, answers_of, check_complete, parts_of, processes, write_rows
from ray.cluster_utils import Cluster

import rwkv_cli
from rwkv_cli.engine.constraints.grammar import Grammar
from rwkv_cli.errors import UsageError
from rwkv_cli.ray import Generator, replicas

N, ROWS = 240, 8
SHARDS = -(-N // ROWS)
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def cluster(compiled_kernels, tmp_path_factory):  # noqa: ARG001
    """Two nodes with a core each: `cluster.address` is the address; the second node is `cluster.second`."""
    os.environ["RWKV_DATA_DIR"] = str(tmp_path_factory.mktemp("data"))  # of what runs on the nodes
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    found.second = found.add_node(num_cpus=1)
    yield found
    found.shutdown()


@contextmanager
def driver(cluster):
    """This process as the driver."""
    ray.init(cluster.address, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


def test_rows_of_ray_data_are_answered(cluster, tiny_model):
    rows = [{"n": i, "question": f"row {i}" if i % 7 else "", "max_tokens": 3 + i % 4} for i in range(60)]
    with driver(cluster):
        data = ray.data.from_items(rows, override_num_blocks=4)
        answered = data.map_batches(
            Generator,
            fn_constructor_kwargs={
                "model": str(tiny_model),
                "document": "What has been read.",
                "columns": {"prompt": "question"},
                "template": "qa",
                "seed": 4,
                "banned": frozenset([0]),
            },
            batch_format="pyarrow",
            batch_size=10,
            num_cpus=1,
            compute=replicas(2),
        )
        found = sorted(answered.take_all(), key=lambda row: row["n"])
    assert [{name: row[name] for name in ("n", "question", "max_tokens")} for row in found] == rows
    for row in found:
        assert (row["error"] is None) == bool(row["n"] % 7) == (row["text"] is not None)
        if not row["error"]:
            assert 0 < row["generated_tokens"] <= row["max_tokens"]
    assert {row["error"] for row in found if row["error"]} == {'"prompt" must be a non-empty text'}


@pytest.fixture(scope="module")
def generator(tiny_model):
    return Generator(str(tiny_model), seed=1, max_tokens=5)


def test_a_batch_keeps_its_order_and_the_same_row_has_the_same_answer(generator):
    table = pa.table({"prompt": ["a", "b", "", "a"], "x": [1, None, 3, 4]})
    found = generator(table)
    assert found.column_names == [
        *("prompt", "x", "text", "thought", "finish", "prompt_tokens", "generated_tokens", "error")
    ]
    assert found.select(["prompt", "x"]).equals(table)
    text = found["text"].to_pylist()
    assert text[0] == text[3]
    assert [error is None for error in found["error"].to_pylist()] == [True, True, False, True]
    reverse = generator(table.take([3, 2, 1, 0]))["text"].to_pylist()
    assert reverse == text[::-1]
    by_column = generator({name: table[name].to_numpy() for name in ("prompt", "x")})
    assert by_column["text"].to_pylist() == text
    assert generator(table.to_pandas())["text"].to_pylist() == text
    assert generator(table.slice(0, 0)).num_rows == 0


def test_a_row_continues_a_document(tiny_model):
    model = rwkv_cli.load(tiny_model)
    session = model.session(rwkv_cli.SamplingSettings())
    session.feed(model.encode_prompt("What has been read.", model.template))
    given = {"max_tokens": 9, "temperature": 0}
    expected = model.generate(" And", start=session.freeze(), after_document=True, template=None, **given)
    found = Generator(str(tiny_model), document="What has been read.", **given)(
        pa.table({"prompt": [" And"]})
    )
    assert found["text"].to_pylist() == ["".join(step.text for step in expected)]


def test_what_a_generator_refuses(generator, tiny_model):
    with pytest.raises(UsageError, match="has no column 'prompt'"):
        generator(pa.table({"question": ["a"]}))
    with pytest.raises(UsageError, match="has a column 'text', which is also one of the answer"):
        generator(pa.table({"prompt": ["a"], "text": ["b"]}))
    with pytest.raises(UsageError, match="either state or document"):
        Generator(str(tiny_model), state="a", document="b")
    with pytest.raises(TypeError, match="unknown setting 'temprature'; did you mean temperature"):
        Generator(str(tiny_model), temprature=1)


def test_answers_have_a_form(tiny_model):
    asked = Generator(str(tiny_model), constraint=Grammar.choices(["yes", "no"]))
    assert asked(pa.table({"prompt": ["a"]}))["text"].to_pylist()[0] in ("yes", "no")


# ------------------------------------------------------------------------------------------------ rwkv batch --ray


@pytest.fixture
def run(tmp_path, tiny_model, cluster):
    """Start the command: its process."""
    file = write_rows(tmp_path / "in.jsonl", N)

    def start(*options, out=tmp_path / "out", on_ray=True):
        command = [sys.executable, "-m", "rwkv_cli", "batch", file, out, "-m", tiny_model]
        command += ["-n", "60", "--ban", "0", "--seed", "3", "--shard-rows", ROWS, "-q", *options]
        if on_ray:
            command += ["--ray-address", cluster.address]
        words = [str(word) for word in command]
        return subprocess.Popen(
            words, stderr=subprocess.PIPE, env={**os.environ, "RAY_AUTH_MODE": "disabled"}
        )

    return start


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def wait_for(n, out, process, seconds=90):
    deadline = time.monotonic() + seconds
    while len(parts_of(out)) < n and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def finish(process):
    _, said = process.communicate(timeout=180)
    assert process.returncode == 1, said.decode()
    assert said.decode().endswith(f"rwkv: {N // 17} of {N} rows failed: the column of errors says why\n")


def test_a_replica_a_node_and_the_driver_are_killed(run, out, cluster):
    chance, versions = random.Random(1), Versions(out)
    process = run()
    wait_for(2, out, process)
    os.kill(chance.choice(processes("MapWorker")), signal.SIGKILL)
    versions.look()
    wait_for(SHARDS // 4, out, process)
    cluster.remove_node(cluster.second, allow_graceful=False)
    versions.look()
    wait_for(SHARDS // 2, out, process)
    process.kill()
    process.wait()
    assert versions.look() < SHARDS  # otherwise nothing was interrupted
    cluster.second = cluster.add_node(num_cpus=1)
    finish(run())
    versions.look()
    check_complete(out, N)
    alone = out.with_name("alone")
    finish(run(out=alone, on_ray=False))
    assert answers_of(alone) == answers_of(out)


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--template", "world", "--think", "abacus"), 2, "the template world has no thinking modes"),
        (("-m", "no/such/model.pth"), None, "no/such/model.pth"),
        (("--gpus", "1"), 1, "GPUs: too few for a replica with 1 and 1"),
    ],
)
def test_what_a_replica_refuses_is_a_sentence(run, options, code, said):
    process = run(*options)
    _, error = process.communicate(timeout=90)
    text = error.decode()
    assert process.returncode == code or (code is None and process.returncode in (1, 2)), text
    assert said in text
    assert "Traceback" not in text


def test_a_cluster_that_is_not_there(run):
    process = run("--ray-address", "127.0.0.1:9", on_ray=False)
    _, error = process.communicate(timeout=90)
    assert process.returncode == 2
    assert "cannot reach a Ray cluster at 127.0.0.1:9" in error.decode()
    assert "Traceback" not in error.decode()


def test_the_manifest_is_that_of_one_machine(run, out):
    """A batch that was begun here is continued on a cluster."""
    process = run(on_ray=False)
    wait_for(3, out, process)
    process.kill()
    process.wait()
    before = json.loads((out / "_manifest.json").read_text())
    finish(run())
    assert json.loads((out / "_manifest.json").read_text()) == before
    check_complete(out, N)


# --- examples, as they are, with the built-in model ---


def example(name, folder, cluster):
    """What an example prints; it runs in `folder`."""
    variables = {"PYTHONPATH": str(EXAMPLES.parent), "PYTHONUTF8": "1", "RAY_ADDRESS": cluster.address}
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, "gosling"],
        cwd=folder,
        env=os.environ | variables,
        capture_output=True,
        encoding="utf-8",
        timeout=150,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_batch(cluster, tmp_path):
    lines = [
        line
        for line in example("ray_batch.py", tmp_path, cluster).splitlines()
        if ". Once upon a time" in line
    ]
    assert [line.split(".")[0] for line in lines] == [str(i) for i in range(2, 10)]
    assert all(len(line) > len("2. Once upon a time, there were 2 little foxes") + 10 for line in lines)


def test_a_server_with_two_replicas(cluster, tmp_path):
    model = rwkv_cli.load(device="cpu")
    alone = model.generate("Once upon a time", template="raw", seed=1, max_tokens=20)
    text = "".join(step.text for step in alone)
    assert example("ray_serve.py", tmp_path, cluster).endswith(f"Once upon a time{text}\n")
