"""The program `rwkv`: its commands, and the one place where errors become sentences and exit codes."""

from __future__ import annotations

import contextlib
import inspect
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
from rwkv_cli.cli import failures, help_pages
from rwkv_cli.cli.commands.batch import batch
from rwkv_cli.cli.commands.bench import bench
from rwkv_cli.cli.commands.cache import cache
from rwkv_cli.cli.commands.chat import chat
from rwkv_cli.cli.commands.config import config
from rwkv_cli.cli.commands.eval import evaluate
from rwkv_cli.cli.commands.export import export
from rwkv_cli.cli.commands.generate import generate
from rwkv_cli.cli.commands.help import help_command
from rwkv_cli.cli.commands.info import info
from rwkv_cli.cli.commands.models import app as models
from rwkv_cli.cli.commands.models import list_models
from rwkv_cli.cli.commands.pull import pull
from rwkv_cli.cli.commands.quantize import quantize
from rwkv_cli.cli.commands.run import run as run_model
from rwkv_cli.cli.commands.serve import serve
from rwkv_cli.cli.commands.state import app as state
from rwkv_cli.cli.commands.warm_up import warm_up
from rwkv_cli.cli.help_pages import Command, Group
from rwkv_cli.cli.options import as_flag, with_verbose
from rwkv_cli.cli.terminal import streams, ui
from rwkv_cli.errors import RwkvError, shortened

RUN, MODELS, MACHINE = "Run models", "Get and convert models", "This machine"

_START = """\
Run RWKV-7 language models on your own machine.

To begin with:
  rwkv chat                             Talk with the built-in model
  rwkv generate "Once upon a time"      Continue a text
  rwkv pull g1-0.1b                     Download a larger model
  rwkv run g1-0.1b                      Talk with that one

All commands and options: rwkv --help"""

_LIST = """List the models on this machine.

The same as rwkv models list.

Examples:
    # The models that were pulled
    rwkv list
    # The models that can be pulled
    rwkv list --known
"""

app = typer.Typer(
    cls=Group,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # see help_pages
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def program(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", "-V", help="Show the version and exit.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Say what is used, and how fast it is, on standard error.")
    ] = False,
) -> None:
    """Run RWKV-7 language models on your own machine.

    Examples:
        # Talk with the built-in model, or continue a text
        rwkv chat
        rwkv generate "Once upon a time"
        # Download a larger model, and talk with it
        rwkv pull g1-0.1b
        rwkv run g1-0.1b
    """
    ui.be_verbose(verbose)
    if version:
        typer.echo(f"rwkv {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(_START)


for command, panel in (
    (chat, RUN),
    (run_model, RUN),
    (generate, RUN),
    (batch, RUN),
    (serve, RUN),
    (pull, MODELS),
    (quantize, MODELS),
    (export, MODELS),
    (info, MACHINE),
    (bench, MACHINE),
):
    app.command(cls=Command, rich_help_panel=panel)(with_verbose(command) if panel == RUN else command)
app.command(cls=Command, rich_help_panel=MACHINE)(config)
app.command(cls=Command, rich_help_panel=MACHINE)(cache)
app.command(cls=Command, rich_help_panel=MACHINE)(warm_up)
app.command("eval", cls=Command, rich_help_panel=MODELS)(evaluate)
app.command("list", cls=Command, rich_help_panel=MODELS, help=_LIST)(list_models)
app.command("help", cls=Command, rich_help_panel=MACHINE)(help_command)
app.add_typer(state, rich_help_panel=RUN)
app.add_typer(models, rich_help_panel=MODELS)
# Annotations are texts, which Typer would evaluate three times; that takes a tenth of what `rwkv --help` does.
for group in (app, state, models):
    for each in group.registered_commands:
        if each.callback is not None:
            each.callback.__annotations__ = inspect.get_annotations(each.callback, eval_str=True)


def main() -> None:
    """The entry point: run the command line of this process and exit with its code."""
    streams.prepare()
    _exit_on_signals()
    if not {"-h", "--help"} & set(sys.argv) and "_RWKV_COMPLETE" not in os.environ:
        _remove_leftovers()
    code = run(sys.argv[1:])
    streams.abandon_stderr_if_gone()
    sys.exit(code)


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

    0 success, 1 failure, 2 invalid options or arguments, 130 interrupted. Where JSON was asked for, an error is also an
    object on stdout.
    """
    asks_for_json = failures.asks_for_json(arguments)
    try:
        code = typer.main.get_command(app).main(arguments, prog_name="rwkv", standalone_mode=False)
        sys.stdout.flush()
        return code or 0
    except RwkvError as error:
        return _fail(error.worded(as_flag), error.exit_code, asks_for_json)
    except typer.TyperException as error:
        return _fail(_sentence(error), error.exit_code, asks_for_json)
    except (KeyboardInterrupt, typer.Abort):
        return ui.INTERRUPTED
    except SystemExit as exit:  # Typer's for a closed pipe: `rwkv info | head -1`
        streams.abandon_stdout()
        return 0 if isinstance(exit.__context__, BrokenPipeError) else int(exit.code or 0)
    except OSError as error:
        streams.abandon_stdout()
        return 0 if isinstance(error, BrokenPipeError) else _fail(failures.sentence(error), 1)
    except Exception as error:
        return _fail(failures.sentence(error), 1, asks_for_json)


def _fail(message: str, code: int, as_json: bool = False) -> int:
    with contextlib.suppress(OSError):  # the terminal was closed
        ui.error(message)
    if as_json:
        try:
            print(ui.json_text({"error": {"message": shortened(message), "code": code}}), flush=True)
        except (OSError, ValueError):  # nobody reads stdout: the sentence has been told
            streams.abandon_stdout()
    return code


def _sentence(error: typer.TyperException) -> str:
    """What is wrong with an option or argument, in one sentence, from Typer's message."""
    message = error.format_message().rstrip(".").replace("Value error, ", "")
    message = message.replace(". Did you mean", "; did you mean")
    message = re.sub(r" \(Possible options: (.*)\)$", r"; did you mean \1?", message)
    context = getattr(error, "ctx", None)
    if (unknown := re.match("No such command '(.*)'$", message)) and context:
        message += help_pages.elsewhere(context, unknown[1])
    message += help_pages.long_options(context.command, getattr(error, "option_name", "")) if context else ""
    hint = f" (see {context.command_path} --help)" if context else ""
    return message[:1].lower() + message[1:] + hint
