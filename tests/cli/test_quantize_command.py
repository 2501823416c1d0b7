"""`rwkv quantize`: what it writes, what it refuses, and that it leaves nothing half-written."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from typing import get_args, get_type_hints

import pytest
from helpers.models import byte_tokenizer, fine_weights, write_file
from helpers.writers import TINY, random_weights, write_gguf, write_hf, write_pth
from PIL import Image

from rwkv_cli.cli.commands.quantize import quantize as command
from rwkv_cli.files import weight_layouts as quantization
from rwkv_cli.files.model_file import ModelFile

RWKV = (sys.executable, "-m", "rwkv_cli")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with a checkpoint in each format."""
    monkeypatch.chdir(tmp_path)
    weights = random_weights()
    write_pth(tmp_path / "my.model.pth", weights)
    write_hf(tmp_path / "my.hf", weights)
    write_gguf(tmp_path / "my.gguf", weights)
    return tmp_path


def contents(folder):
    """All files, and what is in them."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_types_are_those_of_the_model_file():
    assert get_args(get_type_hints(command)["weight_type"]) == quantization.WEIGHT_TYPES


def test_a_budget(rwkv, folder):
    result = rwkv("quantize", "my.model.pth", "--budget", "6", "--picture", "sizes.png")
    assert (result.code, result.err) == (0, "")
    first, title, *rows, _, own = result.out.splitlines()
    assert first.endswith(", mixed; my.model-mixed.safetensors")
    assert title.split()[:3] == ["bits", "size", "int4"]
    assert [row.split()[0] for row in rows[:1] + rows[-1:]] == ["8.25", "4.25"]
    (chosen,) = [row for row in rows if row.endswith("chosen")]
    assert float(chosen.split()[0]) <= 6
    assert "the model itself wrote" in own
    assert ModelFile(folder / "my.model-mixed.safetensors").info.weight_type == "mixed"
    with Image.open(folder / "sizes.png") as picture:
        assert (
            len(picture.convert("RGB").getcolors(1 << 20)) > 4
        )  # ink, grid, line and the mark of the chosen one
    # It is described, and becomes another type.
    assert "mixed" in rwkv("info", "my.model-mixed.safetensors").out
    again = rwkv("quantize", "my.model-mixed.safetensors", "--type", "int8")
    assert (again.code, "rounds a second time" in again.err) == (0, True)
    assert ModelFile(folder / "my.model-int8.safetensors").info.narrow == frozenset()


def test_a_budget_for_a_text(rwkv, folder):
    write_file(folder / "bytes", fine_weights(), "fp32", tokenizer=byte_tokenizer())
    text = "a goose that counts to ten, every morning. " * 40
    facts = json.loads(rwkv("quantize", "bytes", "--budget", "5", "--calibrate", text, "--json").out)
    assert facts["weight_type"] == "mixed"
    assert facts["budget"]["text"] == "given"
    assert facts["budget"]["chosen"]["bits"] <= 5
    assert facts["budget"]["chosen"] in facts["budget"]["points"]
    assert (
        rwkv("generate", "--model", "bytes-mixed.safetensors", "--device", "cpu", "-p", "a", "-n", "2").code
        == 0
    )


@pytest.mark.parametrize("weight_type", quantization.WEIGHT_TYPES)
def test_every_type(rwkv, folder, weight_type):
    result = rwkv("quantize", "my.model.pth", "--type", weight_type)
    name = f"my.model-{weight_type}.safetensors"
    assert result.code == 0
    assert ("MATH500" in result.err) == (weight_type == "int4")  # the only one to be warned of
    assert result.err.count("\n") == (weight_type == "int4")
    assert result.out.startswith("1.2 MB -> ")
    assert result.out.endswith(f", {weight_type}; {name}\n")
    model = ModelFile(folder / name)
    assert (model.config, model.info.weight_type) == (TINY, weight_type)


@pytest.mark.parametrize("source", ["my.model.pth", "my.hf", "my.gguf"])
def test_every_format(rwkv, folder, source):
    assert rwkv("quantize", source, "out.safetensors", "--quiet").out == ""
    assert ModelFile(folder / "out.safetensors").info.source["name"] == source


@pytest.mark.parametrize(
    ("source", "target", "written"),
    [
        ("my.model.pth", (), "my.model-int8.safetensors"),
        ("my.hf", (), "my.hf-int8.safetensors"),
        ("my.gguf", ("sub",), "sub/my-int8.safetensors"),
        ("my.gguf", ("sub/other",), "sub/other"),
    ],
)
def test_where_the_file_goes(rwkv, folder, source, target, written):
    (folder / "sub").mkdir()
    assert rwkv("quantize", source, *target).code == 0
    assert ModelFile(folder / written)


def test_the_current_folder_has_a_name(rwkv, folder, monkeypatch):
    (folder / "sub").mkdir()
    monkeypatch.chdir(folder / "my.hf")
    assert rwkv("quantize", ".", "../sub").code == 0
    assert ModelFile(folder / "sub" / "my.hf-int8.safetensors")


def test_the_template_can_be_named(rwkv, folder):
    rwkv("quantize", "my.gguf", "out", "--template", "qa")
    assert ModelFile(folder / "out").info.template.name == "qa"


def test_a_file_that_exists_is_replaced_only_by_force(rwkv, folder):
    (folder / "out").write_text("precious")
    result = rwkv("quantize", "my.gguf", "out")
    assert (result.code, result.sentence) == (2, "out exists already: use --force to replace it")
    assert (folder / "out").read_text() == "precious"
    assert rwkv("quantize", "my.gguf", "out", "--force").code == 0
    assert ModelFile(folder / "out")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((), 2, "missing argument 'SRC'"),
        (("my.gguf", "my.gguf"), 2, "is the model itself"),
        (("my.gguf", "my.gguf", "--force"), 2, "is the model itself"),
        (("my.hf", "my.hf/model.safetensors", "--force"), 2, "is the model itself"),
        (("my.gguf", "/dev/null", "--force"), 2, "is not a regular file, so it cannot be replaced"),
        (("my.gguf", "missing/out"), 1, "the folder missing does not exist"),
        (("my.gguf", "my.model.pth/out"), 1, "cannot write my.model.pth/out"),
        (("my.gguf", "--type", "int3"), 2, "'int3' is not one of 'int8', 'int4', 'fp16', 'fp32'"),
        (("my.gguf", "--template", "wrold"), 2, "did you mean world?"),
        (("gosling",), 2, "is a model file of type int8 already"),
        (("my.gguf", "--budget", "4"), 2, "--budget is 4 bits: it must be from 4.5 to 8"),
        (("my.gguf", "--budget", "6", "--type", "int4"), 2, "leave out --type"),
        (("my.gguf", "--picture", "x.png"), 2, "give --budget too"),
        (("missing.pth",), 1, "there is no file missing.pth"),
        (("gozling",), 2, "did you mean gosling?"),
        (("g1-0.1b",), 1, "is not on this machine"),
        (("empty",), 1, "is empty"),
    ],
)
def test_what_cannot_be_is_one_sentence(rwkv, folder, arguments, code, said):
    (folder / "empty").touch()
    before = contents(folder)
    result = rwkv("quantize", *arguments)
    assert said in result.sentence
    assert result.code == code
    assert contents(folder) == before


def test_a_full_disk_leaves_nothing(rwkv, folder, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = contents(folder)
    monkeypatch.setattr("os.fsync", full)
    result = rwkv("quantize", "my.gguf", "out")
    assert "cannot write out: no space left on the disk (needs " in result.sentence
    assert (result.code, contents(folder)) == (1, before)


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
def test_a_limit_on_the_size_of_files_leaves_nothing(folder):
    before = contents(folder)
    program = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "from rwkv_cli.cli.main import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-B", "-c", program, "quantize", "my.gguf", "out"], capture_output=True, timeout=60
    )
    assert done.returncode == 1
    assert b"cannot write out: the file would be larger than this disk or account allows" in done.stderr
    assert contents(folder) == before


def test_no_permission(rwkv, folder):
    (folder / "locked").mkdir(mode=0o500)
    if os.access(folder / "locked", os.W_OK):
        pytest.skip("this user may write everywhere")
    result = rwkv("quantize", "my.gguf", "locked")
    assert "no permission to write in locked" in result.sentence


SLOWLY = """
import time
from rwkv_cli.files import weight_layouts
store = weight_layouts.store
weight_layouts.store = lambda *arguments: (time.sleep(0.05), store(*arguments))[1]
from rwkv_cli.cli.main import main
main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
def test_ctrl_c_leaves_nothing(folder):
    before = contents(folder)
    process = subprocess.Popen(
        [sys.executable, "-c", SLOWLY, "quantize", "my.gguf", "out"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 60
    while not list(folder.glob(".out.*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60) == (b"", b"")
    assert process.returncode == 130
    assert contents(folder) == before


@pytest.mark.usefixtures("folder")
def test_a_terminal_shows_a_bar_and_then_the_result(terminal):
    with terminal("quantize", "my.gguf", "out", command=(sys.executable, "-c", SLOWLY)) as it:
        it.read_until("quantizing")
        it.read_until(" M/s")
        assert it.finish() == 0
        assert it.shown.rstrip().endswith(", int8; out")
