"""`rwkv models`: the models on this machine, and those that can be pulled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from rwkv_cli.cli import completion, options
from rwkv_cli.cli.help_pages import Command, Group
from rwkv_cli.cli.terminal import ui
from rwkv_cli.errors import ModelFileError, UsageError

if TYPE_CHECKING:
    from rwkv_cli.cli.reports.models import KnownRow, StoredRow

app = typer.Typer(
    name="models",
    cls=Group,
    help="""List, show, verify and remove models.

Examples:
    # Which models are here, and which can be pulled?
    rwkv models list
    rwkv models list --known
    # Use one of them from now on
    rwkv models default g1-0.1b
""",
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The model.", autocompletion=completion.models)]
Names = Annotated[
    list[str], typer.Argument(metavar="NAME", help="The models.", autocompletion=completion.pulled)
]


@app.command("list", cls=Command)
def list_models(
    *,
    known: Annotated[
        bool,
        typer.Option(
            "--known",
            "-k",
            help="List the models that can be pulled by name instead.",
            rich_help_panel=options.MODEL,
        ),
    ] = False,
    newest: Annotated[
        bool,
        typer.Option(
            "--newest",
            help="With --known: ask the hub for the newest model of each size.",
            rich_help_panel=options.MODEL,
        ),
    ] = False,
    every: Annotated[
        bool,
        typer.Option(
            "--all",
            help="With --known: list older generations of each size too.",
            rich_help_panel=options.MODEL,
        ),
    ] = False,
    json: options.Json = False,
) -> None:
    """List the models on this machine.

    With --known, memory is about what a model takes in int8, and the one with the asterisk suits this machine.

    Examples:
        # The models that were pulled
        rwkv models list
        # The models that can be pulled
        rwkv models list --known
        # Is there anything newer?
        rwkv models list --known --newest
    """
    from rwkv_cli.cli.reports import models

    if (newest or every) and not known:
        what = "compares the known models with the hub" if newest else "lists all known models"
        raise UsageError(f"{'--newest' if newest else '--all'} {what}: use it with --known")
    if newest:
        options.refuse_with("--newest", {"--all": every or None})
        _list_newest(json)
    elif known:
        _list_known(models.known(every=every), every, json)
    else:
        _list_stored(models.stored(), json)


def _list_known(rows: list[KnownRow], every: bool, json: bool) -> None:
    from rwkv_cli.cli.reports import models

    if json:
        ui.write_json(rows)
        return
    titles = models.ALL_KNOWN if every else models.KNOWN
    ui.columns(titles, [models.known_cells(row, every=every) for row in rows])
    if note := models.footnote(rows):
        ui.note(note)


def _list_stored(rows: list[StoredRow], json: bool) -> None:
    from rwkv_cli.cli import default_model
    from rwkv_cli.cli.reports import models

    if json:
        ui.write_json(rows)
        return
    if not rows:
        ui.note("no models installed yet; to list those that can be pulled: rwkv models list --known")
        return
    ui.columns(models.STORED, [models.stored_cells(row) for row in rows], right=(2, 3))
    if not any(row["default"] for row in rows):
        name = default_model.facts()["name"]
        ui.note(f"without -m, {name} is used; for another one: rwkv models default NAME")


def _list_newest(json: bool) -> None:
    from rwkv_cli.cli.reports import newest
    from rwkv_cli.cli.terminal.progress import TerminalReporter

    with TerminalReporter(json) as reporter:
        rows = newest.rows(reporter)
    if json:
        ui.write_json(rows)
    else:
        ui.columns(newest.TITLES, [newest.cells(row) for row in rows])


@app.command(cls=Command)
def default(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="The model, or the path of one.",
            show_default="show which it is",
            autocompletion=completion.installed,
        ),
    ] = None,
    *,
    json: options.Json = False,
) -> None:
    """Choose the model that is used without -m.

    The first model that is pulled becomes it by itself. It is kept in config.toml; the variable RWKV_MODEL comes before
    it.

    Examples:
        # Which is it?
        rwkv models default
        # Another one; then the built-in one again
        rwkv models default g1-0.1b
        rwkv models default gosling
    """
    from rwkv_cli.cli import default_model

    if name is not None:
        default_model.choose(name)
    facts = default_model.facts()
    if json:
        ui.write_json(facts)
        return
    typer.echo(ui.printable(default_model.sentence(facts)))


@app.command(cls=Command)
def show(name: Name, *, json: options.Json = False) -> None:
    """Show everything about a model.

    It need not be on this machine: what the registry knows of it is shown anyway.

    Examples:
        # Its size, origin, checksum and license
        rwkv models show g1-0.1b
    """
    from rwkv_cli.cli.reports import models

    facts = models.facts(name)
    if json:
        ui.write_json(facts)
    else:
        ui.table(
            name, {key: models.text(key, value) for key, value in facts.items() if value not in (None, {})}
        )


@app.command(cls=Command)
def rm(names: Names, *, json: options.Json = False) -> None:
    """Remove models from this machine.

    Examples:
        # The only type that is here, or one of several
        rwkv models rm g1-0.1b
        rwkv models rm g1-0.1b-int4
    """
    from rwkv_cli.catalog import model_store
    from rwkv_cli.cli import default_model
    from rwkv_cli.cli.reports import models
    from rwkv_cli.reporting import format_size

    chosen = [
        models.chosen(name, "removed") for name in names
    ]  # all names are checked before the first model is removed
    removed = []
    for stored in dict.fromkeys(chosen):
        size = stored.bytes
        model_store.remove(stored)
        removed.append({"name": stored.name, "file_bytes": size})
        was_default = default_model.forget(stored)
        if not json:
            instead = ", which was the default model: now gosling is" if was_default else ""
            typer.echo(f"removed {stored.name}, {format_size(size)}{instead}")
    if json:
        ui.write_json(removed)


@app.command(cls=Command)
def verify(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME", help="The models.", show_default="all", autocompletion=completion.pulled
        ),
    ] = None,
    *,
    json: options.Json = False,
) -> None:
    """Check that models are unchanged since they were written.

    Examples:
        # All models
        rwkv models verify
        # One of them
        rwkv models verify g1-0.1b
    """
    from rwkv_cli.catalog import model_store
    from rwkv_cli.cli.reports import models

    chosen = [models.chosen(name, "verified") for name in names] if names else model_store.listed()
    results = []
    for stored in chosen:
        verdict = models.verdict(stored.path)
        results.append({"name": stored.name, "verdict": verdict})
        if not json:
            typer.echo(f"{stored.name}: {ui.printable(verdict)}")
    if json:
        ui.write_json(results)
    damaged = [str(result["name"]) for result in results if result["verdict"] not in models.GOOD]
    if damaged:
        raise ModelFileError(f"damaged: {', '.join(damaged)}; remove with `rwkv models rm` and pull again")


@app.command(cls=Command)
def path(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="The model.",
            show_default="the folder of all models",
            autocompletion=completion.models,
        ),
    ] = None,
    *,
    config: Annotated[
        bool,
        typer.Option(
            "--config",
            help="Print the path of your own models.toml, which need not exist.",
            rich_help_panel=options.MODEL,
        ),
    ] = False,
    json: options.Json = False,
) -> None:
    """Print the path of a model, or of the model folder.

    Examples:
        # A model
        rwkv models path g1-0.1b
        # Where to add models of your own
        rwkv models path --config
    """
    from rwkv_cli import paths
    from rwkv_cli.catalog import model_store, registry

    if config and name:
        raise UsageError("give either NAME or --config, not both")
    found = paths.user_registry_file() if config else registry.locate(name) if name else model_store.folder()
    if json:
        ui.write_json({"path": str(found)})
    else:
        ui.write_path(found)
