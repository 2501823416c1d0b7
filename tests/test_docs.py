"""The help pages in docs/ are what the commands say, and every command and option says something."""

import runpy
from pathlib import Path

import pytest
import typer

from rwkv_cli.cli.main import app

SCRIPT = Path(__file__).parent.parent / "scripts" / "build_docs.py"


def test_the_help_pages_are_current():
    built = runpy.run_path(str(SCRIPT))
    assert built["PAGE"].read_text(encoding="utf-8") == built["page"](), f"run python {SCRIPT}"


def all_commands():
    """The words of every command, also of those below another."""
    names = [[info.name or info.callback.__name__] for info in app.registered_commands]
    for group in app.registered_groups:
        below = group.typer_instance.registered_commands
        names += [[group.name], *([group.name, info.name or info.callback.__name__] for info in below)]
    return names


@pytest.mark.parametrize("words", all_commands(), ids=" ".join)
def test_every_command_and_option_has_a_help(words):
    command = typer.main.get_command(app)
    for word in words:
        command = command.commands[word]
    assert command.help
    assert all(parameter.help for parameter in command.params)
