"""`rwkv generate`: prompts, output, interruptions, and a sentence for everything that cannot be."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.models import write_file
from helpers.talker import talking
from helpers.writers import (
    random_weights,
    write_gguf,
    write_hf,
    write_pth,
    write_torch_archive,
)

from rwkv_cli.cli.terminal import ui
from rwkv_cli.cli.terminal.wrap import wrapped
from rwkv_cli.config import ModelConfig

FULL = Path("/dev/full")  # Linux: a device without room
RWKV = (sys.executable, "-m", "rwkv_cli")

ESCAPE = 0x1B + 1  # its token


def say(token):
    """Options that make the model say one token only."""
    return ("--logit-bias", f"{token}=1000", "-t", "0")


@pytest.fixture
def generate(rwkv, tiny_model):
    """Run `rwkv generate` with the tiny model."""
    return lambda *arguments, **options: rwkv("generate", "-m", tiny_model, *arguments, **options)


# --------------------------------------------------------------------------------------------------- the prompt


def test_the_prompt_may_come_from_anywhere(generate, tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_bytes("Grüße\n\n".encode())
    options = ("-n", "20", "-t", "0", "--json")
    results = [
        generate("--prompt", "Grüße\n", *options),
        generate("--prompt-file", file, *options),
        generate("--prompt-file", "-", *options, stdin="Grüße\n\n".encode()),
        generate(*options, stdin="Grüße\n\n".encode()),
        generate(*options, stdin="\ufeffGrüße\n\r\n".encode()),
    ]
    assert [result.code for result in results] == [0] * 5
    lines = [[json.loads(line) for line in result.out.splitlines()] for result in results]
    assert lines[0][-1]["usage"]["prompt_tokens"] == len("Grüße\n".encode())
    tokens = [[line["token"] for line in each[:-1]] for each in lines]
    assert tokens == [tokens[0]] * 5


def test_a_prompt_comes_after_what_is_piped_or_in_a_file(generate, tmp_path):
    file = tmp_path / "book.txt"
    file.write_text("a book\n")
    options = ("-n", "0", "--json", "--echo")
    for arguments, stdin, prompt in (
        (("-p", "Who?"), b"a book\n", "a book\n\nWho?"),
        (("Who", "is", "it?"), b"a book\n", "a book\n\nWho is it?"),
        (("Who?", "-f", file), None, "a book\n\nWho?"),
        (("Who?", "-f", file), b"nobody reads this", "a book\n\nWho?"),
        (("-f", "-", "-p", "Who?"), b"a book", "a book\n\nWho?"),
        (("-p", "Who?"), b"", "Who?"),
        (("-p", "Who?"), b"\n", "Who?"),
        (("Who?",), None, "Who?"),
    ):
        result = generate(*arguments, *options, stdin=stdin)
        assert json.loads(result.out)["prompt"] == prompt, arguments


def test_a_device_beside_the_prompt_is_not_read(tiny_model):
    command = (*RWKV, "generate", "-m", tiny_model, "abc", "-n", "0", "--json")
    for device in (os.devnull, "/dev/zero") if os.name == "posix" else (os.devnull,):
        with Path(device).open("rb") as stdin:
            out = subprocess.run(command, stdin=stdin, capture_output=True, check=True, timeout=60).stdout
        assert json.loads(out)["usage"]["prompt_tokens"] == 3


@pytest.mark.skipif(os.name != "posix", reason="elsewhere, pipes cannot be waited for")
def test_a_silent_pipe_beside_the_prompt_is_told(tiny_model):
    command = (*RWKV, "generate", "-m", tiny_model, "abc", "-n", "0", "--json")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:
        assert "reading standard input, which comes before --prompt" in process.stderr.readline()
        out, _ = process.communicate("x")
    assert json.loads(out)["usage"]["prompt_tokens"] == len("x\n\nabc")


def test_no_prompt(generate):
    result = generate()
    assert (result.code, "no prompt given" in result.sentence) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "stdin", "said"),
    [
        (("-p", ""), None, "the prompt is empty"),
        ((), b"", "the prompt is empty"),
        ((), b"\n", "the prompt is empty"),
        (("-p", "a", "b"), None, "either PROMPT or --prompt, not both"),
        (("",), None, "the prompt is empty"),
        (("ab\udcffc",), None, "the prompt is not valid UTF-8 text (byte 2)"),
        (("-p", "ab\udcffc"), None, "the prompt is not valid UTF-8 text (byte 2)"),
        (("-p", "ä\udcff"), None, "the prompt is not valid UTF-8 text (byte 2)"),
        (("-p", "ä\ud83e"), None, "the prompt is not valid UTF-8 text (character 1)"),
        ((), b"abc\xff", "the prompt is not valid UTF-8 text (byte 3)"),
        (("-f", "missing.txt"), None, "cannot read the prompt from missing.txt: no such file"),
        (("-f", "."), None, "cannot read the prompt from .: is a directory"),
        (("-p", "a", "--system", "\udcff", "--template", "world"), None, "the system prompt is not valid"),
        (("-p", "a", "--system", "b"), None, "no place for a system prompt"),
        (("-p", "a", "--stop", ""), None, "a stop string is empty"),
        (("-p", "a", "--stop", "b\udcff"), None, "the stop string is not valid"),
        (("-p", "a", "--raw", "--template", "raw"), None, "either --raw or --template"),
        (("-p", "a", "--template", "wrold"), None, "did you mean world?"),
        (("-p", "a", "--top-p", "2"), None, "--top-p is 2: it must be between 0 and 1"),
        (("-p", "a", "--temperature", "-1"), None, "--temperature is -1"),
        (("-p", "a", "--temperature", "nan"), None, "--temperature is nan"),
        (("-p", "a", "--top-k", "x"), None, "'--top-k'"),
        (("-p", "a", "--max-tokens", "-5"), None, "'--max-tokens'"),
        (("-p", "a", "--seed", "-1"), None, "--seed"),
        (("-p", "a", "--ban", "300"), None, "there is no token 300"),
        (("-p", "a", "--logit-bias", "3"), None, "must be ID=X"),
        (("-p", "a", "--logit-bias", "3=inf"), None, "--logit-bias of token 3"),
        (("-p", "a", "--device", "abacus"), None, "--device is 'abacus': it must be one of auto"),
        (("-p", "a", "--nonsense"), None, "no such option: --nonsense"),
    ],
)
def test_what_cannot_be_right_is_one_sentence(generate, tmp_path, monkeypatch, arguments, stdin, said):
    monkeypatch.chdir(tmp_path)
    result = generate(*arguments, stdin=stdin)
    assert said in result.sentence
    assert result.code == 2


def test_wrong_options_are_found_before_the_model_is_touched(rwkv):
    assert "--top-p" in rwkv("generate", "-p", "a", "-m", "missing.pth", "--top-p", "2").sentence
    assert "stop string" in rwkv("generate", "-p", "a", "-m", "missing.pth", "--stop", "").sentence


# --------------------------------------------------------------------------------------------------- the output


def test_text_ends_with_one_newline(generate):
    token_of_x, token_of_newline = ord("x") + 1, ord("\n") + 1
    assert generate("-p", "a", "-n", "3", *say(token_of_x)).out == "xxx\n"
    assert generate("-p", "a", "-n", "1", *say(token_of_newline)).out == "\n"
    assert generate("-p", "a", "-n", "0").out == ""


def test_a_pipe_gets_the_text_as_it_is(generate):
    result = generate("-p", "a", "-n", "2", *say(ESCAPE))
    assert (result.out, result.err) == ("\x1b\x1b\n", "")


def test_stop_strings_can_be_typed(generate):
    token_of_newline = ord("\n") + 1
    result = generate("-p", "a", "-n", "9", *say(token_of_newline), "--stop", r"\n\n", "--json")
    assert json.loads(result.out.splitlines()[-1])["finish"] == "stop"


def test_json(generate):
    result = generate("-p", "abc", "-n", "50", "--seed", "7", "--json")
    *steps, summary = map(json.loads, result.out.splitlines())
    assert all(set(step) == {"token", "text", "logprob"} for step in steps)
    assert all(step["logprob"] <= 0 for step in steps)
    assert summary["finish"] in ("length", "end")
    assert summary["usage"] == {"prompt_tokens": 3, "generated_tokens": len(steps)}
    assert summary["timings"].keys() == {
        "prefill_seconds",
        "decode_seconds",
        "prefill_tokens_per_second",
        "decode_tokens_per_second",
    }
    assert summary["seed"] == 7
    assert summary["model"].endswith("tiny.safetensors")
    text = generate("-p", "abc", "-n", "50", "--seed", "7").out
    assert "".join(step["text"] for step in steps) == summary["text"]
    assert summary["text"] in (text, text.removesuffix("\n"))


def test_text_that_was_held_back_has_a_line_of_its_own(generate):
    half = 0xC3 + 1  # the first byte of a character of two
    options = ("-p", "a", "-n", "2", *say(half), "--json")
    *steps, summary = map(json.loads, generate(*options).out.splitlines())
    assert summary["text"] == "".join(step["text"] for step in steps) != ""
    assert [step["token"] for step in steps if step["token"] is not None] == [half, half]


def test_echo_repeats_the_prompt_in_a_pipe(generate, tmp_path):
    x = ord("x") + 1
    file = tmp_path / "story.txt"
    file.write_text("long " * 1000 + "\x1bago\n")
    assert generate("ab", "-n", "2", *say(x), "--echo").out == "abxx\n"
    assert generate("ab", "-n", "2", *say(x), "--echo", "--quiet").out == "abxx\n"
    assert generate("-f", file, "-n", "2", *say(x), "--echo").out == "long " * 1000 + "\x1bagoxx\n"
    assert generate("ab", "-n", "2", *say(x), "--echo", "--template", "qa").out == "ab\n\nxx\n"
    summary = json.loads(generate("ab", "-n", "2", *say(x), "--echo", "--json").out.splitlines()[-1])
    assert (summary["prompt"], summary["text"]) == ("ab", "xx")


def test_errors_are_objects_where_json_was_asked_for(generate):
    for arguments, code, said in (
        (("a", "--json", "--top-p", "2"), 2, "--top-p is 2: it must be between 0 and 1"),
        (
            ("a", "--json", "--nonsense"),
            2,
            None,
        ),
        (("a", "--json", "--state", "nothing"), 1, None),
        (("--json",), 2, None),
    ):
        result = generate(*arguments)
        error = json.loads(result.out)["error"]
        assert result.code == error["code"] == code
        assert result.err == f"rwkv: {error['message']}\n"
        assert error["message"] == (said or error["message"])
    assert generate("a", "--nonsense").out == ""
    assert generate("--", "--json", "-n").code == 0  # words


@pytest.fixture
def thinking(rwkv, monkeypatch):
    """Run `rwkv generate` with a model that thinks when it is asked to."""
    model = talking({"<think": ">Hm.\nYes?</think>\n\nYes.\n\nUser: so"}, "g1")
    monkeypatch.setattr("rwkv_cli.model.load", lambda *_, **__: model)
    return lambda *arguments: rwkv("generate", "-p", "Is it?", "--think", "on", "-t", 0, *arguments)


def test_a_pipe_gets_the_answer_without_the_thought(thinking):
    result = thinking()
    assert (result.code, result.out, result.err) == (0, "Yes.\n", "")


def test_json_has_the_thought_apart(thinking):
    *steps, summary = map(json.loads, thinking("--json").out.splitlines())
    assert "".join(step["text"] for step in steps) == summary["text"] == "\n\nYes."
    assert "".join(step.get("thought", "") for step in steps) == summary["thought"] == "Hm.\nYes?"
    assert summary["finish"] == "stop"


def test_a_limit_within_the_thought_is_told(thinking):
    result = thinking("-n", 4)
    assert result.out == ""
    assert result.err == "no answer: the model was still thinking; raise --max-tokens, or use --think off\n"
    assert thinking("-n", 4, "-q").err == ""


def test_a_mode_of_thinking_that_the_template_does_not_have(generate):
    assert generate("-p", "a", "--think", "on").sentence == "the template raw has no thinking modes"


def test_json_of_no_tokens(generate):
    (line,) = generate("-p", "a", "-n", "0", "--json").out.splitlines()
    assert json.loads(line)["usage"]["generated_tokens"] == 0


def test_a_seed_is_chosen_and_told(generate):
    first, again = (
        json.loads(generate("-p", "a", "-n", "1", "--json").out.splitlines()[-1])["seed"] for _ in range(2)
    )
    assert first != again


def test_a_ban_holds(generate):
    banned = [f"--ban={token}" for token in range(257) if token != ord("q") + 1]
    assert set(generate("-p", "a", "-n", "9", *banned).out.replace("\ufffd", "")) <= {"q", "\n"}


def test_the_same_seed_gives_the_same_text_in_every_process():
    command = [*RWKV, "generate", "-p", "Once upon a time", "-n", "40", "--seed", "11"]
    first, second = (subprocess.run(command, capture_output=True, timeout=120) for _ in range(2))
    assert first.stdout == second.stdout
    assert first.stdout.startswith(b",")
    assert (first.returncode, first.stderr) == (0, b"")


def test_devices_agree(generate):
    texts = {generate("-p", "abc", "-n", "5", "-t", "0", "-d", device).out for device in ("cpu", "reference")}
    assert len(texts) == 1


# -------------------------------------------------------------------------------- a terminal, and who goes away


def test_the_terminal_shows_prompt_text_and_speed(terminal, tiny_model):
    arguments = ("generate", "-m", tiny_model, "-p", "go on: ", "-n", "3", *say(ord("x") + 1))
    with terminal(*arguments) as it:
        assert it.finish() == 0
        assert it.shown.startswith("\x1b[1mgo\x1b[0m \x1b[1mon:\x1b[0m xxx\r\n")
        assert "\x1b[2m3 tokens; stopped at the limit (-n), " in it.shown
    with terminal(*arguments, NO_COLOR="1") as it:
        assert it.finish() == 0
        assert it.shown.startswith("go on: xxx\r\n3 tokens")
        assert "\x1b" not in it.shown
    with terminal(*arguments, "--quiet") as it:
        assert it.finish() == 0
        assert it.shown == "xxx\r\n"


@pytest.mark.parametrize("width", [20, 60])
def test_text_is_wrapped_at_words_on_a_terminal(terminal, rwkv, width):
    prompt = "Once upon a time there was a little girl who lived by the sea, and"
    command = ("generate", "-p", prompt, "-n", "60", "--seed", "1")
    plain = rwkv(*command).out
    with terminal(*command, COLUMNS=str(width), NO_COLOR="1") as it:
        assert it.finish() == 0
    lines = it.shown.partition("60 tokens;")[0].splitlines()
    assert lines == [
        line for text in (prompt + plain).splitlines() for line in wrapped(text.rstrip(), width - 1)
    ]


def test_no_terminal_obeys_the_model(terminal, tiny_model):
    with terminal("generate", "-m", tiny_model, "-q", "-p", "a", "-n", "2", *say(ESCAPE)) as it:
        assert it.finish() == 0
        assert it.shown == "␛␛\r\n"


def test_printable():
    every = "".join(map(chr, range(0x100)))
    shown = ui.printable(every)
    assert [c for c in shown if ord(c) < 32 or 127 <= ord(c) < 160] == ["\t", "\n"]
    assert ui.printable("a\r\nb\x7f\x9bü€🦢") == "a\nb␡\ufffdü€🦢"


def test_errors_do_no_harm_to_a_terminal(rwkv):
    assert "\x1b" not in rwkv("generate", "-p", "a", "-m", "\x1b[31m/model.pth").sentence


def endless(tiny_model, *options):
    return ("generate", "-m", str(tiny_model), "-p", "a", "-n", "-1", *say(ord("x") + 1), *options)


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
@pytest.mark.parametrize("options", [(), ("--json",)])
def test_ctrl_c_keeps_what_there_is(tiny_model, options):
    process = subprocess.Popen(
        [*RWKV, *endless(tiny_model, *options)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.read(64)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, b"")
    assert out.endswith(b"\n")
    if options:
        summary = json.loads(out.splitlines()[-1])
        assert summary["finish"] == "interrupted"
        assert summary["usage"]["generated_tokens"] > 0


def test_ctrl_c_on_a_terminal(terminal, tiny_model):
    with terminal(*endless(tiny_model)) as it:
        it.read_until("xxx")
        os.kill(it.process.pid, signal.SIGINT)
        assert it.finish() == 130
        text = re.sub(r"\x1b\[1?0?m|\^C", "", it.shown.partition("\x1b[2m")[0])
        assert max(map(len, text.splitlines())) < 80
        assert set(text) == set("ax\r\n")
        assert text.endswith("x\r\n")
        assert "(interrupted)" in it.shown
        assert "Traceback" not in it.shown


def test_ctrl_c_while_the_prompt_is_read(terminal, tmp_path):
    prompt = tmp_path / "long.txt"
    prompt.write_text("Once upon a time " * 30_000)
    with terminal("generate", "-f", prompt) as it:
        it.read_until("reading the prompt")
        os.kill(it.process.pid, signal.SIGINT)
        assert it.finish() == 130
        assert "Traceback" not in it.shown
        assert "no tokens (interrupted)" in it.shown


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell")
@pytest.mark.parametrize("command", ["generate", "info", "--help"])
def test_a_reader_that_goes_away_is_no_error(tiny_model, command):
    arguments = endless(tiny_model) if command == "generate" else (command,)
    process = subprocess.Popen([*RWKV, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.read(1 if command == "generate" else 0)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(60) == 0


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
def test_a_full_disk_behind_the_output():
    with FULL.open("w") as full:
        done = subprocess.run(
            [*RWKV, "generate", "-p", "a", "-n", "2"], stdout=full, stderr=subprocess.PIPE, timeout=60
        )
    assert (done.returncode, done.stderr) == (1, b"rwkv: cannot write the output: no space left on device\n")


def test_closed_streams_are_no_error():
    command = f'"{sys.executable}" -m rwkv_cli generate -p a -n 2 >&- 2>&- <&-'
    assert subprocess.run(command, shell=True, timeout=60).returncode == 0


@pytest.mark.parametrize("piped", [True, False])
def test_the_first_compilation_is_announced(rwkv, tiny_model, monkeypatch, piped):
    monkeypatch.setattr("rwkv_cli.engine.backends.cpu.is_compiled", lambda: False)
    options = () if piped else ("--quiet",)
    result = rwkv("generate", "-m", tiny_model, "-p", "a", "-n", "1", *options)
    assert ("compiling the kernels for this CPU, once" in result.err) == piped


# ------------------------------------------------------------------------------------------ models that are none


def broken(path, share=0.6):
    """The file, truncated."""
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    return path


def empty_file(folder):
    (folder / "empty.pth").touch()
    return folder / "empty.pth"


def nan_weight(folder):
    weights = random_weights()
    weights["blocks.1.att.key.weight"][3, 4] = np.nan
    return write_pth(folder / "nan.pth", weights)


def foreign_vocabulary(folder):
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "model": {"type": "WordLevel", "vocab": {str(i): i for i in range(500)}, "unk_token": "0"},
    }
    write_hf(folder / "hf", random_weights())
    (folder / "hf" / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder / "hf"


BROKEN_MODELS = {
    "no such file": (lambda folder: folder / "missing.pth", "there is no file"),
    "folder without a model": (lambda folder: folder, "does not contain a model"),
    "empty file": (empty_file, "is empty"),
    "truncated pth": (lambda folder: broken(write_pth(folder / "a.pth", random_weights())), "truncated"),
    "truncated gguf": (lambda folder: broken(write_gguf(folder / "a.gguf", random_weights())), ""),
    "truncated hf": (
        lambda folder: broken(write_hf(folder, random_weights()) / "model.safetensors"),
        "truncated",
    ),
    "hostile pickle": (
        lambda folder: write_torch_archive(folder / "evil.pth", b"\x80\x02cos\nsystem\n(X\x02\0\0\0lstR."),
        "os.system",
    ),
    "NaN": (nan_weight, "NaN"),
    "foreign vocabulary": (foreign_vocabulary, "do not belong together"),
    "truncated model file": (
        lambda folder: broken(write_file(folder / "a.safetensors", random_weights())),
        "truncated",
    ),
}


@pytest.mark.parametrize("kind", BROKEN_MODELS)
def test_a_broken_model_is_one_sentence(rwkv, tmp_path, monkeypatch, kind):
    monkeypatch.setenv("RWKV_CACHE_DIR", str(tmp_path / "cache"))
    make, said = BROKEN_MODELS[kind]
    result = rwkv("generate", "-q", "-p", "abc", "-m", make(tmp_path))
    assert said in result.sentence
    assert result.code == 1
    assert not list(tmp_path.glob("cache/models/*"))


def test_a_model_file_with_the_vocabulary_of_another(rwkv, tmp_path, byte_vocabulary):
    small = ModelConfig(
        n_layer=1, n_embd=64, n_ffn=64, vocab_size=100, rank_w=8, rank_a=8, rank_v=0, rank_g=8
    )
    path = write_file(tmp_path / "small.safetensors", random_weights(small), tokenizer=byte_vocabulary)
    assert "do not belong together" in rwkv("generate", "-p", "a", "-m", path).sentence


def test_a_published_checkpoint_is_quantized_once(rwkv, tmp_path, monkeypatch):
    monkeypatch.setenv("RWKV_CACHE_DIR", str(tmp_path / "cache"))
    path = foreign_vocabulary(tmp_path)
    fitting = json.loads((path / "tokenizer.json").read_text())
    fitting["model"]["vocab"] = {str(i): i for i in range(300)}
    (path / "tokenizer.json").write_text(json.dumps(fitting))
    first, again = (rwkv("generate", "-p", "7", "-m", path, "-n", "5", "--seed", "1") for _ in range(2))
    assert "quantizing hf to int8, once" in first.err
    assert (again.err, again.out) == ("", first.out)


def test_an_unexpected_error_asks_for_a_report(rwkv, monkeypatch):
    def fail(*_):
        raise KeyError("what?")

    monkeypatch.setattr("rwkv_cli.catalog.registry.locate", fail)
    result = rwkv("generate", "-p", "a")
    assert result.code == 1
    assert (
        result.err
        == "rwkv: this should not happen (KeyError: 'what?'); please report it, with what RWKV_DEBUG=1 adds\n"
    )
    monkeypatch.setenv("RWKV_DEBUG", "1")
    with pytest.raises(KeyError):
        rwkv("generate", "-p", "a")


@pytest.mark.parametrize(("argument", "code"), [("--version", 0), ("--nonsense", 2)])
def test_the_program_ends_in_haste_but_in_order(argument, code):
    """What was registered for the end happens, what was written arrives, and the exit code stays."""
    program = "import atexit, sys; from rwkv_cli.__main__ import main; atexit.register(print, 'the end')\n"
    program += f"print('the beginning'); sys.argv = ['rwkv', {argument!r}]; main()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.stdout.splitlines()[0], done.stdout.splitlines()[-1]) == ("the beginning", "the end")
    assert (done.returncode, bool(done.stderr)) == (code, code != 0)


def test_help_imports_nothing_heavy():
    code = "import sys; sys.argv = ['rwkv', 'generate', '--help']; from rwkv_cli.cli.main import main\n"
    code += "try: main()\nfinally: print(sorted({'numpy', 'numba', 'rich', 'tokenizers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.endswith("[]\n")
