"""`rwkv quantize`: a published checkpoint becomes a model file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from rwkv_cli.cli import options, ui
from rwkv_cli.errors import StorageError, UsageError


def quantize(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC", help="A published checkpoint: .pth, .gguf, Hugging Face folder, or a name."
        ),
    ],
    target: Annotated[
        Path | None,
        typer.Argument(
            metavar="DST",
            help="The model file to write, or a folder.",
            show_default="SRC-TYPE.safetensors here",
        ),
    ] = None,
    weight_type: Annotated[
        Literal["int8", "int4", "fp16", "fp32"], typer.Option("--type", "-t", help="How weights are stored.")
    ] = "int8",
    template: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The model's prompt format: raw, story, world, g1, qa or instruct.",
            show_default="guessed from its name",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace DST if it exists.")] = False,
    quiet: options.Quiet = False,
) -> None:
    """Convert a published checkpoint into one model file.

    The file holds everything that a generation needs, loads at once and takes a fraction of the memory.
    """
    from rwkv_cli import model, registry
    from rwkv_cli.checkpoints import open_checkpoint
    from rwkv_cli.cli.progress import TerminalReporter
    from rwkv_cli.modelfile import is_model_file
    from rwkv_cli.safetensors_map import format_size
    from rwkv_cli.template import get_template

    if template:
        get_template(template)
    path = registry.locate(source)
    if is_model_file(path):
        raise UsageError(f"{path} is a model file already: only a published checkpoint can be quantized")
    checkpoint = open_checkpoint(path)
    target = _target(path, target, weight_type)
    _check_target(target, checkpoint.files, force)
    with TerminalReporter(quiet) as reporter:
        model.convert(checkpoint, target, weight_type, reporter, template=template)
    if not quiet:
        before, after = sum(file.stat().st_size for file in checkpoint.files), target.stat().st_size
        typer.echo(
            f"{format_size(before)} -> {format_size(after)}, {weight_type}; {ui.printable(str(target))}"
        )


def _target(source: Path, target: Path | None, weight_type: str) -> Path:
    """The file to write: a folder, by default the current one, gets a file named after the source."""
    folder = Path() if target is None else target
    if target is not None and not target.is_dir():
        return target
    source = source.resolve()
    return folder / f"{source.name if source.is_dir() else source.stem}-{weight_type}.safetensors"


def _check_target(target: Path, sources: tuple[Path, ...], force: bool) -> None:
    """Refuse, before the work, what must not be replaced and what cannot be written."""
    if not target.parent.is_dir():
        raise StorageError(f"cannot write {target}: the folder {target.parent} does not exist")
    if not target.exists():
        return
    if any(target.samefile(source) for source in sources):
        raise UsageError(f"{target} is the checkpoint itself: give another name for the model file")
    if not target.is_file():
        raise UsageError(f"{target} is no file that could be replaced")
    if not force:
        raise UsageError(f"{target} exists already: use --force to replace it")
