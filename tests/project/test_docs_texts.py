"""The documents keep pace with the program: links, commands and figures that can be checked are checked."""

import hashlib
import re
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
        "python3 -m venv .venv && .venv/bin/pip install . && "
        '.venv/bin/rwkv generate --prompt "Once upon a time"'
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
