"""The help pages in docs/ are what the commands say, and every command and option says something."""

import runpy
from pathlib import Path

import pytest
import typer

from rwkv_cli.cli.main import app

SCRIPT = Path(__file__).parents[2] / "scripts" / "build_docs.py"


def test_the_help_pages_are_current():
    built = runpy.run_path(str(SCRIPT))
    assert built["PAGE"].read_text(encoding="utf-8") == built["page"](), f"run python {SCRIPT}"


COMMANDS = typer.main.get_command(app).commands
BELOW = {
    f"{name} {inner}": command
    for name, group in COMMANDS.items()
    for inner, command in getattr(group, "commands", {}).items()
}


@pytest.mark.parametrize("name", [*COMMANDS, *BELOW])
def test_every_command_and_option_has_a_help(name):
    command = {**COMMANDS, **BELOW}[name]
    assert command.help
    assert all(parameter.help for parameter in command.params)
