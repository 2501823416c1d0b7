"""`rwkv bench`: how fast a model runs on this machine."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from rwkv_cli.cli import options
from rwkv_cli.cli.terminal import ui
from rwkv_cli.errors import UsageError

_MEASUREMENT = "Measurement"


def bench(
    *,
    model: options.Model = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    prefill: Annotated[
        list[str] | None,
        typer.Option(
            metavar="N,...",
            help="Prompt length in tokens; several, or repeatable.",
            show_default="512",
            rich_help_panel=_MEASUREMENT,
        ),
    ] = None,
    decode: Annotated[
        int,
        typer.Option(metavar="N", help="Tokens to decode, one at a time.", rich_help_panel=_MEASUREMENT),
    ] = 128,
    repeat: Annotated[
        int,
        typer.Option(metavar="N", help="Repetitions of each measurement.", rich_help_panel=_MEASUREMENT),
    ] = 5,
    long: Annotated[
        bool,
        typer.Option(
            "--long",
            help="Also decode 50,000 tokens, to compare the last ones with the first.",
            rich_help_panel=_MEASUREMENT,
        ),
    ] = False,
    long_tokens: Annotated[
        int | None,
        typer.Option(metavar="N", help="Like --long, with N tokens.", rich_help_panel=_MEASUREMENT),
    ] = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure how fast a model runs on this machine.

    Decoding is compared with the memory bandwidth, which is measured at the same time: see docs/benchmarking.md.

    Examples:
        # The built-in model
        rwkv bench
        # A model that was pulled, with prompts of three lengths
        rwkv bench -m g1-0.1b --prefill 64,512,2048
        # Does the speed stay the same in a long text?
        rwkv bench --long
    """
    from rwkv_cli import machine
    from rwkv_cli.cli.reports.bench import show
    from rwkv_cli.cli.terminal.progress import TerminalReporter
    from rwkv_cli.engine.bench import LONG, Plan, Results, run, summary
    from rwkv_cli.model import load

    if long_tokens is None and long:
        long_tokens = LONG
    plan = Plan(_numbers(prefill or ["512"]), decode, repeat, long_tokens)
    with TerminalReporter(quiet) as reporter:
        loaded = load(model, device, threads=threads, reporter=reporter)
    backend, results = loaded.backend, Results()
    try:
        run(backend, plan, results, announce=lambda text: _show(text, quiet))
    except KeyboardInterrupt:
        results.interrupted = True
    finally:
        _show("", quiet)
    facts = {
        "machine": f"{machine.cpu_name()}; {machine.system()}",
        "model": str(loaded.path),
        "weight_type": loaded.info.weight_type,
        "kernel": backend.kernel,
        "threads": backend.n_threads,
    }
    measured = summary(backend, plan, results)
    if json:
        ui.write_json(facts | measured)
    else:
        show(facts, measured)
    raise typer.Exit(ui.INTERRUPTED if results.interrupted else 0)


def _numbers(lists: Sequence[str]) -> list[int]:
    """The lengths of --prefill, in their order, each once."""
    try:
        return list(dict.fromkeys(int(part) for text in lists for part in text.split(",")))
    except ValueError:
        wrong = ",".join(lists)
        raise UsageError(f"--prefill is {wrong!r}: it must be a number or several, such as 64,512") from None


def _show(text: str, quiet: bool) -> None:
    """One line on a terminal that replaces the previous one; it changes only while nothing is being timed."""
    if ui.is_animated(sys.stderr) and not quiet:
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
