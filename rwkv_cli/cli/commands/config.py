"""`rwkv config`: the user's settings, where each comes from, and changing them."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from rwkv_cli.cli import completion, options
from rwkv_cli.cli.terminal import ui
from rwkv_cli.errors import UsageError


def config(
    name: Annotated[
        str | None,
        typer.Argument(metavar="KEY", help="The setting.", autocompletion=completion.settings),
    ] = None,
    value: Annotated[str | None, typer.Argument(metavar="VALUE", help="Its new value.")] = None,
    *,
    unset: Annotated[
        bool, typer.Option("--unset", help="Remove KEY from config.toml.", rich_help_panel=options.OUTPUT)
    ] = False,
    path: Annotated[
        bool,
        typer.Option(
            "--path",
            help="Print the path of config.toml, which need not exist.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = False,
    json: options.Json = False,
) -> None:
    """Show or change your settings.

    They are kept in config.toml. The environment variable of a setting comes before the file, and an option before
    both: see docs/settings.md.

    Examples:
        # All settings, and where each comes from
        rwkv config
        # Use this model where no --model is given
        rwkv config model g1-0.1b
        # One value, for a script; then back to the default
        rwkv config temperature
        rwkv config temperature --unset
    """
    from rwkv_cli import paths, settings
    from rwkv_cli.cli.reports import settings as report

    if path and (name or unset):
        raise UsageError("give either KEY or --path, not both")
    if unset and (name is None or value is not None):
        raise UsageError("--unset takes a KEY and no VALUE, such as: rwkv config temperature --unset")
    file = paths.settings_file()
    if path:
        _show_path(json)
        return
    key = settings.key_of(name) if name is not None else None
    if key and (unset or value is not None):
        settings.store(key.name, None if value is None else settings.parse(key.name, value))
        if os.environ.get(key.variable):
            ui.note(f"{key.variable} is set, and comes before config.toml")
    if json:
        rows = report.rows()
        ui.write_json(report.row(key.name) if key else {"file": str(file), "settings": rows})
    elif key:
        typer.echo(ui.printable(report.text(report.row(key.name))))
    else:
        rows = report.rows()
        ui.columns(report.TITLES, [report.cells(row) for row in rows])
        ui.note(f"{report.summary(rows)}; the file {'is' if file.exists() else 'would be'} {file}")


def _show_path(json: bool) -> None:
    from rwkv_cli import paths

    if json:
        ui.write_json({"path": str(paths.settings_file())})
    else:
        ui.write_path(paths.settings_file())
