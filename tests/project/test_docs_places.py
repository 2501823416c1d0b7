"""The pages about folders and containers say what the program does."""

import re
import shlex
from pathlib import Path

import platformdirs
import pytest
import typer
from platformdirs.macos import MacOS
from platformdirs.unix import Unix

from rwkv_cli import paths
from rwkv_cli.cli.main import app
from rwkv_cli.sessions import disk_usage, prompt_cache, state_store

ROOT = Path(__file__).parents[2]
PLACES = (ROOT / "docs" / "where-files-live.md").read_text(encoding="utf-8")
DOCKER = (ROOT / "docs" / "docker.md").read_text(encoding="utf-8")
DOCKERFILE = re.search(r"^```dockerfile\n(FROM.*?)^```$", DOCKER, re.MULTILINE | re.DOTALL)[1]
ROW = re.compile(r"^\| (\w+) \| `([^`]+)` \| `([^`]+)` \| `([^`]+)` \|$", re.MULTILINE)


def row(name):
    """The folders of one kind, by platform."""
    return {kind: folders for kind, *folders in ROW.findall(PLACES)}[name]


@pytest.mark.parametrize(
    ("name", "kind"),
    [("data", "user_data_dir"), ("settings", "user_config_dir"), ("cache", "user_cache_dir")],
)
def test_the_folders_of_each_platform(monkeypatch, name, kind):
    monkeypatch.setenv("HOME", "/home/me")
    for variable in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    linux, mac, windows = row(name)
    for system, shown in ((Unix, linux), (MacOS, mac)):
        assert getattr(system("rwkv", appauthor=False), kind) == shown.replace("~", "/home/me")
    assert windows.count("rwkv") == 1


def test_no_folder_has_the_name_of_an_author(monkeypatch):
    """Windows would put the program's name there twice."""
    asked = []
    for kind in ("user_data_dir", "user_config_dir", "user_cache_dir"):
        monkeypatch.setattr(
            platformdirs,
            kind,
            lambda name, appauthor, kind=kind: asked.append((kind, appauthor)) or f"/{name}",
        )
    for variable in ("RWKV_CACHE_DIR", "RWKV_DATA_DIR", "RWKV_CONFIG_DIR"):
        monkeypatch.delenv(variable, raising=False)
    for folder in (paths.cache_folder, paths.data_folder, paths.user_registry_file):
        folder()
    assert asked == [("user_cache_dir", False), ("user_data_dir", False), ("user_config_dir", False)]


def test_the_folders_in_the_program_are_on_the_page():
    folders = {path.name for path in paths.written_folders() if not path.name.startswith("kernels-")}
    for name in (*folders, prompt_cache.folder().name, state_store.folder().name, "locks", "history", "cuda"):
        assert f"| `{name}` in the " in PLACES
    assert set(paths._MOVABLE) <= set(re.findall(r"`([A-Z_]+)`", PLACES))


def test_the_kinds_in_the_cache_are_on_the_page():
    assert [kind.name for kind in disk_usage.kinds()] == re.findall(
        r"^\| ([a-z-]+(?: [a-z]+)*) \| .+ \| .+ \|$",
        PLACES.partition("`rwkv cache` shows")[2].partition("\n## ")[0],
        re.M,
    )


def test_what_the_dockerfile_copies_is_there():
    copied = [line.split()[1:-1] for line in DOCKERFILE.splitlines() if line.startswith("COPY")]
    names = [name for line in copied for name in line]
    assert all((ROOT / name).exists() for name in names)
    build = (
        (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("[tool.hatch.build.targets.sdist]")[0]
    )
    needed = {"pyproject.toml", *re.findall(r'^"([\w.]+)" = "rwkv_cli/', build, re.M)}
    needed |= {
        *re.search(r"packages = \[(.*)\]", build)[1].replace('"', "").split(", "),
        "README.md",
        "LICENSE",
        "hatch_build.py",
    }
    assert set(names) == needed


def test_the_commands_of_the_page_are_understood():
    found = re.findall(r"^RUN (rwkv [^&\n]+)", DOCKER, re.M)
    assert len(found) >= 2
    for line in [*found, "rwkv " + re.search(r"^CMD \[\"(.*)\"\]", DOCKERFILE, re.M)[1]]:
        _, command, *arguments = shlex.split(line)
        typer.main.get_command(app).commands[command].make_context(command, arguments)
