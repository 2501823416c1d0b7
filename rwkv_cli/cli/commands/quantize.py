"""`rwkv quantize`: any readable model becomes a model file, of one type of weights or another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from rwkv_cli.cli import completion, options
from rwkv_cli.errors import StorageError, UsageError

if TYPE_CHECKING:
    from rwkv_cli.convert.conversion import Source


def quantize(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="A published checkpoint (.pth, .gguf, Hugging Face folder), a model file, or a name.",
            autocompletion=completion.models,
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
    lora: Annotated[
        Path | None, typer.Option("--lora", metavar="FILE", help="Merge this LoRA adapter (.pth) into it.")
    ] = None,
    lora_alpha: Annotated[
        float | None, typer.Option("--lora-alpha", metavar="X", help="The alpha that it was trained with.")
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option(
            "--compare", metavar="TEXT", help="Then measure what it has cost, on a text or a file of it."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write nothing: show sizes and speeds to expect.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace DST if it exists.")] = False,
    quiet: options.Quiet = False,
    json: Annotated[bool, typer.Option("--json", help="Write one JSON object.")] = False,
) -> None:
    """Convert a model into one model file.

    The file holds everything that a generation needs, loads at once and takes a fraction of the memory.
    """
    from rwkv_cli.catalog import registry
    from rwkv_cli.cli.reports import quantize
    from rwkv_cli.cli.terminal.progress import TerminalReporter
    from rwkv_cli.convert import conversion
    from rwkv_cli.text.template import get_template

    if template:
        get_template(template)
    if (lora is None) != (lora_alpha is None):
        raise UsageError(
            "give --lora and --lora-alpha together: a file does not say with which alpha it was trained"
        )
    path = registry.locate(source)
    opened = conversion.open_source(path, lora, lora_alpha or 0)
    text = quantize.text_of(compare) if compare is not None else None
    with TerminalReporter(quiet or json) as reporter:
        if dry_run:
            quantize.show_plan(opened, reporter, json)
            return
        _check_source(opened, weight_type, template)
        target = _target(path, target, weight_type)
        _check_target(target, opened.files, force)
        tokens = quantize.tokens_of(opened, text) if text is not None else None
        if opened.is_quantized:
            reporter.note(
                f"{path.name} is {opened.dtype} already: its weights are rounded a second time, which loses more"
            )
        conversion.convert(opened, target, weight_type, reporter, template)
        found = quantize.measure(opened, target, tokens, reporter) if tokens else None
    if json:
        quantize.write_json(opened, target, weight_type, found)
    elif not quiet:
        quantize.tell(opened, target, weight_type, found)


def _check_source(source: Source, weight_type: str, template: str | None) -> None:
    """Refuse what would change nothing."""
    from rwkv_cli.files.model_file import ModelFile

    if (
        isinstance(source.origin, ModelFile)
        and source.dtype == weight_type
        and not (template or source.adapter)
    ):
        raise UsageError(
            f"{source.path} is a model file of the type {weight_type} already: give another --type"
        )


def _target(source: Path, target: Path | None, weight_type: str) -> Path:
    """The file to write: a folder, by default the current one, gets a file named after the source."""
    folder = Path() if target is None else target
    if target is not None and not target.is_dir():
        return target
    from rwkv_cli.files.weight_layouts import WEIGHT_TYPES

    source = source.resolve()
    name = source.name if source.is_dir() else source.stem
    for kind in WEIGHT_TYPES:  # a model file of ours is called after its type
        name = name.removesuffix(f"-{kind}")
    return folder / f"{name}-{weight_type}.safetensors"


def _check_target(target: Path, sources: tuple[Path, ...], force: bool) -> None:
    """Refuse, before the work, what must not be replaced and what cannot be written."""
    if not target.parent.is_dir():
        raise StorageError(f"cannot write {target}: the folder {target.parent} does not exist")
    if not target.exists():
        return
    if any(target.samefile(source) for source in sources):
        raise UsageError(f"{target} is the model itself: give another name for the new file")
    if not target.is_file():
        raise UsageError(f"{target} is no file that could be replaced")
    if not force:
        raise UsageError(f"{target} exists already: use --force to replace it")
