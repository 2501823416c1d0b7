"""`rwkv bench`: how fast a model runs on this machine."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from rwkv_cli.cli import options
from rwkv_cli.cli.terminal import ui
from rwkv_cli.errors import UsageError


def bench(
    model: options.Model = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    prefill: Annotated[
        list[str] | None,
        typer.Option(metavar="N,...", help="Read prompts of so many tokens; repeatable.", show_default="512"),
    ] = None,
    decode: Annotated[int, typer.Option(metavar="N", help="Decode so many tokens, one by one.")] = 128,
    repeat: Annotated[int, typer.Option(metavar="N", help="Measure each so many times.")] = 5,
    long: Annotated[
        bool, typer.Option("--long", help="Also decode 50,000 tokens, to compare the last with the first.")
    ] = False,
    long_tokens: Annotated[
        int | None, typer.Option(metavar="N", help="Also decode N tokens, like --long.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Write one JSON object.")] = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure how fast a model reads and writes on this machine.

    Decoding is compared with the speed of the memory, measured in the same seconds: see docs/benchmarking.md.
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
        from json import dumps

        typer.echo(dumps(facts | measured, ensure_ascii=False, indent=2))
    else:
        show(facts, measured)
    raise typer.Exit(ui.INTERRUPTED if results.interrupted else 0)


def _numbers(lists: Sequence[str]) -> list[int]:
    """The sizes of --prefill, in their order, each once."""
    try:
        return list(dict.fromkeys(int(part) for text in lists for part in text.split(",")))
    except ValueError:
        wrong = ",".join(lists)
        raise UsageError(f"--prefill is {wrong!r}: it must be a number or several, such as 64,512") from None


def _show(text: str, quiet: bool) -> None:
    """One line on a terminal, in place of the one before; it only changes while no clock runs."""
    if ui.is_animated(sys.stderr) and not quiet:
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
