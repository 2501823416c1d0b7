"""`rwkv quantize`: any readable model becomes a model file, with weights of one type."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rwkv_cli.cli import options
from rwkv_cli.errors import UsageError

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
    from rwkv_cli.catalog import quantize as model_files
    from rwkv_cli.catalog import registry
    from rwkv_cli.cli.reports import quality, quantize
    from rwkv_cli.cli.terminal.progress import TerminalReporter
    from rwkv_cli.convert import calibration, conversion, quantization_loss
    from rwkv_cli.convert.template_choice import ChosenTemplate

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
        target = model_files.target_of(path, target, weight_type)
        model_files.check_target(opened, target, weight_type, force, changes=layout is not None)
        if text is not None:
            tokenizer = quantization_loss.tokenizer_of(opened)
            tokens = quantization_loss.tokens_of(tokenizer, text)
        rounder = calibration.for_text(opened, sample) if sample is not None else None
        chosen = ChosenTemplate(layout, "--template") if layout else None
        model_files.write(opened, target, weight_type, reporter, chosen, rounder)
        loss = None
        if text is not None:
            loss = quantization_loss.compare(opened, target, tokenizer, tokens, asked, reporter)
    if json:
        quantize.write_json(opened, target, weight_type, loss)
    elif not quiet:
        quantize.show(opened, target, weight_type, loss)
