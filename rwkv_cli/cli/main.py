"""The program `rwkv`: its commands, and the one place where errors become sentences and exit codes."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from cpu_kernels.runtime.leftovers import remove_leftovers
from rwkv_cli import __version__, paths
from rwkv_cli.cli import failures
from rwkv_cli.cli.commands.bench import bench
from rwkv_cli.cli.commands.cache import cache
from rwkv_cli.cli.commands.chat import chat
from rwkv_cli.cli.commands.export import export
from rwkv_cli.cli.commands.generate import generate
from rwkv_cli.cli.commands.info import info
from rwkv_cli.cli.commands.models import app as models
from rwkv_cli.cli.commands.pull import pull
from rwkv_cli.cli.commands.quantize import quantize
from rwkv_cli.cli.commands.state import app as state
from rwkv_cli.cli.commands.warm_up import warm_up
from rwkv_cli.cli.help_pages import Command, Group
from rwkv_cli.cli.options import as_flag
from rwkv_cli.cli.terminal import streams, ui
from rwkv_cli.errors import RwkvError

RUN, MODELS, MACHINE = "Run models", "Get and convert models", "This machine"

_START = """\
Run RWKV-7 language models on your own machine.

To begin with:
  rwkv chat                             Talk with the built-in model
  rwkv generate -p "Once upon a time"   Continue a text
  rwkv pull g1-0.1b                     Download a larger model, for -m g1-0.1b

All commands and options: rwkv --help"""

app = typer.Typer(
    cls=Group,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # see help_pages
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def program(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """Run RWKV-7 language models on your own machine.

    Examples:
        # Talk with the built-in model, or continue a text
        rwkv chat
        rwkv generate -p "Once upon a time"
        # Download a larger model, and talk with it
        rwkv pull g1-0.1b
        rwkv chat -m g1-0.1b
    """
    if version:
        typer.echo(f"rwkv {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(_START)


for command, panel in (
    (chat, RUN),
    (generate, RUN),
    (pull, MODELS),
    (quantize, MODELS),
    (export, MODELS),
    (info, MACHINE),
    (bench, MACHINE),
    (cache, MACHINE),
    (warm_up, MACHINE),
):
    app.command(cls=Command, rich_help_panel=panel)(command)
app.add_typer(state, rich_help_panel=RUN)
app.add_typer(models, rich_help_panel=MODELS)


def main() -> None:
    """The entry point: run the command line of this process and exit with its code."""
    streams.prepare()
    _exit_on_signals()
    if not {"-h", "--help"} & set(sys.argv) and "_RWKV_COMPLETE" not in os.environ:
        _remove_leftovers()
    sys.exit(run(sys.argv[1:]))


def _exit_on_signals() -> None:
    """Exit as Python does where a signal would end the process at once, so that no half-written file is left."""
    for name in ("SIGTERM", "SIGHUP"):  # the second one: a terminal that is closed
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:  # not where nohup ignores it
            signal.signal(number, lambda number, _frame: sys.exit(128 + number))


def _remove_leftovers() -> None:
    """Remove what killed runs left where this program writes, and in the current folder."""
    with contextlib.suppress(OSError, RwkvError):
        for folder in (*paths.written_folders(), Path.cwd()):
            remove_leftovers(folder)


def run(arguments: Sequence[str]) -> int:
    """Run one command line: its exit code, after a sentence on stderr if it failed.

    0 success, 1 failure, 2 invalid options or arguments, 130 interrupted.
    """
    try:
        code = typer.main.get_command(app).main(arguments, prog_name="rwkv", standalone_mode=False)
        sys.stdout.flush()
        return code or 0
    except RwkvError as error:
        return _fail(error.worded(as_flag), error.exit_code)
    except typer.TyperException as error:
        return _fail(_sentence(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return ui.INTERRUPTED
    except SystemExit as exit:  # Typer's for a closed pipe: `rwkv info | head -1`
        streams.abandon_stdout()
        return 0 if isinstance(exit.__context__, BrokenPipeError) else int(exit.code or 0)
    except OSError as error:
        streams.abandon_stdout()
        return 0 if isinstance(error, BrokenPipeError) else _fail(failures.sentence(error), 1)
    except Exception as error:
        return _fail(failures.sentence(error), 1)


def _fail(message: str, code: int) -> int:
    ui.error(message)
    return code


def _sentence(error: typer.TyperException) -> str:
    """What is wrong with an option or argument, in one sentence, from Typer's message."""
    message = error.format_message().rstrip(".").replace("Value error, ", "")
    message = message.replace(". Did you mean", "; did you mean")
    message = re.sub(r" \(Possible options: (.*)\)$", r"; did you mean \1?", message)
    context = getattr(error, "ctx", None)
    hint = f" (see {context.command_path} --help)" if context else ""
    return message[:1].lower() + message[1:] + hint
