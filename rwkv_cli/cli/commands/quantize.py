"""`rwkv quantize`: any readable model becomes a model file, with weights of one type."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rwkv_cli.cli import options
from rwkv_cli.errors import StorageError, UsageError

if TYPE_CHECKING:
    from rwkv_cli.convert.conversion import Source
    from rwkv_cli.text.template import Template

_LORA, _CHECK = "LoRA", options.CHECK


def quantize(
    source: options.Source,
    target: Annotated[
        Path | None,
        typer.Argument(
            metavar="DST",
            help="The model file to write, or a folder for it.",
            show_default="SRC-TYPE.safetensors here",
        ),
    ] = None,
    *,
    weight_type: options.WeightType = "int8",
    template: options.ModelTemplate = None,
    calibrate: Annotated[
        str | None,
        typer.Option(
            "--calibrate",
            metavar="TEXT|FILE",
            help="With --type int4: round for this text (GPTQ), which takes longer and loses less.",
            rich_help_panel=options.MODEL,
        ),
    ] = None,
    lora: Annotated[
        Path | None,
        typer.Option(
            "--lora",
            metavar="PATH",
            help="Merge this LoRA adapter first: a file or its folder.",
            rich_help_panel=_LORA,
        ),
    ] = None,
    lora_alpha: Annotated[
        float | None,
        typer.Option(
            "--lora-alpha",
            metavar="X",
            help="The alpha that the adapter was trained with.",
            show_default="adapter_config.json",
            rich_help_panel=_LORA,
        ),
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option(
            "--compare",
            metavar="TEXT|FILE",
            help="Afterwards, measure the loss of accuracy on this text.",
            rich_help_panel=_CHECK,
        ),
    ] = None,
    questions: options.Questions = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Write nothing; show the sizes and speeds to expect.", rich_help_panel=_CHECK
        ),
    ] = False,
    force: options.Force = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Convert a model into one model file.

    The file has everything that a generation needs, loads at once and takes a fraction of the memory.

    Examples:
        # A published checkpoint, in 8 bits
        rwkv quantize rwkv7-g1-0.1b.pth
        # In 4 bits; how much worse is it on a text?
        rwkv quantize model.gguf --type int4 --compare test.txt
        # What would each type take?
        rwkv quantize rwkv7-g1-0.1b.pth --dry-run
        # With a LoRA adapter of peft, and with one that does not record its alpha
        rwkv quantize base.pth --lora adapter/
        rwkv quantize base.pth --lora adapter.pth --lora-alpha 32
    """
    from rwkv_cli.catalog import registry
    from rwkv_cli.cli.reports import quality, quantize
    from rwkv_cli.cli.terminal.progress import TerminalReporter
    from rwkv_cli.convert import calibration, conversion, quantization_loss
    from rwkv_cli.convert.template_choice import ChosenTemplate
    from rwkv_cli.evaluation import advice

    layout = options.parse_template(template)
    if lora is None and lora_alpha is not None:
        raise UsageError("{lora_alpha} needs an adapter: give {lora} too")
    path = registry.locate(source)
    opened = conversion.open_source(path, lora, lora_alpha)
    if questions is not None and compare is None:
        raise UsageError("--questions needs a text too: give --compare")
    text = quality.text_of(compare, "--compare") if compare is not None else None
    asked = quality.questions_of(questions)
    if calibrate is not None and weight_type != "int4":
        raise UsageError("--calibrate is of use for --type int4 only: the other types lose next to nothing")
    sample = quality.text_of(calibrate, "--calibrate") if calibrate is not None else None
    with TerminalReporter(quiet or json) as reporter:
        if opened.remark:
            reporter.note(opened.remark)
        if dry_run:
            quantize.show_plan(opened, reporter, json)
            return
        target = _target(path, target, weight_type)
        _check(opened, target, weight_type, layout, force)
        if text is not None:
            tokenizer = quantization_loss.tokenizer_of(opened)
            tokens = quantization_loss.tokens_of(tokenizer, text)
        rounder = calibration.for_text(opened, sample) if sample is not None else None
        if opened.is_quantized:
            reporter.note(
                f"{path.name} is {opened.dtype}: converting it rounds a second time, which costs accuracy"
            )
        if warning := advice.warning(opened.config, weight_type):
            reporter.note(warning)
        chosen = ChosenTemplate(layout, "--template") if layout else None
        conversion.convert(opened, target, weight_type, reporter, chosen, rounder)
        loss = None
        if text is not None:
            loss = quantization_loss.compare(opened, target, tokenizer, tokens, asked, reporter)
    if json:
        quantize.write_json(opened, target, weight_type, loss)
    elif not quiet:
        quantize.show(opened, target, weight_type, loss)


def _target(source: Path, target: Path | None, weight_type: str) -> Path:
    """The file to write; in a folder, by default the current one, it is named after the source."""
    folder = Path() if target is None else target
    if target is not None and not target.is_dir():
        return target
    from rwkv_cli.files.weight_layouts import WEIGHT_TYPES

    source = source.resolve()
    name = source.name if source.is_dir() else source.stem
    for kind in WEIGHT_TYPES:  # the name of a model file of ours ends in its type
        name = name.removesuffix(f"-{kind}")
    return folder / f"{name}-{weight_type}.safetensors"


def _check(source: Source, target: Path, weight_type: str, template: Template | None, force: bool) -> None:
    """Raise, before the work, if it would change nothing, or the target must not be replaced or cannot be written."""
    from rwkv_cli.files.model_file import ModelFile

    is_same_type = isinstance(source.origin, ModelFile) and source.dtype == weight_type
    if is_same_type and not (template or source.adapter):
        raise UsageError(
            f"{source.path} is a model file of type {weight_type} already: choose another --type"
        )
    if not target.parent.is_dir():
        raise StorageError(f"cannot write {target}: the folder {target.parent} does not exist")
    if not target.exists():
        return
    if any(target.samefile(file) for file in source.files):
        raise UsageError(f"{target} is the model itself: choose another name for the new file")
    if not target.is_file():
        raise UsageError(f"{target} is not a regular file, so it cannot be replaced")
    if not force:
        raise UsageError(f"{target} exists already: use --force to replace it")
