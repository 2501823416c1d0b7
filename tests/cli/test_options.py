"""Options that become settings, and errors that name them."""

import pytest
import typer

from rwkv_cli.cli.main import app, run
from rwkv_cli.cli.options import as_flag, as_setting
from rwkv_cli.cli.prompt import parse_stops
from rwkv_cli.cli.sampling_options import parse
from rwkv_cli.cli.terminal import ui
from rwkv_cli.errors import MOST_CHARACTERS, DeviceError, UsageError
from rwkv_cli.sampling_settings import SAMPLING_FIELDS


@pytest.mark.parametrize(
    ("field", "value", "flag"),
    [
        ("max_tokens", None, "--max-tokens"),
        ("device", "cpu", "--device cpu"),
        ("banned", None, "--ban"),
        ("logit_bias", None, "--logit-bias"),
        ("weight_type", "fp16", "--type fp16"),
        ("keep_text", "false", "--no-text"),
        ("force", "true", "--force"),
    ],
)
def test_a_field_is_an_option(field, value, flag):
    assert as_flag(field, value) == flag


@pytest.mark.parametrize(
    ("field", "value", "shown"),
    [
        ("top_p", None, "top-p"),
        ("max_tokens", "-1", "/set max-tokens -1"),
        ("think", None, "think"),
        ("model", None, "--model"),  # /set does not know it
        ("banned", None, "--ban"),
    ],
)
def test_a_field_is_a_setting_of_a_chat(field, value, shown):
    assert as_setting(field, value) == shown


def test_the_program_shows_fields_as_options(monkeypatch, capfd):
    def fail(*_, **__):
        raise DeviceError("too little memory; use {device=cpu}, or a smaller {weight_type}")

    monkeypatch.setattr("rwkv_cli.cli.reports.info.facts", fail)
    assert run(["info"]) == 1
    assert capfd.readouterr().err == "rwkv: too little memory; use --device cpu, or a smaller --type\n"


@pytest.mark.parametrize("command", ["generate", "chat", "load"])
def test_every_command_that_samples_has_all_settings(command):
    commands = typer.main.get_command(app).commands
    found = {each.name for each in (commands | commands["state"].commands)[command].params}
    assert found >= {name if name != "banned" else "ban" for name in SAMPLING_FIELDS}
    assert "sampling" not in found


def test_settings_are_those_that_were_chosen():
    assert parse() == {}
    chosen = parse(temperature=0.5, seed=0, logit_bias=["1=2.5", "3=-1"], ban=[4, 4])
    assert chosen == {"temperature": 0.5, "seed": 0, "logit_bias": {1: 2.5, 3: -1}, "banned": {4}}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--top-p", "2"), "--top-p is 2: it must be between 0 and 1"),
        (("-t", "nan"), "--temperature is nan"),
        (("--logit-bias", "7"), "--logit-bias is '7': it must be ID=X, such as 42=-1.5"),
        (("--logit-bias", "7=inf"), "--logit-bias of token 7 is inf"),
        (("--stop", ""), "a stop string is empty"),
        (("--template", "wrold"), "did you mean world?"),
        (("--raw", "--template", "qa"), "give either --raw or --template"),
        (("--batch-size", "3"), "--batch-size needs --batch"),
        (("--compact",), "--no-text, --compact and --force need --save-state"),
        (("-n", "-2"), "invalid value for '--max-tokens' / '-n'"),
    ],
)
def test_invalid_options_are_refused_before_a_model_is_loaded(rwkv, arguments, said):
    result = rwkv("generate", "-p", "a", "-m", "missing.pth", *arguments)
    assert (result.code, said in result.sentence) == (2, True), result.sentence


def test_stop_strings_may_have_escapes():
    assert parse_stops([r"\n\n", r"a\\n", "b"]) == ("\n\n", r"a\n", "b")
    with pytest.raises(UsageError, match="stop string"):
        parse_stops(["a", ""])


@pytest.mark.parametrize("variable", ["COLUMNS", "LINES"])
@pytest.mark.parametrize("size", ["0", "-7", "1", "²", "x", "9" * 400, "9" * 5000])
def test_a_terminal_of_an_odd_size(rwkv, monkeypatch, variable, size):
    rwkv("state", "save", "s", "-p", "Once upon a time", stdin=b"")
    monkeypatch.setenv(variable, size)
    for command in (("state", "show", "s"), ("info",), ("generate", "--help"), ("models",)):
        result = rwkv(*command)
        assert (result.code, result.err) == (0, "")
        assert result.out
    assert ui.console("stderr").width <= 9999


LONG = "A" * 20_000


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", "-m", LONG),
        ("generate", "-m", f"./{LONG}"),
        ("generate", "-m", f"hf:{LONG}"),
        ("generate", "-m", f"https://127.0.0.1/{LONG}"),
        ("generate", "-d", LONG),
        ("generate", "--template", LONG),
        ("generate", "--template", f"{LONG}.toml"),
        ("generate", "--threads", LONG),
        ("generate", "--threads", "9" * 5000),
        ("generate", "--top-k", LONG),
        ("generate", "--logit-bias", LONG),
        ("generate", "--ban", "9" * 5000),
        ("generate", "--state", LONG),
        ("generate", "--state", f"{LONG}.safetensors"),
        ("generate", "--save-state", LONG),
        ("generate", "-f", LONG),
        ("generate", "--think", LONG),
        ("generate", f"--{LONG}"),
        (LONG,),
        ("state", "rm", "--yes", LONG),
        ("models", "show", LONG),
        ("pull", LONG),
        ("bench", "--prefill", LONG),
        ("quantize", LONG),
        ("quantize", "gosling", "--type", LONG),
        ("export", "gosling", LONG),
    ],
    ids=lambda arguments: " ".join(arguments)[:30],
)
def test_a_message_repeats_no_more_than_a_line_or_two(rwkv, arguments):
    prompt = () if "-f" in arguments or arguments[0] != "generate" else ("-p", "a")
    result = rwkv(*arguments, *prompt)
    assert result.code in (1, 2)
    assert len(result.sentence) <= MOST_CHARACTERS


def test_a_table_repeats_no_more_of_a_file(rwkv, tmp_path):
    path = tmp_path / "t.toml"
    path.write_text(f'user = "{{prompt}}{LONG}"\n')
    assert (
        rwkv("quantize", "gosling", tmp_path / "m.safetensors", "--type", "int4", "--template", path).code
        == 0
    )
    out = rwkv("info", tmp_path / "m.safetensors").out
    assert max(map(len, out.splitlines())) < MOST_CHARACTERS + 30
    assert LONG in rwkv("info", tmp_path / "m.safetensors", "--json").out
