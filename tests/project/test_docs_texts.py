"""The documents keep pace with the program: links, commands and figures that can be checked are checked."""

import hashlib
import html
import re
import runpy
import shlex
from pathlib import Path

import pytest
import typer

from rwkv_cli.cli.main import app
from rwkv_cli.files.model_file import ModelFile
from rwkv_cli.paths import DATA, EMBEDDED_MODEL

ROOT = Path(__file__).parents[2]
PAGES = [*(ROOT / "docs").glob("*.md")]
DOCUMENTS = [*ROOT.glob("*.md"), *PAGES, ROOT / "examples" / "README.md", DATA / "gosling.md"]
LINK = re.compile(r"\]\((?!https?:)([^)#]+)")
COMMAND = re.compile(
    r"(?:^|[|&`] ?)(?:\.venv/bin/)?rwkv ((?:generate|pull|quantize|export|info|bench) [^|&>`#\n]*)",
    re.MULTILINE,
)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for target in LINK.findall(path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target


def test_the_index_names_every_page():
    listed = LINK.findall((ROOT / "docs" / "index.md").read_text(encoding="utf-8"))
    assert {path.name for path in PAGES} - {"index.md"} <= set(listed)


def test_pictures_load_nothing_from_elsewhere():
    for path in (ROOT / "docs" / "images").glob("*.svg"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"@import|url\((?!['\"]?#)|href=", text), path.name


def test_the_recorded_commands_are_in_the_picture_and_in_the_program():
    pytest.importorskip("pty")
    recorder = runpy.run_path(str(ROOT / "scripts" / "record_terminal.py"))
    shown = html.unescape(recorder["PICTURE"].read_text(encoding="utf-8")).replace("\xa0", " ")
    for scene in recorder["SCENES"]:
        assert f" {scene.command}</text>" in shown
        _, command, *arguments = shlex.split(scene.command)
        typer.main.get_command(app).commands[command].make_context(command, arguments)


def test_the_recorder_understands_what_programs_write():
    pytest.importorskip("pty")
    terminal = runpy.run_path(str(ROOT / "scripts" / "record_terminal.py"))["Terminal"]()
    terminal.write("\x1b]0;title\x07one\r\n\x1b[1mtwo\x1b[0m three\x1b[3Dx\x1b[K\x1b[?25l\x1b[6n")
    assert str(terminal) == "one\n\x1b[0;1mtwo\x1b[0m thx"
    assert (terminal.x, terminal.y, terminal.questions) == (7, 1, 1)
    terminal.write("\x1b[A\x1b[G\x1b[J12\b3")
    assert str(terminal) == "13"


@pytest.mark.parametrize(
    "name",
    ["README.md", "rwkv_cli/data/gosling.md", "docs/first-model.md", "docs/quantize.md", "docs/offline.md"],
)
def test_the_program_understands_the_commands(name):
    found = COMMAND.findall((ROOT / name).read_text(encoding="utf-8"))
    assert found
    for line in found:
        command, *arguments = shlex.split(line)
        typer.main.get_command(app).commands[command].make_context(command, arguments)  # parses, does not run


def test_the_first_command_installs_and_tells_a_story():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    first, second = re.findall(r"^    (.+)$", readme, re.MULTILINE)[:2]
    assert first == (
        "python3 -m venv .venv && . .venv/bin/activate && pip install . && "
        'rwkv generate --prompt "Once upon a time"'
    )
    assert second == "scripts/test"


def test_the_model_card_describes_the_embedded_model():
    card = (DATA / "gosling.md").read_text(encoding="utf-8")
    model = ModelFile(EMBEDDED_MODEL)
    assert hashlib.sha256(EMBEDDED_MODEL.read_bytes()).hexdigest() in card
    assert f"{EMBEDDED_MODEL.stat().st_size:,} bytes" in card
    assert f"{model.config.n_params:,}" in card
    assert model.info.source["sha256"] in card
    assert f"temperature {model.info.sampling['temperature']}, top-p {model.info.sampling['top_p']}" in card
