"""`rwkv cache`: what this program keeps on the disk to save time, and how to get rid of it."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from rwkv_cli.cli import options
from rwkv_cli.cli.terminal import ui


def cache(
    action: Annotated[
        Literal["show", "clear"],
        typer.Argument(metavar="show|clear", help="Show the sizes, or delete everything in the cache."),
    ] = "show",
    *,
    json: options.Json = False,
) -> None:
    """Show what the cache takes, or clear it.

    Compiled kernels, converted checkpoints, the states after long prompts, the results of tasks, interrupted downloads
    and what killed programs left: what is needed again is made again. Pulled models are not part of it: see rwkv
    models.

    Examples:
        # Where did the disk go?
        rwkv cache
        # Delete it
        rwkv cache clear
    """
    from rwkv_cli import paths
    from rwkv_cli.reporting import format_size, pluralize
    from rwkv_cli.sessions import disk_usage

    kinds = disk_usage.clear() if action == "clear" else disk_usage.kinds()
    total = sum(kind.size for kind in kinds)
    if json:
        rows = {kind.name: {"files": kind.files, "bytes": kind.size} for kind in kinds}
        ui.write_json({"action": action, "folder": str(paths.cache_folder()), "kinds": rows, "bytes": total})
    elif action == "clear":
        typer.echo(f"removed {format_size(total)}")
    else:
        sizes = {kind.name: f"{format_size(kind.size)} in {pluralize(kind.files, 'file')}" for kind in kinds}
        ui.table(
            "cache", {"folder": ui.printable(str(paths.cache_folder()))} | sizes | {"all": format_size(total)}
        )
