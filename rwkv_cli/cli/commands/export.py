"""`rwkv export`: a model as a file for other programs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from rwkv_cli.cli import options
from rwkv_cli.cli.terminal import ui
from rwkv_cli.errors import StorageError, UsageError


def export(
    source: options.Source,
    target: Annotated[
        Path, typer.Argument(metavar="DST", help="The file to write; for the format hf, a folder.")
    ],
    *,
    format: Annotated[
        Literal["pth", "hf", "st", "gguf"] | None,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="pth (PyTorch, as published), hf (a Hugging Face folder), st (web-rwkv, Ai00) or gguf (llama.cpp).",
            show_default="from the name of DST",
            rich_help_panel=options.MODEL,
        ),
    ] = None,
    weight_type: options.ExportType = None,
    force: options.Force = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write a model in a format that other programs read.

    Examples:
        # For llama.cpp
        rwkv export g1-0.1b g1-0.1b.gguf
        # For Hugging Face transformers
        rwkv export g1-0.1b g1-hf --format hf --type fp16
        # For web-rwkv and Ai00
        rwkv export g1-0.1b g1-0.1b.st
    """
    from rwkv_cli.catalog import registry
    from rwkv_cli.cli.terminal.progress import TerminalReporter
    from rwkv_cli.convert import conversion
    from rwkv_cli.files import export as exports
    from rwkv_cli.reporting import format_size

    chosen = format or exports.format_of(target)
    written_type = exports.type_for(chosen, weight_type)
    opened = conversion.open_source(registry.locate(source))
    _check_target(target, opened.files, is_folder=chosen == "hf", force=force)
    info = opened.info("fp32", digest=False)
    name = re.sub("[\ud800-\udfff]", "\ufffd", str(info.source.get("name", opened.path.stem)))  # not UTF-8
    with TerminalReporter(quiet or json) as reporter:
        if opened.is_quantized:
            reporter.note(f"{opened.path.name} is {opened.dtype}: exporting does not undo the rounding")
        job = exports.ExportJob(opened.weights, name, info.tokenizer, written_type, reporter.exporting)
        exports.write(chosen, target, job)
    files = sorted(target.iterdir()) if target.is_dir() else [target]
    size = sum(file.stat().st_size for file in files if file.is_file())
    if json:
        ui.write_json({"path": str(target), "format": chosen, "type": written_type, "file_bytes": size})
    elif not quiet:
        sizes = f"{format_size(opened.bytes)} -> {format_size(size)}"
        typer.echo(f"{sizes}, {written_type}; {ui.printable(str(target))}")


def _check_target(target: Path, sources: tuple[Path, ...], is_folder: bool, force: bool) -> None:
    """Raise, before the work, if the target must not be replaced or cannot be written."""
    if not target.parent.is_dir():
        raise StorageError(f"cannot write {target}: the folder {target.parent} does not exist")
    if not target.exists():
        return
    if any(target.samefile(source) or target.resolve() == source.resolve().parent for source in sources):
        raise UsageError(f"{target} is or contains the model itself: choose another name")
    if is_folder != target.is_dir() or not (target.is_dir() or target.is_file()):
        kind = "folder" if is_folder else "regular file"
        raise UsageError(f"{target} is not a {kind}, so it cannot be replaced")
    if not force and not (is_folder and not any(target.iterdir())):
        raise UsageError(f"{target} exists already: use --force to replace it")
