"""`rwkv pull`: download a published model into the model folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from rwkv_cli.cli import completion, options
from rwkv_cli.cli.terminal import ui
from rwkv_cli.errors import RwkvError, UsageError

if TYPE_CHECKING:
    from rwkv_cli.catalog.pull import Pulled

_DOWNLOAD = "Download"


def pull(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="A known model (rwkv models list --known), a repository or file of the Hugging Face hub, "
            "hf:OWNER/REPO[/FILE], or a URL.",
            autocompletion=completion.known,
        ),
    ],
    *,
    weight_type: options.WeightType = "int8",
    keep: Annotated[
        bool,
        typer.Option("--keep", help="Keep the download too, in the hub's cache.", rich_help_panel=_DOWNLOAD),
    ] = False,
    newest: Annotated[
        bool,
        typer.Option(
            "--newest",
            help="Take the newest model of this size that the hub has now, of whatever generation.",
            rich_help_panel=_DOWNLOAD,
        ),
    ] = False,
    sha256: Annotated[
        str | None,
        typer.Option(
            "--sha256",
            metavar="HEX",
            help="Expected SHA-256, when the registry and server have none.",
            rich_help_panel=_DOWNLOAD,
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Download again even if the model is present.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Download, verify and quantize a model.

    An interrupted download continues where it stopped. If the hub fails, the mirrors of a known model are tried; what
    they have must match its checksum.

    Examples:
        # A small model that reasons, in 8 bits; then talk with it
        rwkv pull g1-0.1b
        rwkv chat -m g1-0.1b
        # Use it without -m; the first model that is pulled is used so by itself
        rwkv models default g1-0.1b
        # The newest model of a size, known by name or not
        rwkv pull g1-1.5b --newest
        # In 4 bits
        rwkv pull world-0.4b --type int4
        # A file of a repository
        rwkv pull hf:OWNER/REPO/FILE.pth
    """
    from rwkv_cli.catalog.pull import pull as run
    from rwkv_cli.cli import default_model
    from rwkv_cli.cli.terminal.progress import TerminalReporter

    if sha256 is not None and (len(sha256) != 64 or set(sha256.lower()) - set("0123456789abcdef")):
        raise UsageError("--sha256 must be 64 hexadecimal digits")
    with TerminalReporter(quiet or json) as reporter:
        pulled = run(
            name,
            weight_type,
            keep=keep,
            force=force,
            newest=newest,
            sha256=sha256.lower() if sha256 else None,
            reporter=reporter,
        )
    is_first = _becomes_default(pulled)
    if json:
        ui.write_json(_facts(pulled) | {"default": is_first or default_model.path() == pulled.stored.path})
    elif not quiet:
        _show(pulled)
        for line in default_model.commands_after(pulled.stored, is_first):
            ui.note(line)


def _becomes_default(pulled: Pulled) -> bool:
    """Whether it is the first model that was pulled, and so the default from now on. The pull stands in any case."""
    from rwkv_cli.cli import default_model

    try:
        return pulled.is_new and default_model.choose_first(pulled.stored)
    except RwkvError as error:
        ui.note(f"the default model stays as it is: {error.worded(options.as_flag)}")
        return False


def _facts(pulled: Pulled) -> dict[str, object]:
    return {
        "name": pulled.stored.name,
        "path": str(pulled.stored.path),
        "file_bytes": pulled.stored.bytes,
        "origin": pulled.reference.text,
        "new": pulled.is_new,
        "mirror": pulled.mirror,
        "checked_by": pulled.checked_by,
        "downloaded_bytes": pulled.downloaded,
        "original": str(pulled.original) if pulled.original else None,
    }


def _show(pulled: Pulled) -> None:
    from rwkv_cli.reporting import format_size

    size, path = format_size(pulled.stored.bytes), ui.printable(str(pulled.stored.path))
    if not pulled.is_new:
        typer.echo(f"{pulled.stored.name} is already installed, {size}; {path}")
        return
    checked = (
        f"checked by {pulled.checked_by}"
        if pulled.checked_by
        else "no checksum available; only the size was verified"
    )
    source = f", from {ui.printable(pulled.mirror)}" if pulled.mirror else ""
    typer.echo(f"{pulled.stored.name}, {size}, {checked}{source}; {path}")
    if pulled.original:
        typer.echo(f"the download was kept: {ui.printable(str(pulled.original))}")
