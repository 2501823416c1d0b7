"""Nobody sees "this should not happen": any options, variables and settings give a result or one sentence.

Examples are few, so that the test is quick. RWKV_RANDOM_TESTS=5000 tries as many new ones.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from conftest import RWKV
from helpers.writers import random_weights, write_gguf, write_pth
from huggingface_hub import constants
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rwkv_cli import paths
from rwkv_cli.catalog import registry
from rwkv_cli.catalog.hub import failures
from rwkv_cli.cli.main import app
from rwkv_cli.engine.session import Session
from rwkv_cli.settings import KEYS as SETTINGS_KEYS
from rwkv_cli.text import templates

MORE = os.environ.get("RWKV_RANDOM_TESTS", "")
ENOUGH_TOKENS = 20


def examples(few):
    """Settings of a test: `few` examples, or as many as are asked for."""
    count = int(MORE) if MORE.isdigit() and int(MORE) > 1 else few
    allowed = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=count, suppress_health_check=allowed)


# ---------------------------------------------------------------------------------------------------- odd values

BYTE = os.fsdecode(b"\xe9")
DIGITS = [
    "9" * 400,
    "-" + "9" * 400,
    "9" * 5000,
    "1e999",
    "-1e999",
    "0x10",
    "²",
    "١٢",
    "1_0",
    " 1 ",
    "+1",
    "-0",
]
NUMBERS = ["0", "1", "2", "-1", "0.5", "nan", "inf", "1e-400", "x", "", "1,2", "1=2", "7=nan", "=", *DIGITS]
NUMBERS += [f"{number}=1" for number in DIGITS[:3]] + [f"1={number}" for number in DIGITS[:4]]
TEXTS = [
    "",
    "a",
    "Once upon",
    "\n",
    "\x1b[31m",
    "\x9b",
    "\u202e",
    BYTE,
    "\ud83e",
    "x" * 3000,
    "é🦢",
    "-",
    "--",
    "%s",
]
TEXTS += [
    "{prompt}",
    "{device=cpu}",
    "{",
    "<think>",
    "User: a\n\nAssistant: b",
    "on",
    "raw",
    "g1",
    "auto",
    "cpu",
    "hf",
]
PATHS = [
    *(text for text in TEXTS if text != "\ud83e"),  # no system has such a name
    "tiny.safetensors",
    "tiny.pth",
    "tiny.gguf",
    "s.safetensors",
    "s",
    "none/x",
    ".",
    "sub",
    "pipe/x",
]
PATHS += [
    "zero",
    f"d{BYTE}/tiny.safetensors",
    "~",
    "~nobodyhere/x",
    "~/x",
    "a" * 300,
    "a/" * 3000,
    "own.toml",
    "x.png",
]
PATHS += [
    "own.jinja",
    "prompts.txt",
    "prompts.jsonl",
    "g1-0.1b",
    "hf:o/r",
    "hf:o/r/x.pth",
    "hf:",
    "hf:o",
    "talk",
]
PATHS += [
    "http://127.0.0.1:9/x.pth",
    "http://[",
    "https://127.0.0.1:9/%zz",
    "x.gguf",
    "x.pth",
    "sub/x.safetensors",
]
CHAT = [
    "hi",
    "/help",
    "/set",
    "/show",
    "/stats",
    "/list",
    "/undo",
    "/retry",
    "/reset",
    "/edit x",
    "/save talk",
]
CHAT += [
    f"/{command} {value}"
    for command in ("set top-p", "set seed", "set think", "undo", "system")
    for value in NUMBERS
]
CHAT += [
    f"/{command} {value}"
    for command in ("export", "save", "load", "fork", "x")
    for value in PATHS
    if "\n" not in value
]
CHAT += [
    "/export a\0b.md",
    "/save a\0/b",
    '"""',
    "\\",
    "/set a b",
    "//x",
    "/",
    "/set max-tokens 3",
    "/export x.md",
]

number, text = st.sampled_from(NUMBERS), st.sampled_from(TEXTS)
# What exists is as likely as all that does not, so that commands come further than to a name that is wrong.
path = st.sampled_from(["tiny.safetensors", "tiny.safetensors", "s", "s.safetensors"]) | st.sampled_from(
    PATHS
)
VALUES = {"N": number, "X": number, "ID": number, "ID=X": number, "N,...": number, "TEXT": text, "MODE": text}
VALUES |= {"TYPE": st.sampled_from(["int8", "int4", "fp16", "fp32", "bf16", "q8_0", "x", ""])}
VALUES |= {"FORMAT": st.sampled_from(["pth", "hf", "gguf", "x"])}
STDIN = st.lists(st.sampled_from(CHAT), max_size=4).map(
    lambda lines: "\n".join(lines).encode("utf-8", "surrogatepass")
)

VARIABLES = {
    "RWKV_MODEL RWKV_DATA_DIR RWKV_CONFIG_DIR RWKV_CACHE_DIR XDG_DATA_HOME TMPDIR": PATHS,
    "COLUMNS LINES RWKV_CACHE_SIZE RWKV_THREADS RWKV_TOP_P RWKV_MAX_TOKENS": [
        *NUMBERS,
        "1GB",
        "9" * 12 + "GB",
        "5XB",
    ],
    "TERM COLORTERM FORCE_COLOR NO_COLOR RWKV_DEVICE RWKV_THEME RWKV_HISTORY": [
        "plain",
        "cpu",
        "off",
        "",
        "dumb",
        "unknown",
        "xterm",
        "1",
        "x" * 999,
    ],
    "LANG LC_ALL TZ RWKV_DEBUG": ["", "C", "x", "tr_TR.UTF-8", "0", "../x", BYTE],
    "HF_TOKEN HF_HOME HF_HUB_OFFLINE HF_ENDPOINT": [*TEXTS[:10], "1", "x/y"],
}
VARIABLES = {name: values for names, values in VARIABLES.items() for name in names.split()}


@st.composite
def environments(draw, known=VARIABLES, most=3):
    """A few variables, with odd values."""
    chosen = draw(st.lists(st.sampled_from(list(known)), max_size=most, unique=True))
    return {
        name: draw(st.sampled_from(known[name])).replace("\0", "").replace("\ud83e", "") for name in chosen
    }


# ------------------------------------------------------------------------------------------------ command lines


def commands(command, path=()):
    """Every command, with its words."""
    if hasattr(command, "commands"):
        for name, each in command.commands.items():
            yield from commands(each, (*path, name))
    else:
        yield path, command


TAKEN = socket.create_server(("127.0.0.1", 0))
"""A port that is in use."""

COMMANDS = list(commands(typer.main.get_command(app)))
NEVER = {
    "help",
    "vi",
    "long",
}  # pages are tested elsewhere, keys need a terminal, and 50,000 tokens take long


@st.composite
def command_lines(draw):
    """A command with some of its options, and what is piped into it."""
    words, command = draw(st.sampled_from(COMMANDS))
    line = list(words)
    parameters = [each for each in command.params if each.name not in NEVER]
    for argument in [each for each in parameters if each.param_type_name == "argument"]:
        line += draw(
            st.lists(path, min_size=int(argument.required), max_size=1 if argument.nargs == 1 else 2)
        )
    options = [each for each in parameters if each.param_type_name == "option"]
    for option in draw(st.lists(st.sampled_from(options), max_size=4)) if options else ():
        line.append(draw(st.sampled_from([*option.opts, *option.secondary_opts])))
        if not option.is_flag:
            line.append(draw(VALUES.get(option.metavar, path)))
    if words == ("serve",):  # it ends where it would begin to listen
        line += ["--host", "127.0.0.1", "--port", str(TAKEN.getsockname()[1])]
    if words == ("bench",):  # what is given before wins only where it is wrong
        line += ["--prefill", "2", "--decode", "2", "--repeat", "1"]
    names = {name for each in parameters for name in each.opts}
    if "--model" in names and not {"-m", "--model"} & set(line) and draw(st.booleans()):
        line += ["-m", "tiny.safetensors"]
    if words[0] in ("chat", "generate") or words == ("state", "load"):
        line += ["-n", "2"] if words[0] != "chat" else ["--max-tokens", "2"]
    return line, draw(STDIN)


# ----------------------------------------------------------------------------------------------- settings files

LITERALS = [
    "true",
    "0",
    "1.5",
    "-1",
    "nan",
    "inf",
    "1e999",
    "9" * 400,
    "9" * 5000,
    "0x" + "f" * 5000,
    '""',
    '"a"',
    "[]",
]
LITERALS += [
    '"{prompt}"',
    '"{system}"',
    '["a"]',
    '[""]',
    "[1]",
    "{}",
    "{a = 1}",
    "{top_k = 2}",
    "1979-05-27",
    "07:32:00",
]
LITERALS += [
    '"o/r"',
    '"x.pth"',
    '"raw"',
    '"g1"',
    '"\\u202e"',
    '"\\ud800"',
    "'''\n'''",
    '"' + "x" * 3000 + '"',
    "[[1]]",
    "",
]
LITERALS += [
    '"http://127.0.0.1:9/x"',
    '"' + "0" * 64 + '"',
    '["x", "x"]',
    '{on = {user_suffix = "a"}}',
    "{on = 1}",
]
KEYS = "name base description opening system user user_after_system answer turn_end document_end default_thinking chat"
KEYS += " begin clean stop stop_tokens thinking sampling jinja end_of_text repository file url revision bytes sha256"
KEYS += " parameters template license aliases sampling.top_k sampling.temperature thinking.on"
KEYS += ' thinking.on.sampling.top_p x "é" "" "a b" user.prompt'
TABLES = [
    "x",
    "g1",
    "gosling",
    "raw",
    "world-0.1b",
    '"é"',
    '""',
    '"a b"',
    "[x]",
    "x.y",
    "con",
    "..",
    "x.sampling",
    "x.thinking.on",
]
PIECES = [
    "{{ messages[0].content }}",
    "{{ messages[0]['content'] * 3 }}",
    "{% for m in messages %}{{ m.role }}: {{ m.content }}",
]
PIECES += [
    "{% endfor %}",
    "{{ 1 / 0 }}",
    "{{ raise_exception('no') }}",
    "{% include 'x' %}",
    "{{ messages.__class__ }}",
    "{{",
]
PIECES += [
    "{{ strftime_now('%') }}",
    "{{ messages | tojson }}",
    "{{ '\\ud800' }}",
    "x" * 3000,
    "{{ bos_token }}",
    "\0",
    BYTE,
]
PIECES += [
    "{{ 9 ** 9999 }}",
    "{% set x = namespace() %}",
    "{{ enable_thinking }}",
    "{% generation %}",
    "{{ 'é' | b }}",
    "🦢",
]


@st.composite
def toml(draw):
    """A settings file, more or less."""
    line = st.tuples(st.sampled_from(KEYS.split()), st.sampled_from(LITERALS)).map(" = ".join)
    lines = []
    for table in draw(st.lists(st.sampled_from(["", *TABLES]), max_size=3)):
        lines += [f"[{table}]" if table else "", *draw(st.lists(line, max_size=4))]
    data = "\n".join(lines).encode()
    return draw(
        st.sampled_from([data, data, data, data[: len(data) // 2], data + b"\xff", b"\xef\xbb\xbf" + data])
    )


jinja = st.lists(st.sampled_from(PIECES), max_size=4).map(lambda parts: os.fsencode("".join(parts)))
nothing = st.just(b"")
USES = st.sampled_from(
    [
        ("generate", "-p", "a", "-n", "2", "-m", "tiny.safetensors"),
        ("generate", "-p", "a", "-n", "2", "-m", "tiny.safetensors", "--template", "own.toml"),
        (
            "generate",
            "-p",
            "a",
            "-n",
            "2",
            "-m",
            "tiny.safetensors",
            "--template",
            "own.jinja",
            "--save-state",
            "t",
        ),
        (
            "generate",
            "-p",
            "a",
            "-n",
            "2",
            "-m",
            "tiny.safetensors",
            "--template",
            "x",
            "--system",
            "b",
            "--think",
            "on",
        ),
        ("generate", "-p", "a", "-m", "x"),
        ("quantize", "tiny.safetensors", "t.safetensors", "--template", "own.jinja", "--type", "fp16"),
        ("chat", "-m", "tiny.safetensors", "--template", "own.toml", "--max-tokens", "2", "--name", "talk2"),
        ("models", "list", "--known"),
        ("models", "list", "--known", "--json"),
        ("pull", "x"),
        ("info", "x"),
        ("info", "tiny.safetensors", "--json"),
    ]
)


# ------------------------------------------------------------------------------------------------------- the tests


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_model):
    """A folder with a model in three formats, a state, prompts, and things that are no files."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "sub").mkdir()
    shutil.copy(tiny_model, folder / "tiny.safetensors")
    write_pth(folder / "tiny.pth", random_weights())
    write_gguf(folder / "tiny.gguf", random_weights())
    (folder / "prompts.txt").write_text("a\n\nb\n")
    (folder / "prompts.jsonl").write_text('{"prompt": "a", "think": "on"}\n')
    (folder / "own.toml").write_text('user = "{prompt}"\n')
    (folder / "own.jinja").write_text("{{ messages[0].content }}")
    if sys.platform == "linux":
        (folder / f"d{BYTE}").mkdir()
        shutil.copy(tiny_model, folder / f"d{BYTE}" / "tiny.safetensors")
    environment = os.environ | {"RWKV_DATA_DIR": str(folder / "data")}
    for name in ("s", "s.safetensors"):
        command = [*RWKV, "generate", "-m", "tiny.safetensors", "-p", "ab", "-n", "3", "--save-state", name]
        subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    return folder


@pytest.fixture
def fuzzed(rwkv, world, tmp_path, monkeypatch):
    """Runs a command in a world of its own, with variables and files: it must not be surprised."""
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1)
    monkeypatch.setattr(failures, "FIRST_DELAY", 0.001)
    sample, sampled = Session.sample, []

    def limited(session):
        sampled.append(session)
        if len(sampled) > ENOUGH_TOKENS:
            raise KeyboardInterrupt
        return sample(session)

    monkeypatch.setattr(Session, "sample", limited)
    here = tmp_path / "home" / "here"

    def call(arguments, stdin=b"", variables=None, files=None):
        shutil.rmtree(tmp_path / "home", ignore_errors=True)
        shutil.copytree(world, here, symlinks=True)
        if Path("/dev/zero").exists():
            (here / "zero").symlink_to("/dev/zero")
        (here / "config").mkdir()
        for name, data in (files or {}).items():
            (here / name).write_bytes(data)
        sampled.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(here)
            patch.setenv("HOME", str(tmp_path / "home"))
            for variable in ("DATA", "CONFIG", "CACHE"):
                patch.setenv(f"RWKV_{variable}_DIR", str(here / variable.lower()))
            for name, value in (variables or {}).items():
                patch.setenv(name, value)
            for cached in (templates.templates, registry.entries):
                cached.cache_clear()
            result = rwkv(*arguments, stdin=stdin)
        for cached in (templates.templates, registry.entries):
            cached.cache_clear()
        check(result.code, result.out, result.err)

    return call


def check(code, out, err):
    """Whether a command ended as commands do."""
    assert code in (0, 1, 2, 130), err
    assert "should not happen" not in out + err, err
    assert "Traceback" not in err, err
    assert not re.search(r"panicked|Warning:", err), err
    if code in (1, 2):
        assert "rwkv: " in err
    for line in err.splitlines():
        assert len(line) < 1000
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]", err)


@examples(100)
@given(command_lines(), environments())
def test_any_command_line(fuzzed, line, variables):
    arguments, stdin = line
    fuzzed(arguments, stdin, variables)


@examples(70)
@given(USES, nothing | toml(), nothing | toml(), toml(), jinja)
def test_any_settings_file(fuzzed, arguments, models, own_templates, template, jinja_template):
    files = {"config/models.toml": models, "config/templates.toml": own_templates}
    fuzzed(arguments, b"hi\n", files=files | {"own.toml": template, "own.jinja": jinja_template})


SETTINGS = st.lists(
    st.tuples(st.sampled_from([*SETTINGS_KEYS, "x"]), st.sampled_from(LITERALS)).map(" = ".join), max_size=2
).map(lambda lines: "\n".join(lines).encode())
CHANGES = [("config",), ("config", "--json"), ("config", "top_p", "0.5"), ("config", "model", "--unset")]


@examples(50)
@given(USES | st.sampled_from(CHANGES), SETTINGS | toml(), environments())
def test_any_settings_of_commands(fuzzed, arguments, own, variables):
    fuzzed(arguments, b"hi\n", variables, files={"config/config.toml": own})


AT_START = {
    "RWKV_CPU_KERNEL": ["", "x", "9" * 400, BYTE],
    "PYTHONIOENCODING": ["", "ascii", "latin-1", "utf-16", "utf-8:strict", ":ignore"],
    "PYTHONUTF8": ["0", "1"],
    "PYTHONCOERCECLOCALE": ["0", "1"],
    "PYTHONUNBUFFERED": ["", "1"],
    "PYTHONWARNINGS": ["default"],
    "HF_HUB_DISABLE_PROGRESS_BARS": ["x"],
    "HF_HUB_VERBOSITY": ["x", "debug"],
    "HF_HUB_DOWNLOAD_TIMEOUT": NUMBERS,
    "HF_HUB_ETAG_TIMEOUT": NUMBERS,
    "NUMBA_OPT": ["", "x", "0"],
    "NUMBA_NUM_THREADS": ["x", "-1", "0"],
    "HF_XET_CACHE": TEXTS[:6],
    "HF_HUB_CACHE": TEXTS[:6],
}
AT_START |= {
    name: values for name, values in VARIABLES.items() if name not in ("RWKV_CACHE_DIR", "RWKV_MODEL")
}
PROGRAMS = [
    ("generate", "-m", "tiny.safetensors", "-p", "é\u202e", "-n", "2", "--json"),
    ("generate", "-m", f"d{BYTE}/tiny.safetensors", "-p", "a", "-n", "2", "--save-state", "t"),
    ("chat", "-m", "tiny.safetensors", "--max-tokens", "2"),
    ("info", "tiny.pth"),
    ("state", "show", "s.safetensors"),
    ("state", "list"),
    ("models", "list", "--known"),
    ("generate", "--help"),
    ("pull", "hf:o/r/x.pth"),
]


@examples(12)
@given(st.sampled_from(PROGRAMS), environments(AT_START, most=4))
def test_any_variables_of_a_process(world, tmp_path_factory, arguments, variables):
    """What is read while modules are imported, and the standard streams."""
    home = tmp_path_factory.mktemp("home")
    own = {f"RWKV_{name}_DIR": str(home / name) for name in ("DATA", "CONFIG")}
    own |= {
        "RWKV_CACHE_DIR": str(paths.cache_folder()),
        "HOME": str(home),
        "HF_ENDPOINT": "http://127.0.0.1:9",
    }
    own |= {"HF_HUB_OFFLINE": "1"} if arguments[0] == "pull" else {}
    done = subprocess.run(
        [*RWKV, *arguments],
        cwd=world,
        env=os.environ | own | variables,
        input="/show\nhé\n".encode(),
        capture_output=True,
        timeout=120,
    )
    err = done.stderr.decode()
    check(
        done.returncode,
        done.stdout.decode(),
        "\n".join(line for line in err.splitlines() if "Warning" not in line),
    )
