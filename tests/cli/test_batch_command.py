"""`rwkv generate --batch`: a file of prompts to a line of JSON each, in their order."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rwkv_cli.cli.batch.lines import Lines
from rwkv_cli.sessions import state_file
from rwkv_cli.text import prompt_bytes

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
    objects = ['{"prompt": "abc"}', "", '{"prompt": "d\\u00e9f ", "system": null, "x": 7}']
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
    with Lines(str(path)) as lines:
        assert [line.text for line in lines] == ["a\u2028b\x0bc", "d"]


def test_a_system_text_for_all_and_for_one(batch, prompts):
    path = prompts('{"prompt": "a"}', '{"prompt": "a", "system": "c"}', name="a.jsonl")
    counts = [
        line["prompt_tokens"]
        for options in ((), ("--system", "every one"))
        for line in parsed(batch(path, "--template", "g1", "-n", "1", *options))
    ]
    assert [count - counts[0] for count in counts] == [
        0,
        len("System: c\n\n"),
        len("System: every one\n\n"),
        len("System: c\n\n"),
    ]


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
        ('{"prompt": "a", "think": "on"}', "line 2: the template raw has no thinking modes"),
        ('{"prompt": "a", "max_tokens": "7"}', 'line 2: "max_tokens" must be a whole number'),
        ('{"prompt": "a", "max_tokens": true}', 'line 2: "max_tokens" must be a whole number'),
        ('{"prompt": "a", "max_tokens": -2}', 'line 2: "max_tokens" is -2: it must be at least 0'),
        ('{"prompt": "a", "stop": 7}', 'line 2: "stop" must be a text, or a list of texts'),
        ('{"prompt": "a", "stop": ["a", null]}', 'line 2: "stop" must be a text, or a list of texts'),
        ('{"prompt": "a", "stop": [""]}', "line 2: a stop string is empty"),
        ('{"prompt": "a", "temperature": "warm"}', 'line 2: "temperature" must be a number'),
        ('{"prompt": "a", "temperature": -1}', 'line 2: "temperature" is -1: it must be at least 0'),
        ('{"prompt": "a", "temperature": NaN}', 'line 2: "temperature" is nan'),
        ('{"prompt": "a", "top_k": 2.5}', 'line 2: "top_k" must be a whole number'),
        ('{"prompt": "a", "seed": -1}', 'line 2: "seed" is -1: it must be at least 0'),
        ('{"prompt": "a", "seed": "7"}', 'line 2: "seed" must be a whole number'),
        ('{"prompt": "a", "logit_bias": [1]}', 'line 2: "logit_bias" must be an object of token ids'),
        ('{"prompt": "a", "logit_bias": {"x": 1}}', 'line 2: "logit_bias" must be an object of token ids'),
        ('{"prompt": "a", "logit_bias": {"1": "x"}}', 'line 2: "logit_bias" must be an object of token ids'),
        ('{"prompt": "a", "ban": 7}', 'line 2: "ban" must be a list of token ids'),
        ('{"prompt": "a", "ban": [300]}', "line 2: there is no token 300"),
        ('{"prompt": "a", "state": 7}', 'line 2: "state" must be a text'),
        ('{"prompt": "a", "state": ""}', 'line 2: "state" must be the name or the file'),
        ('{"prompt": "a", "state": "book"}', "line 2: unknown state book"),
        ('{"prompt": "a", "id": NaN}', 'line 2: "id" cannot be written'),
    ],
)
def test_a_line_that_is_wrong(batch, prompts, line, said):
    """It costs nothing but its own answer."""
    result = batch(prompts('{"prompt": "a"}', line, '{"prompt": "b"}', name="a.jsonl"), "-n", "2")
    lines = [json.loads(each) for each in result.out.splitlines()]
    assert (result.code, result.err) == (1, "rwkv: 1 of 3 lines failed: their results say why\n")
    assert [each["index"] for each in lines] == [0, 1, 2]
    assert [list(lines[0]), list(lines[2])] == [FIELDS] * 2
    assert list(lines[1]) == ["index", "error"]
    assert f"a.jsonl, {said}" in lines[1]["error"]
    assert "\n" not in lines[1]["error"]


@pytest.mark.parametrize(
    ("arguments", "stdin", "said"),
    [
        (("--batch", "missing.txt"), None, "cannot read the prompt from missing.txt: no such file"),
        (("--batch", "."), None, "is a directory"),
        (("--batch", "-"), b"\n \n", "there are no prompts in standard input"),
        (("--batch", ""), b"", "there are no prompts in standard input"),
        (("--batch", "-", "-p", "a"), b"b", "either --batch or --prompt, not both"),
        (("--batch", "-", "-p", ""), b"b", "either --batch or --prompt, not both"),
        (("--batch", "-", "-f", "a"), b"b", "either --batch or --prompt-file, not both"),
        (
            ("--batch", "-", "--resume", "."),
            b"b",
            ". is not a regular file: results can be added to no other",
        ),
        (("--batch", "-", "--resume", "none/a"), b"b", "cannot write none/a: the folder none does not exist"),
        (("-p", "a", "--unordered"), None, "--unordered needs --batch"),
        (("-p", "a", "--resume", "a"), None, "--resume needs --batch"),
        (("--batch", "-", "--save-state", "a"), b"b", "either --batch or --save-state, not both"),
        (("--batch", "-", "--save-state", "a", "--force"), b"b", "either --batch or --save-state, not both"),
        (("--batch", "-", "--compact"), b"b", "--save-state"),
        (("--batch", "-", "--echo"), b"b", "--batch has the prompt in every line anyway"),
        (("--batch", "-", "--batch-size", "0"), b"b", "'--batch-size'"),
        (("-p", "a", "--batch-size", "2"), None, "--batch-size needs --batch"),
        (("--batch", "-", "--template", "wrold"), b"b", "did you mean world?"),
        (("--batch", "-", "--ban", "300"), b"b", "there is no token 300"),
        (("--batch", "-", "--system", "x"), b"b", "the template raw has no place for a system prompt"),
    ],
)
def test_what_cannot_be_right_is_one_sentence(
    rwkv, tiny_model, tmp_path, monkeypatch, arguments, stdin, said
):
    monkeypatch.chdir(tmp_path)
    result = rwkv("generate", "-m", tiny_model, *arguments, stdin=stdin)
    assert said in result.sentence
    assert result.code == (1 if "cannot write" in said else 2)


def test_a_file_is_looked_at_before_the_model_is_touched(rwkv, prompts):
    assert "there are no prompts" in rwkv("generate", "--batch", prompts(""), "-m", "missing.pth").sentence


# ------------------------------------------------------------------------------------------------------ the person


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_leaves_whole_lines(tiny_model, prompts, name, code):
    path = prompts(*["a" * 50] * 20_000)
    process = subprocess.Popen(
        [*RWKV, "generate", "-m", str(tiny_model), "--batch", str(path), "-n", "3"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,  # `communicate` does not know what a buffer has
    )
    first = process.stdout.readline()
    process.send_signal(getattr(signal, name))
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (code, b"")
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


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs /dev/zero")
def test_what_has_no_end_is_read_to_a_limit(rwkv, monkeypatch):
    monkeypatch.setattr(prompt_bytes, "MOST_BYTES", 2_000_000)
    result = rwkv("generate", "-f", "/dev/zero")
    assert result.code == 2
    assert result.sentence == "/dev/zero has more than 2 MB, which is the most that is read: use a part of it"
    result = rwkv("generate", "--batch", "/dev/zero")
    assert result.code == 2
    assert result.sentence == "/dev/zero, line 1: it has more than 200 MB, and no end is in sight"


@pytest.mark.parametrize("arguments", [("generate",), ("state", "save", "s")])
def test_a_pipe_is_read_to_a_limit(rwkv, monkeypatch, arguments):
    monkeypatch.setattr(prompt_bytes, "MOST_BYTES", 2)
    result = rwkv(*arguments, stdin=b"abc")
    assert result.code == 2
    assert result.sentence.startswith("standard input has more than 0 MB, which is the most that is read")


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_line_that_is_too_long_or_not_a_text(batch, monkeypatch, end):
    monkeypatch.setattr(prompt_bytes, "MOST_BYTES", 5)
    result = batch("-", "-n", "1", stdin=end.join([b"abcde", b"abcdef", b"a" * 100, b"ab\xff", b"abcde"]))
    lines = [json.loads(each) for each in result.out.splitlines()]
    assert result.code == 1
    assert [line.get("prompt") for line in lines] == ["abcde", None, None, None, "abcde"]
    for line in lines[1:3]:
        assert "the line has more than 0 MB, which is the most that is read" in line["error"]
    assert lines[3]["error"] == "standard input, line 4: the prompt is not valid UTF-8 text (byte 2)"
    assert result.err == "rwkv: 3 of 5 lines failed: their results say why\n"


# -------------------------------------------------------------------------------------------- options of a line


def test_options_of_a_line_are_those_of_the_command(rwkv, tiny_model, prompts):
    """A line with options is answered as the command with these options answers its prompt."""
    objects = [
        {"prompt": "abc", "id": {"a": [1]}},
        {"prompt": "abc", "max_tokens": 3, "id": None},
        {"prompt": "abc", "max_tokens": 0},
        {"prompt": "abc", "temperature": 0.5, "top_p": 0.9, "top_k": 30, "min_p": 0.01, "seed": 5},
        {"prompt": "abc", "presence_penalty": 1, "frequency_penalty": 0.5, "penalty_decay": 0.9},
        {"prompt": "abc", "logit_bias": {"98": 1000}, "stop": "aaa"},
        {
            "prompt": "abc",
            "logit_bias": {"98": 1000},
            "stop": ["x", "aaaa"],
            "ban": [98],
            "temperature": None,
        },
    ]
    options = [
        (),
        ("-n", "3"),
        ("-n", "0"),
        ("-t", "0.5", "--top-p", "0.9", "--top-k", "30", "--min-p", "0.01", "--seed", "5"),
        ("--presence-penalty", "1", "--frequency-penalty", "0.5", "--penalty-decay", "0.9"),
        ("--logit-bias", "98=1000", "--stop", "aaa"),
        ("--logit-bias", "98=1000", "--stop", "x", "--stop", "aaaa", "--ban", "98"),
    ]
    path = prompts(*map(json.dumps, objects), name="a.jsonl")
    common = ("generate", "-m", tiny_model, "-n", "12", "-t", "0.8")
    lines = parsed(rwkv(*common, "--seed", "3", "--batch", path))
    for i, (line, own) in enumerate(zip(lines, options, strict=True)):
        out = rwkv(*common, "--seed", 3 + i, *own, "-p", "abc", "--json").out
        summary = json.loads(out.splitlines()[-1])
        assert (line["text"], line["finish"]) == (summary["text"], summary["finish"]), objects[i]
    assert lines[5]["finish"] == "stop"
    assert list(lines[0]) == ["index", "id", *FIELDS[1:]]
    assert [line["id"] for line in lines if "id" in line] == [{"a": [1]}, None]


def test_a_line_that_failed_has_its_id(batch, prompts):
    result = batch(prompts('{"id": 7, "prompt": 8}', name="a.jsonl"))
    assert list(json.loads(result.out)) == ["index", "id", "error"]


@pytest.fixture
def states(rwkv, tiny_model):
    """A document, another one, a conversation and a state that has settings of its own."""
    save = ("-m", tiny_model, "-q")
    assert rwkv("state", "save", "book", "-p", "a long story", *save).code == 0
    assert rwkv("state", "save", "other", "-p", "another one", *save).code == 0
    talk = ("-p", "Hi", "--template", "g1", "-t", "0.5", "-n", "4", "--presence-penalty", "2")
    assert rwkv("generate", *talk, "--save-state", "talk", *save).code == 0


@pytest.mark.usefixtures("states")
@pytest.mark.parametrize("options", [(), ("--template", "qa"), ("-t", "0.7")])
def test_every_line_continues_from_a_state(rwkv, tiny_model, prompts, options):
    common = ("generate", "-m", tiny_model, "-n", "9", *options)
    lines = ['{"prompt": "b"}', '{"prompt": "c", "state": "talk"}', '{"prompt": "d", "state": "other"}']
    path = prompts(*lines, *lines, name="a.jsonl")
    for name in ("book", "talk"):
        found = parsed(rwkv(*common, "--batch", path, "--state", name, "--seed", "4", "-q"))
        for i, line in enumerate(found):
            state = (name, "talk", "other")[i % 3]
            out = rwkv(*common, "--state", state, "-p", line["prompt"], "--seed", 4 + i, "--json", "-q").out
            summary = json.loads(out.splitlines()[-1])
            assert line["text"] == summary["text"], (name, i)
            assert line["prompt_tokens"] == summary["usage"]["prompt_tokens"]


@pytest.mark.usefixtures("states")
def test_a_state_of_another_model_fails_its_line_or_the_command(rwkv, prompts):
    result = rwkv("generate", "--batch", prompts('{"prompt": "a", "state": "book"}', name="a.jsonl"))
    assert "line 1: this state belongs to" in json.loads(result.out)["error"]
    assert result.code == 1
    result = rwkv("generate", "--batch", prompts("a"), "--state", "book", "-m", "gosling")
    assert "belongs to" in result.sentence
    assert rwkv("generate", "--batch", prompts("a"), "--state", "book", "--system", "x").code == 2


@pytest.mark.usefixtures("states")
def test_a_state_is_read_once_for_all_lines(rwkv, tiny_model, prompts, monkeypatch):
    read = []
    load = state_file.load
    monkeypatch.setattr(state_file, "load", lambda path: read.append(path.stem) or load(path))
    lines = [f'{{"prompt": "a", "state": "{name}"}}' for name in ("book", "other") * 30]
    parsed(rwkv("generate", "-m", tiny_model, "-n", "1", "--batch", prompts(*lines, name="a.jsonl")))
    assert sorted(read) == ["book", "other"]


# ------------------------------------------------------------------------------------------------ as they come


def test_results_as_they_come(batch, prompts):
    lines = [f'{{"prompt": "a", "max_tokens": {n}}}' for n in (40, 2, 9)]
    path = prompts(*lines, name="a.jsonl")
    found = parsed(batch(path, "--unordered", "--seed", "1", "--ban", "0"))
    assert [line["index"] for line in found] == [1, 2, 0]
    ordered = parsed(batch(path, "--seed", "1", "--ban", "0"))
    assert sorted(found, key=lambda line: line["index"]) == ordered


def test_lines_are_read_as_there_is_room(tiny_model):
    """The first results are there before the last line is."""
    process = subprocess.Popen(
        [*RWKV, "generate", "-m", str(tiny_model), "--batch", "-", "-n", "2"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
    )
    process.stdin.write(b"abc\n" * 3000)
    assert json.loads(process.stdout.readline())["index"] == 0
    out, _ = process.communicate(b"abc\n", timeout=60)
    assert out.count(b"\n") == 3000
    assert process.returncode == 0
