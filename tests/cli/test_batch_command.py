"""`rwkv generate --batch`: a file of prompts to a line of JSON each, in their order."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rwkv_cli.cli import prompt
from rwkv_cli.cli.commands import batch as cli_batch
from rwkv_cli.cli.commands.batch import read_prompts
from rwkv_cli.errors import UsageError
from rwkv_cli.sessions.batch import Answer

RWKV = (sys.executable, "-m", "rwkv_cli")
FIELDS = ["index", "prompt", "text", "finish", "prompt_tokens", "generated_tokens"]
STORIES = ["Once upon a time", "The little fox", "It was a cold day."]


def parsed(result):
    assert (result.code, result.err) == (0, "")
    assert result.out.endswith("\n")
    return [json.loads(line) for line in result.out.removesuffix("\n").split("\n")]


@pytest.fixture
def prompts(tmp_path):
    """Write a file of prompts: its path."""

    def write(*lines, name="prompts.txt", end="\n"):
        path = tmp_path / name
        path.write_bytes("".join(line + end for line in lines).encode())
        return path

    return write


@pytest.fixture
def batch(rwkv, tiny_model):
    """Run it with the tiny model."""
    return lambda file, *arguments, **options: rwkv(
        "generate", "-m", tiny_model, "--batch", file, *arguments, **options
    )


# ------------------------------------------------------------------------------------------------ what comes out


def test_answers_are_those_of_each_prompt_alone(rwkv, prompts):
    """With the embedded model and its template; each prompt has a seed of its own."""
    options = ("--max-tokens", "12", "--stop", "dragon")
    lines = parsed(rwkv("generate", "--batch", prompts(*STORIES), "--seed", "7", *options))
    assert [list(line) for line in lines] == [FIELDS] * 3
    assert [(line["index"], line["prompt"]) for line in lines] == list(enumerate(STORIES))
    for i, (line, story) in enumerate(zip(lines, STORIES, strict=True)):
        out = rwkv("generate", "-p", story, "--seed", str(7 + i), "--json", *options).out
        summary = json.loads(out.splitlines()[-1])
        assert line["text"] == summary["text"]
        assert line["finish"] == summary["finish"]
        assert {name: line[name] for name in summary["usage"]} == summary["usage"]


def test_prompts_may_come_from_anywhere(batch, prompts):
    options = ("-n", "5", "-t", "0")
    text = "\ufeffabc\n\n  \ndéf \n".encode()
    objects = ['{"prompt": "abc"}', "", '{"prompt": "d\\u00e9f ", "system": null, "id": 7}']
    results = [
        batch(prompts("abc", "", "  ", "déf "), *options),
        batch(prompts("abc", "déf ", end="\r\n"), *options),
        batch("-", *options, stdin=text),
        batch(prompts(*objects, name="prompts.JSONL"), *options),
        batch(prompts(*objects, name="prompts.jsonl", end="\r\n"), *options, "--batch-size", "1"),
    ]
    lines = [parsed(result) for result in results]
    assert [line["prompt"] for line in lines[0]] == ["abc", "déf "]
    assert lines == [lines[0]] * 5


def test_a_line_ends_with_a_newline_and_nothing_else(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes("a\u2028b\x0bc\nd\n".encode())
    assert [prompt.text for prompt in read_prompts(str(path))] == ["a\u2028b\x0bc", "d"]


def test_a_system_text_for_all_and_for_one(prompts):
    path = prompts('{"prompt": "a"}', '{"prompt": "b", "system": "c"}', name="a.jsonl")
    assert [prompt.system for prompt in read_prompts(str(path), "all")] == ["all", "c"]
    assert [prompt.system for prompt in read_prompts(str(path))] == [None, "c"]


def test_a_template_has_it_laid_out(batch, prompts):
    path = prompts('{"prompt": "a", "system": "b"}', '{"prompt": "a"}', name="a.jsonl")
    counts = [line["prompt_tokens"] for line in parsed(batch(path, "--template", "g1", "-n", "1"))]
    assert counts[0] - counts[1] == len("System: b\n\n")


def test_a_prompt_holds_any_text(batch, prompts):
    text = 'tab\t "quoted" \\n \x1b 🦢\n\u2028'
    (line,) = parsed(batch(prompts(json.dumps({"prompt": text}), name="a.jsonl"), "-n", "1"))
    assert line["prompt"] == text


def test_stop_strings_and_lengths(batch, prompts):
    def said(*options):
        (line,) = parsed(batch(prompts("a"), *options, "-t", "0", f"--logit-bias={ord('x') + 1}=1000"))
        return line["text"], line["finish"], line["generated_tokens"]

    assert said("-n", "3") == ("xxx", "length", 3)
    assert said("-n", "0") == ("", "length", 0)
    assert said("--stop", "xx") == ("", "stop", 2)
    assert parsed(batch(prompts("a"), "-t", "0", "--logit-bias=0=1000"))[0]["finish"] == "end"


def test_answers_wait_for_those_before_them(prompts, monkeypatch, capsys):
    written = []

    def answers(_model, given, **_):
        for index in (1, 2, 0, 3):
            yield Answer(index, given[index].text.upper(), "end", 1, 1)
            written.append(capsys.readouterr().out.count("\n"))

    monkeypatch.setattr(cli_batch, "answers", answers)
    cli_batch.run(cli_batch.Request("", quiet=True), str(prompts(*"abcd")), None)
    assert written == [0, 0, 3, 1]


# ------------------------------------------------------------------------------------------- what cannot be right


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("a b", "line 2: it must be a JSON object"),
        ('{"prompt": "a"', "line 2: it must be a JSON object"),
        ('["a"]', "line 2: it must be a JSON object"),
        ("[" * 100_000, "line 2: it must be a JSON object"),
        ("9" * 10_000, "line 2: it must be a JSON object"),
        ('{"text": "a"}', 'line 2: "prompt" must be a non-empty text'),
        ('{"prompt": ""}', 'line 2: "prompt" must be a non-empty text'),
        ('{"prompt": 7}', 'line 2: "prompt" must be a non-empty text'),
        ('{"prompt": "a", "system": 7}', 'line 2: "system" must be a text'),
        ('{"prompt": "\\ud83e"}', "line 2: it contains half of a surrogate pair"),
        ('{"prompt": "a", "system": "\\udd22"}', "line 2: it contains half of a surrogate pair"),
        ('{"prompt": "a", "system": "b"}', "line 2: the template raw has no place for a system prompt"),
    ],
)
def test_a_line_that_is_wrong(batch, prompts, line, said):
    result = batch(prompts('{"prompt": "a"}', line, name="a.jsonl"))
    assert said in result.sentence
    assert result.code == 2


@pytest.mark.parametrize(
    ("arguments", "stdin", "said"),
    [
        (("--batch", "missing.txt"), None, "cannot read the prompt from missing.txt: no such file"),
        (("--batch", "."), None, "is a directory"),
        (("--batch", "-"), b"\n \n", "there are no prompts in standard input"),
        (("--batch", "-"), b"abc\xff", "not valid UTF-8"),
        (("--batch", ""), b"", "there are no prompts in standard input"),
        (("--batch", "-", "-p", "a"), b"b", "either --batch or --prompt, not both"),
        (("--batch", "-", "-p", ""), b"b", "either --batch or --prompt, not both"),
        (("--batch", "-", "-f", "a"), b"b", "either --batch or --prompt-file, not both"),
        (("--batch", "-", "--state", "a"), b"b", "either --batch or --state, not both"),
        (("--batch", "-", "--save-state", "a"), b"b", "either --batch or --save-state, not both"),
        (("--batch", "-", "--save-state", "a", "--force"), b"b", "either --batch or --save-state, not both"),
        (("--batch", "-", "--compact"), b"b", "--save-state"),
        (("--batch", "-", "--echo"), b"b", "--batch has the prompt in every line anyway"),
        (("--batch", "-", "--batch-size", "0"), b"b", "'--batch-size'"),
        (("-p", "a", "--batch-size", "2"), None, "--batch-size needs --batch"),
        (("--batch", "-", "--template", "wrold"), b"b", "did you mean world?"),
        (("--batch", "-", "--ban", "300"), b"b", "there is no token 300"),
        (("--batch", "-", "--system", "x"), b"b", "standard input, line 1: the template raw has no place"),
    ],
)
def test_what_cannot_be_right_is_one_sentence(
    rwkv, tiny_model, tmp_path, monkeypatch, arguments, stdin, said
):
    monkeypatch.chdir(tmp_path)
    result = rwkv("generate", "-m", tiny_model, *arguments, stdin=stdin)
    assert said in result.sentence
    assert result.code == 2


def test_a_file_is_checked_before_the_model_is_touched(rwkv, prompts):
    path = prompts("{", name="a.jsonl")
    assert "line 1" in rwkv("generate", "--batch", path, "-m", "missing.pth").sentence


# ------------------------------------------------------------------------------------------------------ the person


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
def test_ctrl_c_leaves_whole_lines(tiny_model, prompts):
    path = prompts(*["a" * 50] * 20_000)
    process = subprocess.Popen(
        [*RWKV, "generate", "-m", str(tiny_model), "--batch", str(path), "-n", "3"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    first = process.stdout.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, b"")
    lines = [json.loads(line) for line in (first + out).decode().removesuffix("\n").split("\n")]
    assert [line["index"] for line in lines] == list(range(len(lines)))
    assert len(lines) < 20_000


def test_a_bar_does_not_take_what_goes_to_a_file(tiny_model, prompts, tmp_path):
    """It shows on stderr, and only where stdout is no terminal itself."""
    pty = pytest.importorskip("pty")
    master, slave = pty.openpty()
    path = prompts(*["a" * 50] * 2000)
    arguments = ("generate", "-m", str(tiny_model), "--batch", str(path), "-n", "30", "-t", "0")
    with (tmp_path / "out").open("w+") as out:
        process = subprocess.Popen(
            [*RWKV, *arguments], stdout=out, stderr=slave, env=os.environ | {"TERM": "xterm"}
        )
        os.close(slave)
        shown = b""
        while b"answering" not in shown:
            shown += os.read(master, 65536)
        process.send_signal(signal.SIGINT)
        try:
            while data := os.read(master, 65536):
                shown += data
        except OSError:  # nobody has the terminal open any more
            pass
        assert process.wait(60) == 130
        os.close(master)
        out.seek(0)
        lines = out.read().splitlines()
    assert b"prompt_tokens" not in shown
    assert b"Traceback" not in shown
    assert all(json.loads(line)["finish"] for line in lines)
    assert lines


def test_more_prompts_than_there_may_be(prompts, monkeypatch):
    monkeypatch.setattr(cli_batch, "MOST_PROMPTS", 2)
    assert len(read_prompts(str(prompts("a", "", "b")))) == 2
    with pytest.raises(UsageError, match=r"has more than 2 prompts: split it into parts"):
        read_prompts(str(prompts("a", "b", "c")))


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs /dev/zero")
@pytest.mark.parametrize("option", ["-f", "--batch"])
def test_what_has_no_end_is_read_to_a_limit(rwkv, monkeypatch, option):
    monkeypatch.setattr(prompt, "MOST_BYTES", 2_000_000)
    result = rwkv("generate", option, "/dev/zero")
    assert result.code == 2
    assert result.sentence == "/dev/zero has more than 2 MB, which is the most that is read: use a part of it"


@pytest.mark.parametrize("arguments", [("generate",), ("generate", "--batch", "-"), ("state", "save", "s")])
def test_a_pipe_is_read_to_a_limit(rwkv, monkeypatch, arguments):
    monkeypatch.setattr(prompt, "MOST_BYTES", 2)
    result = rwkv(*arguments, stdin=b"abc")
    assert result.code == 2
    assert result.sentence.startswith("standard input has more than 0 MB, which is the most that is read")
