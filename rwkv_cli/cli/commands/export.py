"""`rwkv export`: a model becomes a file for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from rwkv_cli.cli import completion, options
from rwkv_cli.cli.terminal import ui
from rwkv_cli.errors import StorageError, UsageError


def export(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="A model file, a published checkpoint, or a name.",
            autocompletion=completion.models,
        ),
    ],
    target: Annotated[Path, typer.Argument(metavar="DST", help="The file to write; for hf a folder.")],
    format: Annotated[
        Literal["pth", "hf", "gguf"] | None,
        typer.Option(
            "--format",
            help="Official PyTorch file, Hugging Face folder, or llama.cpp.",
            show_default="shown by DST",
        ),
    ] = None,
    kind: Annotated[
        Literal["bf16", "fp16", "fp32", "q8_0"] | None,
        typer.Option("--type", "-t", help="How weights are stored.", show_default="bf16; fp16 for gguf"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace DST if it exists.")] = False,
    quiet: options.Quiet = False,
    json: Annotated[bool, typer.Option("--json", help="Write one JSON object.")] = False,
) -> None:
    """Write a model in a format that other programs read."""
    from rwkv_cli.catalog import registry
    from rwkv_cli.cli.terminal.progress import TerminalReporter
    from rwkv_cli.convert import conversion
    from rwkv_cli.files import export as exports
    from rwkv_cli.reporting import format_size

    chosen = format or exports.format_of(target)
    weight_type = exports.type_for(chosen, kind)
    opened = conversion.open_source(registry.locate(source))
    _check_target(target, opened.files, is_folder=chosen == "hf", force=force)
    info = opened.info("fp32", digest=False)
    name = str(info.source.get("name", opened.path.stem))
    with TerminalReporter(quiet or json) as reporter:
        if opened.is_quantized:
            reporter.note(f"{opened.path.name} is {opened.dtype}: what was rounded away does not come back")
        job = exports.ExportJob(opened.weights, name, info.tokenizer, weight_type, reporter.exporting)
        exports.write(chosen, target, job)
    files = sorted(target.iterdir()) if target.is_dir() else [target]
    size = sum(file.stat().st_size for file in files if file.is_file())
    if json:
        from json import dumps

        facts = {"path": str(target), "format": chosen, "type": weight_type, "file_bytes": size}
        typer.echo(dumps(facts, ensure_ascii=False, indent=2))
    elif not quiet:
        typer.echo(
            f"{format_size(opened.bytes)} -> {format_size(size)}, {weight_type}; {ui.printable(str(target))}"
        )


def _check_target(target: Path, sources: tuple[Path, ...], is_folder: bool, force: bool) -> None:
    """Refuse, before the work, what must not be replaced and what cannot be written."""
    if not target.parent.is_dir():
        raise StorageError(f"cannot write {target}: the folder {target.parent} does not exist")
    if not target.exists():
        return
    if any(target.samefile(source) or target.resolve() == source.resolve().parent for source in sources):
        raise UsageError(f"{target} is or holds the model itself: give another name")
    if is_folder != target.is_dir() or not (target.is_dir() or target.is_file()):
        raise UsageError(f"{target} is no {'folder' if is_folder else 'file'} that could be replaced")
    if not force and not (is_folder and not any(target.iterdir())):
        raise UsageError(f"{target} exists already: use --force to replace it")
