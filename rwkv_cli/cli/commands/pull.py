"""`rwkv pull`: a published model comes into the store."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from rwkv_cli.cli import completion, options
from rwkv_cli.cli.terminal import ui


def pull(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME|hf:OWNER/REPO[/FILE]|URL",
            help="A name that rwkv knows, a repository or a file of the Hugging Face hub, or an address.",
            autocompletion=completion.known,
        ),
    ],
    weight_type: Annotated[
        Literal["int8", "int4", "fp16", "fp32"], typer.Option("--type", "-t", help="How weights are stored.")
    ] = "int8",
    keep: Annotated[bool, typer.Option("--keep", help="Keep the download, in the hub's cache.")] = False,
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Do it again if the model is there already.")
    ] = False,
    sha256: Annotated[
        str | None,
        typer.Option(
            "--sha256", metavar="HEX", help="What the file must be; for one that nothing else says it of."
        ),
    ] = None,
    quiet: options.Quiet = False,
    json: Annotated[bool, typer.Option("--json", help="Write one JSON object.")] = False,
) -> None:
    """Download a model, check it and quantize it, into the folder of models.

    What was downloaded before an interruption is not downloaded again. Run it with: rwkv generate --model NAME
    """
    from rwkv_cli.catalog.pull import pull as run
    from rwkv_cli.cli.terminal.progress import TerminalReporter
    from rwkv_cli.errors import UsageError

    if sha256 is not None and (len(sha256) != 64 or set(sha256.lower()) - set("0123456789abcdef")):
        raise UsageError("--sha256 must be 64 hexadecimal digits")
    with TerminalReporter(quiet or json) as reporter:
        pulled = run(
            name,
            weight_type,
            keep=keep,
            force=force,
            sha256=sha256.lower() if sha256 else None,
            reporter=reporter,
        )
    if json:
        from json import dumps

        typer.echo(dumps(_facts(pulled), ensure_ascii=False, indent=2))
    elif not quiet:
        _tell(pulled)


def _facts(pulled: Any) -> dict[str, Any]:
    return {
        "name": pulled.stored.name,
        "path": str(pulled.stored.path),
        "file_bytes": pulled.stored.bytes,
        "origin": pulled.reference.text,
        "new": pulled.is_new,
        "checked_by": pulled.checked_by,
        "downloaded_bytes": pulled.downloaded,
        "original": str(pulled.original) if pulled.original else None,
    }


def _tell(pulled: Any) -> None:
    from rwkv_cli.reporting import format_size

    size = format_size(pulled.stored.bytes)
    if not pulled.is_new:
        typer.echo(f"{pulled.stored.name} is here already, {size}; {ui.printable(str(pulled.stored.path))}")
        return
    checked = (
        f"checked by {pulled.checked_by}" if pulled.checked_by else "there was no checksum to check it by"
    )
    typer.echo(f"{pulled.stored.name}, {size}, {checked}; {ui.printable(str(pulled.stored.path))}")
    if pulled.original:
        typer.echo(f"the download is kept: {ui.printable(str(pulled.original))}")
