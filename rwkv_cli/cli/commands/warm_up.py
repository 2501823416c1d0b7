"""`rwkv warm-up`: compile beforehand what the first runs would compile, as for an image of a container."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

from rwkv_cli.cli import options
from rwkv_cli.cli.terminal import ui
from rwkv_cli.errors import UsageError

if TYPE_CHECKING:
    from rwkv_cli.engine.warm_up import Warmed


def warm_up(
    *,
    gpu: Annotated[
        str | None,
        typer.Option(
            "--gpu",
            metavar="N.N",
            help="Also compile for NVIDIA GPUs of this compute capability, such as 9.0, although this machine need not "
            "have one.",
            show_default="the GPU of this machine, if it can be used",
            rich_help_panel=options.MODEL,
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Compile all kernels now, rather than in the first run.

    For an image of a container, or an installation for many users: it takes some ten seconds where the
    installation did not bring them, and says where the kernels are. See docs/docker.md.

    Examples:
        # All that runs on this machine need
        rwkv warm-up
        # Also for an H100 that this machine does not have
        rwkv warm-up --gpu 9.0
    """
    from rwkv_cli.cli.terminal.progress import TerminalReporter
    from rwkv_cli.engine import warm_up

    wanted = _capability(gpu) if gpu is not None else None
    reporter, problem = TerminalReporter(quiet=json), None
    warmed = {"cpu": warm_up.warm_up_cpu(reporter.compiling)}
    if wanted is None and (problem := warm_up.why_no_gpu()) is None:
        wanted = warm_up.own_capability()
    if wanted is not None:
        warmed["gpu"] = warm_up.warm_up_gpu(wanted, reporter.compiling)
    _show(warmed, problem, json)


def _capability(text: str) -> tuple[int, int]:
    """A compute capability, such as 9.0. Raises UsageError."""
    if not re.fullmatch(r"[0-9]{1,2}\.[0-9]", text):
        raise UsageError(f"{{gpu}} is {text!r}: it must be a compute capability, such as 9.0")
    major, minor = map(int, text.split("."))
    return major, minor


def _show(warmed: dict[str, Warmed], problem: str | None, json: bool) -> None:
    from rwkv_cli import paths

    folder = str(paths.cache_folder())
    if json:
        rows = {
            name: {"target": each.target, "folder": str(each.folder), "new": each.is_new}
            for name, each in warmed.items()
        }
        ui.write_json({"folder": folder, "cpu": rows["cpu"], "gpu": rows.get("gpu"), "problem": problem})
        return
    lines = {f"{name.upper()} kernels": _described(each) for name, each in warmed.items()}
    if problem:
        lines["GPU kernels"] = f"none: {problem}"
    ui.table("ready", lines | {"cache": f"{ui.printable(folder)} (RWKV_CACHE_DIR sets another folder)"})


def _described(warmed: Warmed) -> str:
    state = "compiled" if warmed.is_new else "already compiled"
    return f"{state} for {warmed.target}, in {ui.printable(str(warmed.folder))}"
