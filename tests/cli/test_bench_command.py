"""`rwkv bench`: its tables, its JSON, and a sentence for what cannot be. The speeds themselves are not tested."""

import json
import os
import signal

import pytest

from rwkv_cli import paths
from rwkv_cli.cli.commands.bench import _numbers
from rwkv_cli.cli.reports import bench
from rwkv_cli.engine.backends import cpu

SMALL = ("--prefill", "3", "--decode", "2", "--repeat", "2")


@pytest.fixture(autouse=True)
def small_memory(monkeypatch):
    monkeypatch.setattr(cpu, "PROBE_BYTES", 1 << 20)


def rows(out):
    """The rows of all tables, by name."""
    lines = [line for line in out.splitlines() if line.startswith("  ")]
    return dict(line.strip().split("  ", 1) for line in lines)


def test_the_embedded_model(rwkv):
    result = rwkv("bench", *SMALL, "--threads", 1)
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("run\n  machine      ")
    found = rows(result.out)
    assert found["model"].strip() == str(paths.EMBEDDED_MODEL)
    assert found["weight type"].strip() == "int8"
    assert found["kernel"].strip().startswith("Numba, ")
    assert found["threads"].strip() == "1"
    assert "tokens/s, deviation " in found["prefill 3"]
    assert "tokens/s, deviation " in found["decode 2"]
    assert found["memory"].endswith(" % of the dense limit")
    assert "position" not in result.out
    assert "\x1b" not in result.out


def test_json(rwkv, tiny_model):
    result = rwkv("bench", "-m", tiny_model, *SMALL, "--prefill", "5,3", "--long-tokens", 5, "--json")
    assert (result.code, result.err) == (0, "")
    found = json.loads(result.out)
    assert (found["model"], found["weight_type"]) == (str(tiny_model), "int8")
    assert found["threads"] >= 1
    assert [(each["tokens"], each["repeats"]) for each in found["prefill"]] == [(3, 2), (5, 2)]
    assert found["decode"]["tokens_per_second"]["min"] > 0
    assert found["memory"]["bytes_per_token"] > 0
    assert found["memory"]["share_of_dense_limit"] > 0
    assert [(each["from"], each["to"]) for each in found["long"]["stretches"]] == [(1, 2), (3, 3), (4, 5)]
    assert found["interrupted"] is False


def test_a_long_run(rwkv, tiny_model):
    result = rwkv("bench", "-m", tiny_model, *SMALL, "--long-tokens", 2100)
    found = rows(result.out)
    assert list(found)[-4:] == [
        "tokens 1 to 1,000",
        "tokens 1,101 to 2,100",
        "tokens 1 to 1,000, again",
        "last / first",
    ]


def test_the_reference_has_no_memory_figure(rwkv, tiny_model):
    result = rwkv("bench", "-m", tiny_model, "-d", "reference", *SMALL)
    found = rows(result.out)
    assert (found["memory"].strip(), found["threads"].strip()) == ("-", "-")
    assert "NumPy" in found["kernel"]
    found = json.loads(rwkv("bench", "-m", tiny_model, "-d", "reference", *SMALL, "--json").out)
    assert (found["memory"], found["threads"]) == (None, None)


@pytest.mark.parametrize(("share", "is_noted"), [(0.87, False), (1.0, False), (1.13, True)])
def test_more_than_the_limit_is_explained(capsys, share, is_noted):
    speed = {"mean": 1234.5, "standard_deviation": None, "min": 1234.5, "max": 1234.5}
    memory = {"bytes_per_token": 10**6, "bytes_per_second": speed, "share_of_dense_limit": share}
    decode = {"tokens": 1, "repeats": 1, "tokens_per_second": speed}
    bench.show({"machine": "x"}, {"prefill": [], "decode": decode, "memory": memory, "long": None})
    found = rows(capsys.readouterr().out)
    assert found["decode 1"].strip() == "1,234.5 tokens/s"
    expected = f"1.0 MB per token, read at 1.2 kB/s: {round(100 * share)} % of the dense limit"
    assert found["memory"].strip() == expected
    assert ("note" in found) == is_noted


def test_lists_of_sizes():
    assert _numbers(["64,512", "128", "64"]) == [64, 512, 128]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--prefill", "0"), "--prefill is 0: it must be at least 1"),
        (("--prefill", "64,,5"), "--prefill is '64,,5': it must be a number or several, such as 64,512"),
        (("--prefill", "many"), "--prefill is 'many': it must be a number or several, such as 64,512"),
        (("--decode", "-3"), "--decode is -3: it must be at least 1"),
        (("--repeat", "0"), "--repeat is 0: it must be at least 1"),
        (("--prefill", "1,10000001"), "--prefill is larger than 10,000,000, the most that is measured"),
        (("--decode", "9" * 400), "--decode is larger than 10,000,000, the most that is measured"),
        (("--repeat", "9" * 400), "--repeat is larger than 10,000,000, the most that is measured"),
        (
            ("--long-tokens", "9" * 400),
            "--long-tokens is larger than 1,000,000,000, the most that is measured",
        ),
        (("--long-tokens", "0"), "--long-tokens is 0: it must be at least 2"),
        (("--threads", "0"), "--threads is 0: it must be between 1 and 256"),
    ],
)
def test_bad_input_is_one_sentence(rwkv, arguments, sentence):
    result = rwkv("bench", *arguments)
    assert (result.code, result.sentence) == (2, sentence)


@pytest.mark.parametrize("json_option", [(), ("--json",)])
def test_ctrl_c_shows_what_is_measured(terminal, tiny_model, json_option):
    arguments = ("bench", "-m", tiny_model, *SMALL, "--long-tokens", 10**9, *json_option)
    with terminal(*arguments) as it:
        it.read_until("tokens 2,001 to ")
        os.kill(it.process.pid, signal.SIGINT)
        assert it.finish() == 130
    shown = it.shown.split("\x1b[K")[-1]
    assert "Traceback" not in it.shown
    if json_option:
        found = json.loads(shown[: shown.rindex("}") + 1])
        assert found["interrupted"] is True
        assert len(found["long"]["stretches"]) >= 2
    else:
        assert "decode 2" in shown
        assert "tokens 1 to 1,000" in shown


def test_quiet_shows_no_progress(terminal, tiny_model):
    with terminal("bench", "-m", tiny_model, *SMALL, "--quiet") as it:
        assert it.finish() == 0
    assert it.shown.startswith("\x1b[1mrun\x1b[0m")
    assert "\x1b[K" not in it.shown
