"""`rwkv models`: the models on this machine, and those that can be pulled."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from rwkv_cli.cli import completion
from rwkv_cli.cli.terminal import ui
from rwkv_cli.errors import ModelFileError, UsageError

app = typer.Typer(help="List, show, check and remove models.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Write JSON.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="A model.", autocompletion=completion.models)]
Names = Annotated[
    list[str], typer.Argument(metavar="NAME...", help="Models.", autocompletion=completion.pulled)
]


@app.command("list")
def list_models(
    known: Annotated[
        bool, typer.Option("--known", "-k", help="List the models that can be pulled by name instead.")
    ] = False,
    json: Json = False,
) -> None:
    """List the models on this machine."""
    from rwkv_cli.cli.reports import models

    rows = models.known() if known else models.stored()
    if json:
        _write(rows)
    elif rows:
        ui.columns(models.KNOWN if known else models.STORED, [models.texts(row) for row in rows])
    else:
        ui.note("there are no models here yet; `rwkv models list --known` lists those that can be pulled")


@app.command()
def show(name: Name, json: Json = False) -> None:
    """Show all about a model: one on this machine, or one that can be pulled."""
    from rwkv_cli.cli.reports import models

    facts = models.facts(name)
    if json:
        _write(facts)
    else:
        ui.table(name, {key: models.text(key, value) for key, value in facts.items() if value is not None})


@app.command()
def rm(names: Names, json: Json = False) -> None:
    """Remove models from this machine."""
    from rwkv_cli.catalog import model_store
    from rwkv_cli.cli.reports import models
    from rwkv_cli.reporting import format_size

    chosen = [models.chosen(name) for name in names]  # all names are right before the first is removed
    removed = []
    for stored in dict.fromkeys(chosen):
        size = stored.bytes
        model_store.remove(stored)
        removed.append({"name": stored.name, "file_bytes": size})
        if not json:
            typer.echo(f"removed {stored.name}, {format_size(size)}")
    if json:
        _write(removed)


@app.command()
def verify(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME...]", help="Models; all if none is named.", autocompletion=completion.pulled
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Check that models are still what was written, to the bit."""
    from rwkv_cli.catalog import model_store
    from rwkv_cli.cli.reports import models

    chosen = [models.chosen(name) for name in names] if names else model_store.listed()
    results = []
    for stored in chosen:
        verdict = models.verdict(stored.path)
        results.append({"name": stored.name, "verdict": verdict})
        if not json:
            typer.echo(f"{stored.name}: {ui.printable(verdict)}")
    if json:
        _write(results)
    damaged = [str(result["name"]) for result in results if result["verdict"] not in models.GOOD]
    if damaged:
        raise ModelFileError(f"damaged: {', '.join(damaged)}; remove with `rwkv models rm` and pull again")


@app.command()
def path(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]", help="A model; without one, the folder.", autocompletion=completion.models
        ),
    ] = None,
    config: Annotated[
        bool, typer.Option("--config", help="The models.toml of your own, which need not exist.")
    ] = False,
    json: Json = False,
) -> None:
    """Say where a model lies, or the folder of all."""
    from rwkv_cli import paths
    from rwkv_cli.catalog import model_store, registry

    if config and name:
        raise UsageError("give either a name or --config")
    found = paths.user_registry_file() if config else registry.locate(name) if name else model_store.folder()
    if json:
        _write({"path": str(found)})
    else:
        typer.echo(str(found))


def _write(value: Any) -> None:
    from json import dumps

    typer.echo(dumps(value, ensure_ascii=False, indent=2))
