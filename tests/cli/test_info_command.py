"""`rwkv info`, and the facts about the machine behind it."""

import json
import subprocess

import pytest
from helpers.writers import TINY, random_weights, write_hf, write_pth

from rwkv_cli import machine, paths
from rwkv_cli.engine.gpu import probe


def facts(rwkv, *arguments):
    result = rwkv("info", "--json", *arguments)
    assert (result.code, result.err) == (0, "")
    return json.loads(result.out)


def test_the_embedded_model(rwkv):
    found = facts(rwkv)
    assert found["machine"]["threads"] >= 1
    assert found["backend"]["device"] == "cpu"
    assert found["backend"]["instruction"] == found["backend"]["instructions"][0]
    model = found["model"]
    assert model["path"] == str(paths.EMBEDDED_MODEL)
    assert (model["template"], model["format"], model["weight_type"]) == ("story", "model file", "int8")
    assert 0 < model["weights_bytes"] < model["file_bytes"] == paths.EMBEDDED_MODEL.stat().st_size


def test_a_published_checkpoint_is_described_and_not_quantized(rwkv, tmp_path, monkeypatch):
    monkeypatch.setenv("RWKV_CACHE_DIR", str(tmp_path / "cache"))
    for path in (
        write_pth(tmp_path / "rwkv7-g1-tiny.pth", random_weights()),
        write_hf(tmp_path / "hf", random_weights(), shards=2),
    ):
        model = facts(rwkv, path)["model"]
        assert (model["layers"], model["channels"], model["heads"]) == (TINY.n_layer, TINY.n_embd, 2)
        assert (model["hidden_units"], model["vocabulary"]) == (TINY.n_ffn, TINY.vocab_size)
        assert model["ranks"] == {"w": 32, "a": 24, "v": 16, "g": 40}
        assert (model["parameters"], model["state_bytes"]) == (TINY.n_params, TINY.state_bytes)
        assert (model["weight_type"], model["tokenizer"]) == ("bf16", None)
    assert model["file_bytes"] == sum(file.stat().st_size for file in (tmp_path / "hf").glob("*.safetensors"))
    assert not (tmp_path / "cache" / "models").exists()


def test_the_model_may_come_from_the_environment(rwkv, tiny_model, monkeypatch):
    monkeypatch.setenv("RWKV_MODEL", str(tiny_model))
    assert facts(rwkv)["model"]["path"] == str(tiny_model)


def test_text_is_aligned(rwkv, tiny_model):
    result = rwkv("info", tiny_model)
    assert result.out.startswith("machine\n  system ")
    rows = [line for line in result.out.splitlines() if line.startswith("  ")]
    assert f"  parameters    {TINY.n_params:,}" in rows
    assert "  ranks         w 32, a 24, v 16, g 40" in rows
    assert "\x1b" not in result.out


def test_a_narrow_terminal_is_kept_to(terminal, tiny_model):
    with terminal("info", tiny_model, COLUMNS="40") as it:
        assert it.finish() == 0
        assert max(map(len, it.shown.splitlines())) <= 40
        assert "\x1b[1mmodel\x1b[0m" in it.shown


def test_a_chosen_device_says_so(rwkv):
    assert facts(rwkv, "--device", "reference")["backend"]["device"] == "reference"
    result = rwkv("info", "--device", "abacus")
    assert (result.code, "must be one of auto" in result.sentence) == (2, True)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"GGUF\x03\0\0\0", b"hello, this is no model"])
def test_what_is_no_model_is_one_sentence(rwkv, tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    result = rwkv("info", tmp_path / "file")
    assert (result.code, str(tmp_path) in result.sentence) == (1, True)


def test_version(rwkv):
    from rwkv_cli import __version__

    assert rwkv("--version").out == f"rwkv {__version__}\n"


def test_help_shows_the_commands(rwkv):
    result = rwkv("--help")
    assert "quantize" in result.out
    assert (result.code, result.err) == (0, "")


def test_a_typo_gets_the_nearest_name(rwkv):
    said = "no such command 'chatt'; did you mean 'chat'? (see rwkv --help)"
    assert (rwkv("chatt").code, rwkv("chatt").sentence) == (2, said)
    said = "no such option: --devise; did you mean --device? (see rwkv info --help)"
    assert rwkv("info", "--devise", "cpu").sentence == said


def test_the_model_may_be_an_option(rwkv, tiny_model, monkeypatch):
    monkeypatch.setenv("RWKV_MODEL", str(paths.EMBEDDED_MODEL))
    assert facts(rwkv, "-m", tiny_model)["model"] == facts(rwkv, tiny_model)["model"]
    said = "give either MODEL or --model, not both"
    result = rwkv("info", tiny_model, "--model", tiny_model)
    assert (result.code, result.sentence) == (2, said)


# --------------------------------------------------------------------------------------------------- the machine


def test_facts_of_this_machine():
    assert machine.system()
    assert machine.cpu_name()
    assert machine.usable_cores() >= 1
    memory = machine.memory()
    assert memory.total is None or memory.total > 10**8
    assert memory.available is None or memory.available <= memory.total


@pytest.mark.parametrize(
    ("size", "level", "shared", "siblings", "expected"),
    [
        ("2048K", "2", "0", "0", 2 << 20),
        ("1280K", "2", "0,32", "0,32", 1280 << 10),
        ("2048K", "2", "0-3", "0", 512 << 10),
        ("480M", "3", "0", "0", None),
        ("", "", "", "", None),
    ],
)
def test_the_cache_of_a_core(monkeypatch, size, level, shared, siblings, expected):
    files = {
        "size": size,
        "level": level,
        "shared_cpu_list": shared,
        "thread_siblings_list": siblings,
    }
    monkeypatch.setattr(machine, "_text", lambda path: files[path.rpartition("/")[2]])
    assert machine.l2_cache() == expected


def test_a_machine_that_tells_nothing(monkeypatch):
    monkeypatch.setattr(machine, "_text", lambda _: "")
    monkeypatch.setattr(machine, "_output", lambda *_: "")
    monkeypatch.delattr("os.sysconf")
    assert machine.memory() == (None, None)
    assert machine.cpu_name()


def test_gpus(monkeypatch):
    found = (
        probe.GpuFacts("NVIDIA H100", (9, 0), 85_000_000_000, "13.0"),
        probe.GpuFacts("T4", (7, 5), 15 * 10**9, "12.4"),
    )
    monkeypatch.setattr(probe, "gpus", lambda: found)
    assert probe.described() == [
        "NVIDIA H100, compute capability 9.0, 85.0 GB, driver for CUDA 13.0",
        "T4, compute capability 7.5, 15.0 GB, driver for CUDA 12.4",
    ]


def test_commands_that_fail_or_hang_say_nothing(monkeypatch):
    assert machine._output("no-such-command-here") == ""
    assert machine._output("false") == ""

    def hang(*_, **__):
        raise subprocess.TimeoutExpired("nvidia-smi", 5)

    monkeypatch.setattr("subprocess.run", hang)
    assert machine._output("true") == ""
