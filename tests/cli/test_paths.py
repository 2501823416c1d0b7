"""Paths whose bytes are not UTF-8, as on old disks and in archives: they work, and are shown as escapes."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from helpers.writers import random_weights, write_gguf, write_hf, write_pth

from rwkv_cli.cli.terminal import ui

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")

ODD = os.fsdecode(b"\xe9")


@pytest.fixture
def folder(tmp_path, monkeypatch, tiny_model):
    """The current folder is one with such a name, and has a model in every format."""
    path = tmp_path / f"d{ODD}"
    path.mkdir()
    monkeypatch.chdir(path)
    for variable in ("CACHE", "DATA", "CONFIG"):
        monkeypatch.setenv(f"RWKV_{variable}_DIR", str(path / f"{variable}{ODD}"))
    weights = random_weights()
    write_pth(path / f"m{ODD}.pth", weights)
    write_hf(path / f"hf{ODD}", weights)
    write_gguf(path / f"m{ODD}.gguf", weights)
    shutil.copy(tiny_model, path / f"m{ODD}.safetensors")
    (path / f"t{ODD}.toml").write_text('user = "{prompt}"\nstop = ["x"]\n')
    (path / f"t{ODD}.jinja").write_text("{{ messages[0].content }}")
    (path / f"p{ODD}.txt").write_text("Once upon")
    return path


@pytest.fixture
def done(rwkv, folder):  # noqa: ARG001
    """What a command prints, in which @ stands for the odd character."""

    def call(command, *options):
        result = rwkv(*command.replace("@", ODD).split(), *options, stdin=b"")
        assert result.code == 0, result.err
        assert ODD not in result.out + result.err
        return result.out

    return call


@pytest.mark.parametrize("source", ["m@.pth", "hf@", "m@.gguf", "m@.safetensors"])
def test_a_model_in_every_format(done, folder, source):
    assert json.loads(done(f"info {source} --json"))["model"]["path"] == source.replace("@", ODD)
    assert source.replace("@", "\\xe9") in done(f"info {source}")
    facts = json.loads(done(f"bench -m {source} --prefill 2 --decode 2 --repeat 1 --json -q"))
    assert facts["model"] == source.replace("@", ODD)
    assert json.loads(done(f"quantize {source} --dry-run --json"))["path"] == source.replace("@", ODD)
    assert "out\\xe9.safetensors" in done(f"quantize {source} out@.safetensors --type fp16")
    for suffix in ("pth", "gguf"):
        assert json.loads(done(f"export {source} out@.{suffix} --json"))["path"] == f"out{ODD}.{suffix}"
    done(f"export {source} again@ --format hf")
    assert (folder / f"again{ODD}" / "model.safetensors").is_file()


def test_a_state(done, folder):
    done("generate -m m@.safetensors -p ab -n 3 --seed 1 --save-state s@.safetensors")
    assert done("generate --state s@.safetensors -n 2 -q")
    assert "s\\xe9.safetensors" in done("state show s@.safetensors --png p@.png")
    assert json.loads(done("state show s@.safetensors --json"))["path"] == f"s{ODD}.safetensors"
    done("state export s@.safetensors t@.safetensors")
    done("state import t@.safetensors named")
    done("state fork t@.safetensors u@.safetensors")
    assert "DATA\\xe9/states/named.safetensors" in done("state show named")
    done("state rm --yes u@.safetensors")
    assert (folder / f"p{ODD}.png").is_file()
    assert not (folder / f"u{ODD}.safetensors").exists()


def test_the_cache_of_long_prompts(done, monkeypatch):
    monkeypatch.setenv("RWKV_CACHE_SIZE", "1GB")
    options = ("-p", "ab" * 400, "-n", "1", "-t", "0", "--json")
    first = done("generate -m m@.safetensors", *options)
    assert '"cached_tokens"' not in first
    assert '"cached_tokens"' in done("generate -m m@.safetensors", *options)


def test_prompts_and_templates(done):
    same = "-m m@.safetensors -n 4 -t 0 -q"
    expected = done(f"generate {same}", "-p", "Once upon")
    assert done(f"generate {same} -f p@.txt") == expected
    assert done(f"generate {same} -f p@.txt --template t@.toml") == expected
    assert done(f"generate {same} -f p@.txt --template t@.jinja")
    assert json.loads(done(f"generate {same} --batch p@.txt"))["text"] == expected.removesuffix("\n")
    done("quantize m@.safetensors out.safetensors --type int4 --compare p@.txt")


@pytest.mark.parametrize(
    "command",
    [
        "generate -m none@.pth -p x",
        "generate -m none@ -p x",
        "generate -f none@",
        "generate --batch none@",
        "generate -p x --template none@.toml",
        "generate -p x --template none@.jinja",
        "generate -p x --state none@.safetensors",
        "generate -p x --save-state none@/s.safetensors",
        "chat --name none@",
        "chat --state none@",
        "state show none@",
        "state import none@ x",
        "state export none@ x",
        "quantize m@.safetensors m@.safetensors --type int4",
        "quantize m@.safetensors x --lora none@ --lora-alpha 1",
        "export m@.safetensors none@/x.pth",
        "pull none@",
        "models show none@",
    ],
)
def test_errors_show_it_as_an_escape(rwkv, folder, command):  # noqa: ARG001
    result = rwkv(*command.replace("@", ODD).split())
    assert result.code in (1, 2)
    assert ODD not in result.sentence
    assert "\\xe9" in result.sentence or "\\udce9" in result.sentence


def test_a_path_is_printed_for_programs_as_it_is(capfdbinary):
    ui.write_path(Path(f"a{ODD}"))
    assert capfdbinary.readouterr().out == b"a\xe9\n"
