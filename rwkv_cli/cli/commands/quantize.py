"""`rwkv quantize`: any readable model becomes a model file, with weights of one type."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rwkv_cli.cli import options
from rwkv_cli.errors import UsageError

if TYPE_CHECKING:
    from rwkv_cli.files.weight_layouts import WeightType

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
    budget: Annotated[
        float | None,
        typer.Option(
            "--budget",
            metavar="BITS",
            help="In place of --type: bits for a weight of the big matrices, 4.5 to 8. Some get int4 and some int8, by "
            "what that does to the model, which is measured.",
            rich_help_panel=options.MODEL,
        ),
    ] = None,
    template: options.ModelTemplate = None,
    calibrate: Annotated[
        str | None,
        typer.Option(
            "--calibrate",
            metavar="TEXT|FILE",
            help="With int4: round for this text (GPTQ), which takes longer and loses less; with --budget, "
            "measure on it too.",
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
    picture: Annotated[
        Path | None,
        typer.Option(
            "--picture",
            metavar="PNG",
            help="With --budget: write a picture of size against loss.",
            rich_help_panel=_CHECK,
        ),
    ] = None,
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
        # Between int4 and int8
        rwkv quantize rwkv7-g1-0.1b.pth --budget 6 --picture sizes.png
        # What would each type take?
        rwkv quantize rwkv7-g1-0.1b.pth --dry-run
        # With a LoRA adapter of peft, and with one that does not record its alpha
        rwkv quantize base.pth --lora adapter/
        rwkv quantize base.pth --lora adapter.pth --lora-alpha 32
    """
    from rwkv_cli.catalog import quantize as model_files
    from rwkv_cli.catalog import registry
    from rwkv_cli.cli.reports import budget as budget_report
    from rwkv_cli.cli.reports import quality, quantize
    from rwkv_cli.cli.terminal.progress import TerminalReporter, counting
    from rwkv_cli.convert import budget as budgets
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
    if budget is not None:
        _check_budget(budget, weight_type)
    elif picture is not None:
        raise UsageError("{picture} is of the sizes within a budget: give {budget} too")
    kind: WeightType = weight_type if budget is None else "mixed"
    if calibrate is not None and kind not in ("int4", "mixed"):
        raise UsageError("--calibrate is of use for int4 only: the other types lose next to nothing")
    sample = quality.text_of(calibrate, "--calibrate") if calibrate is not None else None
    with TerminalReporter(quiet or json) as reporter:
        if opened.remark:
            reporter.note(opened.remark)
        if dry_run:
            quantize.show_plan(opened, reporter, json)
            return
        target = model_files.target_of(path, target, kind)
        model_files.check_target(opened, target, kind, force, changes=layout is not None)
        if text is not None:
            tokenizer = quantization_loss.tokenizer_of(opened)
            tokens = quantization_loss.tokens_of(tokenizer, text)
        rounder = calibration.for_text(opened, sample) if sample is not None else None
        chosen = ChosenTemplate(layout, "--template") if layout else None
        within = None
        if budget is None:
            model_files.write(opened, target, kind, reporter, chosen, rounder)
        else:
            model_files.remark(opened, kind, reporter)
            own = (
                quantization_loss.tokens_of(quantization_loss.tokenizer_of(opened), sample)
                if sample
                else None
            )
            within = budgets.write_within(
                opened,
                target,
                budget,
                own,
                reporter,
                lambda task, n: counting(task, n, quiet),
                chosen,
                rounder,
            )
        loss = None
        if text is not None:
            loss = quantization_loss.compare(opened, target, tokenizer, tokens, asked, reporter)
    if within and picture is not None:
        budget_report.write_picture(within, picture)
    if json:
        quantize.write_json(
            opened, target, kind, loss, {"budget": budget_report.facts(within)} if within else {}
        )
    elif not quiet:
        quantize.show(opened, target, kind, loss)
        if within:
            budget_report.show(within)


def _check_budget(budget: float, weight_type: str) -> None:
    from rwkv_cli.convert import budget as budgets

    budgets.check(budget)
    if weight_type != "int8":
        raise UsageError("{budget} chooses between int4 and int8 itself: leave out {weight_type}")
