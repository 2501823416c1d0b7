"""`rwkv generate --batch --resume`: an interrupted file of results is continued, and nothing is answered twice."""

import json
import signal
import subprocess
import sys
import time

import pytest

from rwkv_cli.cli.batch import results
from rwkv_cli.files.lock import lock_file, locked

RWKV = (sys.executable, "-m", "rwkv_cli")
LINES = [
    '{"prompt": "Once"}',
    '{"prompt": "own", "seed": 3}',
    "{broken",
    "",
    '{"prompt": "upon", "max_tokens": 3, "id": "x"}',
    '{"prompt": "a time"}',
]


@pytest.fixture
def file(tmp_path):
    """A file of prompts, one of which is broken."""
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(line + "\n" for line in LINES))
    return path


@pytest.fixture
def out(tmp_path):
    """Where the results go."""
    return tmp_path / "out.jsonl"


@pytest.fixture
def batch(rwkv, tiny_model, file, out):
    """Run it with the tiny model: exit code and stderr."""

    def call(*arguments, code=1, into=out):
        common = ("-m", tiny_model, "-n", "6", "--batch", file, "--resume", into)
        result = rwkv("generate", *common, *arguments)
        assert (result.code, result.out) == (code, ""), result.err
        return result.err

    return call


def records(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def indices(path):
    return [record["index"] for record in records(path)]


@pytest.mark.parametrize("seed", [(), ("--seed", "9")])
def test_a_file_that_is_cut_anywhere_becomes_the_same(batch, out, seed):
    """To the byte: at every size it may have had when the program was killed."""
    assert batch(*seed) == "rwkv: 1 of 5 lines failed: their results say why\n"
    whole = out.read_bytes()
    assert indices(out) == [0, 1, 2, 3, 4]
    first = whole.index(b"\n")
    for size in {*range(first, len(whole), 41), first, first + 1, len(whole) - 1, len(whole)}:
        out.write_bytes(whole[:size])
        batch(*seed)
        assert out.read_bytes() == whole, size


@pytest.mark.parametrize("size", [0, 1, 10, 30])
def test_a_file_that_has_nothing_yet(batch, out, size):
    batch("--seed", "9")
    whole = out.read_bytes()
    out.write_bytes(whole[:size])
    batch("--seed", "9")
    assert out.read_bytes() == whole


def test_results_are_those_of_the_command_without_it(rwkv, tiny_model, batch, file, out):
    batch("--seed", "9")
    plain = rwkv("generate", "-m", tiny_model, "-n", "6", "--batch", file, "--seed", "9").out
    mine = [{k: v for k, v in record.items() if k not in ("seed", "digest")} for record in records(out)]
    assert mine == [json.loads(line) for line in plain.splitlines()]
    assert [record.get("seed") for record in records(out)] == [9, None, None, 12, 13]


def test_lines_may_have_no_result_anywhere(batch, out):
    """As after a run with --unordered."""
    batch("--unordered")
    whole = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(whole[1::2]))
    message = batch("--unordered")
    assert message.startswith("2 results of an earlier run: continuing with the other lines\n")
    assert sorted(out.read_bytes().splitlines(keepends=True)) == sorted(whole)


def test_nothing_is_left_to_do(batch, out):
    batch()
    whole = out.read_bytes()
    assert "1 of 5 lines failed" in batch("--unordered")
    assert out.read_bytes() == whole


def test_a_line_that_failed_is_answered_once_it_is_corrected(batch, file, out):
    batch()
    before = out.read_bytes()
    file.write_text(file.read_text().replace("{broken", '{"prompt": "mended"}'))
    batch(code=0)
    assert out.read_bytes().startswith(before)
    assert indices(out) == [0, 1, 2, 3, 4, 2]
    assert records(out)[-1]["prompt"] == "mended"
    assert records(out)[-1]["seed"] == records(out)[0]["seed"] + 2
    whole = out.read_bytes()
    batch(code=0)
    assert out.read_bytes() == whole


@pytest.mark.parametrize(
    ("old", "new"), [("Once", "Twice"), ('"max_tokens": 3', '"max_tokens": 4'), ('{"prompt": "Once"}\n', "")]
)
def test_a_line_that_has_changed_is_told(batch, file, out, old, new):
    batch()
    whole = out.read_bytes()
    out.write_bytes(whole[: whole.rindex(b"\n", 0, -1) + 1])
    before = out.read_bytes()
    file.write_text(file.read_text().replace(old, new))
    message = batch(code=2)
    assert "has changed since" in message
    assert "change it back, or use another file" in message
    assert out.read_bytes() == before


@pytest.mark.parametrize(
    ("first", "then", "said"),
    [
        ((), ("--temperature", "0.5"), "has results of another model, or with other options"),
        ((), ("--template", "qa"), "has results of another model, or with other options"),
        ((), ("-m", "gosling"), "has results of another model, or with other options"),
        (("--stop", "a"), ("--stop", "b"), "has results of another model, or with other options"),
        (
            ("--seed", "3"),
            ("--seed", "4"),
            "was begun with --seed 3, not with 4: leave it out, or use another",
        ),
    ],
)
def test_another_run_is_refused(batch, out, first, then, said):
    batch(*first)
    whole = out.read_bytes()
    assert said in batch(*then, code=2)
    assert out.read_bytes() == whole


def test_what_changes_no_answer_may_change(batch, out):
    batch("--seed", "3")
    whole = out.read_bytes()
    out.write_bytes(whole[: whole.index(b"\n") + 1])
    batch("--threads", "1", "--batch-size", "1", "--unordered")
    assert sorted(out.read_bytes().splitlines()) == sorted(whole.splitlines())


def test_a_state_belongs_to_the_run(rwkv, tiny_model, batch, out):
    for text in ("one", "two"):
        assert rwkv("state", "save", "book", "-p", text, "-m", tiny_model, "-q", "--force").code == 0
        if text == "one":
            batch("--state", "book")
            whole = out.read_bytes()
            out.write_bytes(whole[:-9])
            batch("--state", "book")
            assert out.read_bytes() == whole
    assert "with other options" in batch("--state", "book", code=2)


def test_a_file_of_standard_output_is_continued(rwkv, tiny_model, batch, file, out):
    """Its results have neither seed nor digest: they are known by their prompts."""
    plain = rwkv("generate", "-m", tiny_model, "-n", "6", "--batch", file, "--seed", "9").out.encode()
    out.write_bytes(b"".join(plain.splitlines(keepends=True)[:4])[:-1])
    batch("--seed", "9")
    assert indices(out) == [0, 1, 2, 3, 4]
    assert out.read_bytes().startswith(plain[: plain.rindex(b"\n", 0, -1) + 1])
    assert records(out)[4]["text"] == json.loads(plain.splitlines()[4])["text"]
    out.write_bytes(plain)
    assert "does not tell its seed" in batch()
    file.write_text(file.read_text().replace("Once", "Twice"))
    assert "line 1 has changed since" in batch(code=2)


@pytest.mark.parametrize(
    "content",
    [
        b"hello",
        b"hello\n",
        b'{"index": 0}\n',
        b'{"index": -1, "error": "x"}\n',
        b'{"index": true, "error": "x"}\n',
        b'{"index": 1e3, "error": "x"}\n',
        b'{"index": 99999999999, "error": "x"}\n',
        b'{"index": 0, "prompt": 7, "text": ""}\n',
        b'{"index": 0, "error": "x"}\n{"index": \n{"index": 1, "error": "x"}\n',
        b"[" * 100_000,
        b"\x00\xff",
    ],
)
def test_a_file_of_something_else_stays_as_it_is(batch, out, content):
    out.write_bytes(content)
    message = batch(code=2)
    number = 2 if content.count(b"\n") > 1 else 1
    assert f"line {number} is not a result of --batch: use another file" in message
    assert out.read_bytes() == content


def test_results_of_two_runs_are_not_mixed(batch, out, tmp_path):
    other = tmp_path / "other.jsonl"
    batch()
    batch("-t", "0", into=other)
    out.write_bytes(out.read_bytes() + other.read_bytes())
    assert "has results of different runs" in batch(code=2)


def test_the_file_of_the_prompts_is_not_written(batch, file):
    content = file.read_bytes()
    file.write_bytes(b"")
    assert "there are no prompts" in batch(code=2, into=file)
    file.write_bytes(b'{"index": 0, "prompt": "a", "text": "b"}\n')
    assert "is the file of the prompts" in batch(code=2, into=file)
    file.write_bytes(content)


def test_two_runs_do_not_write_one_file(batch, out):
    batch()
    whole = out.read_bytes()
    with locked(lock_file(out)):
        assert "another rwkv is writing" in batch(code=2)
    assert out.read_bytes() == whole


def test_a_full_disk_leaves_whole_lines(batch, out, monkeypatch):
    """What could be written of a line is cut off again."""
    batch("--seed", "1")
    whole = out.read_bytes()
    out.unlink()

    class Full(results.FileIO):
        def write(self, data):
            if self.seek(0, 2) > len(whole) // 2:
                raise OSError(28, "No space left on device")
            return super().write(data[:20])

    monkeypatch.setattr(results, "opened", lambda path: Full(path, "a+b"))
    assert "no space left on the disk" in batch("--seed", "1")
    assert whole.startswith(out.read_bytes())
    assert out.read_bytes().endswith(b"\n")
    monkeypatch.undo()


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
@pytest.mark.parametrize(
    ("number", "unordered"),
    [("SIGKILL", ()), ("SIGKILL", ("--unordered",)), ("SIGTERM", ()), ("SIGINT", ("--unordered",))],
)
def test_killed_runs_become_one(tiny_model, tmp_path, number, unordered):
    """Killed again and again, in the middle, the file at the end has every line once, as one run answers them."""
    file = tmp_path / "prompts.jsonl"
    lines = [json.dumps({"prompt": "a" * 20, "max_tokens": 3 + i % 40}) for i in range(1000)]
    lines[500] = "{"
    file.write_text("\n".join(lines))
    command = [
        *RWKV,
        "generate",
        "-m",
        str(tiny_model),
        "-q",
        "--batch",
        str(file),
        "--seed",
        "7",
        *unordered,
    ]
    out, whole = tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    for _ in range(4):
        size = out.stat().st_size if out.exists() else 0
        process = subprocess.Popen([*command, "--resume", str(out)], stderr=subprocess.PIPE)
        while process.poll() is None and (not out.exists() or out.stat().st_size < size + 20_000):
            time.sleep(0.002)
        process.send_signal(getattr(signal, number))
        _, err = process.communicate(timeout=60)
        assert process.returncode in (-9, 143, 130)
        assert err == b""
        if number != "SIGKILL":
            assert out.read_bytes().endswith(b"\n")
    assert len(out.read_bytes().splitlines()) < 1000
    assert (
        subprocess.run([*command, "--resume", str(out)], stderr=subprocess.PIPE, check=False).returncode == 1
    )
    subprocess.run([*command, "--resume", str(whole)], stderr=subprocess.PIPE, check=False)
    found, expected = (path.read_bytes().splitlines() for path in (out, whole))
    if unordered:
        found, expected = sorted(found), sorted(expected)
    assert found == expected
    assert len(found) == 1000
