"""`rwkv help`: the help page of a command."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from rwkv_cli.cli import help_pages
from rwkv_cli.errors import UsageError


def help_command(
    context: typer.Context,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="COMMAND", help="The command; none: the program.")
    ] = None,
) -> None:
    """Show how to use a command.

    Examples:
        # The page of a command, and of one within another
        rwkv help generate
        rwkv help state save
    """
    found: Any = context.find_root()
    for name in names or ():
        known = getattr(found.command, "commands", {})
        if name not in known:
            from rwkv_cli.reporting import did_you_mean

            hint = did_you_mean(name[:80], known) or "; rwkv --help lists the commands"
            raise UsageError(f"unknown command {' '.join([found.command_path, name[:80]])!r}{hint}")
        found = known[name].make_context(name, [], parent=found, resilient_parsing=True)
    typer.echo(help_pages.page(found.command, found))
