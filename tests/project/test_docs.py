"""The help pages: docs/ has them as they are, and they are complete, consistent and narrow enough."""

import itertools
import re
import runpy
import shlex
from pathlib import Path

import pytest
import typer
from typer.core import TyperArgument, TyperOption

from rwkv_cli.cli import help_pages
from rwkv_cli.cli.main import app
from rwkv_cli.cli.options import as_flag

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "build_docs.py"
BUILT = runpy.run_path(str(SCRIPT))
PROGRAM = typer.main.get_command(app)
SECTIONS = {" ".join(each.names): each for each in BUILT["sections"](PROGRAM)}
COMMANDS = {name: each for name, each in SECTIONS.items() if name}

every_page = pytest.mark.parametrize("name", SECTIONS)
every_command = pytest.mark.parametrize("name", COMMANDS)


def page(name, width):
    return help_pages.page(SECTIONS[name].command, SECTIONS[name].context, width)


def options(name):
    """The options of a command that its page shows, without Typer's own."""
    return [
        each for each in SECTIONS[name].command.params if isinstance(each, TyperOption) and not each.hidden
    ]


def test_the_help_pages_are_current():
    assert BUILT["PAGE"].read_text(encoding="utf-8") == BUILT["page"](), f"run python {SCRIPT}"


def test_a_command_prints_its_page(rwkv, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for names in ((), ("generate",), ("state",), ("state", "load")):
        for flag in ("--help", "-h"):
            result = rwkv(*names, flag)
            assert (result.code, result.err, result.out) == (0, "", page(" ".join(names), 80) + "\n")


@pytest.mark.parametrize("group", ["state", "models"])
def test_a_group_alone_prints_its_page(rwkv, monkeypatch, group):
    monkeypatch.setenv("COLUMNS", "80")
    result = rwkv(group)
    assert (result.code, result.err, result.out) == (0, "", page(group, 80) + "\n")


@every_page
def test_pages_fit(name):
    assert max(map(len, page(name, 80).splitlines())) <= 80
    examples = {f"  {line}" for line in help_pages.examples_of(SECTIONS[name].command)}  # which can be pasted
    assert all(len(line) <= 60 for line in page(name, 60).splitlines() if line not in examples)
    assert all(len(line) <= 72 for line in help_pages.examples_of(SECTIONS[name].command))


@every_page
def test_nothing_is_cut_off(name):
    text = page(name, 80)
    assert "..." not in re.sub(
        r"(COMMAND|INPUT|PROMPT)\]?( )?\.\.\.\]?|(NAME|NAME\|FILE)\.\.\.|N,\.\.\.", "", text
    )
    for inner in getattr(SECTIONS[name].command, "commands", {}).values():
        assert f"{inner.name} " in text
        summary = inner.get_short_help_str()
        assert summary.endswith(".")
        assert len(summary) <= 60


@every_command
def test_every_command_and_option_is_explained(name):
    command = SECTIONS[name].command
    assert command.help
    for parameter in command.params:
        assert parameter.help
        assert parameter.help.endswith((".", ")")), parameter.help
        if isinstance(parameter, TyperArgument):
            assert parameter.metavar
    for option in options(name):
        assert option.rich_help_panel, option.opts
        assert option.metavar or option.is_flag, option.opts


def test_an_option_is_the_same_everywhere():
    """It has one help, one panel and one metavar, except where the commands differ in what it does."""
    different = {
        "--prompt",  # of a generation, or the text to read
        "--template",  # a name alone where it is stored in a model file
        "--device",  # several, where a replica may be on each
        "--type",  # those of model files, or of exported files
        "--force",  # of a download
        "--newest",  # is downloaded, or compared with the known models
        "--system",  # in the panel of the conversation
        "--think",
        "--tools",
        "--yes",  # to what: deleting, or calling tools
    }
    found = {}
    for name in COMMANDS:
        for option in options(name):
            found.setdefault(
                option.opts[-1] if option.opts[-1].startswith("--") else option.opts[0], set()
            ).add((option.help, option.rich_help_panel, option.metavar))
    assert {name for name, kinds in found.items() if len(kinds) > 1} <= different


def test_options_come_in_the_same_order_everywhere():
    before = {
        pair for name in COMMANDS for pair in itertools.combinations([each.name for each in options(name)], 2)
    }
    assert not {pair for pair in before if pair[::-1] in before}


def test_panels_are_not_torn_apart():
    for name in COMMANDS:
        panels = [each.rich_help_panel for each in options(name)]
        assert len(list(itertools.groupby(panels))) == len(set(panels)), name


@every_page
def test_every_command_has_examples_that_parse(name, monkeypatch):
    monkeypatch.delenv("RWKV_MODEL", raising=False)
    examples = help_pages.examples_of(SECTIONS[name].command)
    assert examples
    for line in examples:
        command, *arguments = shlex.split(line.partition(" > ")[0].rpartition(" | ")[2])
        assert command == "rwkv"
        parse(PROGRAM, "rwkv", arguments)
    assert not name or any(f"rwkv {name}" in line for line in examples)


def parse(command, name, arguments, parent=None):
    """Parse a command line without running it."""
    context = command.make_context(name, list(arguments), parent=parent)
    rest = [*context._protected_args, *context.args]
    if rest and hasattr(command, "commands"):
        parse(command.commands[rest[0]], rest[0], rest[1:], context)


def test_the_fields_of_errors_are_options():
    known = {
        flag for name in COMMANDS for each in options(name) for flag in (*each.opts, *each.secondary_opts)
    }
    fields = set()
    for file in (ROOT / "rwkv_cli").rglob("*.py"):
        if "server" in file.relative_to(ROOT / "rwkv_cli").parts[:1] and file.name != "settings.py":
            continue  # the fields of requests
        text = file.read_text(encoding="utf-8")
        for field, value in re.findall(r"(?<!\{)\{\{([a-z_]+)(?:=([^{}\s]*))?\}\}(?!\})", text):
            fields.add(as_flag(field, value or None).split()[0])
    assert fields
    assert fields <= known


def test_the_program_alone_shows_where_to_begin(rwkv):
    result = rwkv()
    assert (result.code, result.err) == (0, "")
    begun = re.findall(r"^  rwkv (\w+)", result.out, re.MULTILINE)
    assert begun == ["chat", "generate", "pull", "run"]
    assert "rwkv --help" in result.out
