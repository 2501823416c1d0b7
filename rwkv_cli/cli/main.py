"""The program `rwkv`: its commands, and the one place where errors become sentences and exit codes."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from rwkv_cli import __version__
from rwkv_cli.cli.commands import models
from rwkv_cli.cli.commands.bench import bench
from rwkv_cli.cli.commands.chat import chat
from rwkv_cli.cli.commands.export import export
from rwkv_cli.cli.commands.generate import generate
from rwkv_cli.cli.commands.info import info
from rwkv_cli.cli.commands.pull import pull
from rwkv_cli.cli.commands.quantize import quantize
from rwkv_cli.cli.commands.state import app as state
from rwkv_cli.cli.terminal import ui
from rwkv_cli.errors import RwkvError

TERMINATED = 128 + signal.SIGTERM

app = typer.Typer(
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help fits any width, and comes in half the time
    context_settings={
        "help_option_names": ["-h", "--help"],
        "terminal_width": min(shutil.get_terminal_size().columns, 80),
    },
)


@app.callback(invoke_without_command=True)
def program(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """Run RWKV-7 language models on your own machine."""
    if version:
        typer.echo(f"rwkv {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


for command in (chat, generate, pull, quantize, export, info, bench):
    app.command()(command)
app.add_typer(models.app, name="models")
app.add_typer(state)


def main() -> None:
    """The entry point: run the command line of this process and exit with its code."""
    ui.prepare_streams()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))  # so that nothing half-written stays
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line: its exit code, after a sentence on stderr if it failed.

    0 success, 1 failure, 2 an option or argument that cannot be right, 130 interrupted.
    """
    try:
        code = typer.main.get_command(app).main(arguments, prog_name="rwkv", standalone_mode=False)
        sys.stdout.flush()
        return code or 0
    except RwkvError as error:
        return _fail(str(error), error.exit_code)
    except typer.TyperException as error:
        return _fail(_sentence(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return ui.INTERRUPTED
    except SystemExit as exit:  # what Typer makes of a reader that has gone: `rwkv info | head -1`
        ui.abandon_stdout()
        return 0 if isinstance(exit.__context__, BrokenPipeError) else int(exit.code or 0)
    except OSError as error:
        ui.abandon_stdout()
        if isinstance(error, BrokenPipeError):
            return 0
        where = error.filename or "cannot write the output"
        return _fail(f"{where}: {(error.strerror or str(error)).lower()}", 1)
    except MemoryError:
        return _fail("there is not enough memory for this", 1)
    except Exception as error:
        if os.environ.get("RWKV_DEBUG") == "1":
            raise
        what = f"{type(error).__name__}: {error}"
        return _fail(f"this should not happen ({what}); please report it, with what RWKV_DEBUG=1 adds", 1)


def _fail(message: str, code: int) -> int:
    ui.error(message)
    return code


def _sentence(error: typer.TyperException) -> str:
    """What Typer says of an option or argument that it cannot accept, in one sentence."""
    message = error.format_message().rstrip(".").replace("Value error, ", "")
    context = getattr(error, "ctx", None)
    hint = f"; see {context.command_path} --help" if context else ""
    return message[:1].lower() + message[1:] + hint
