"""`rwkv serve`: a server for programs and browsers."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from rwkv_cli.cli import options
from rwkv_cli.errors import UsageError

SERVER, ACCESS, LIMITS = "Server", "Access", "Limits"
_UNITS = {"": 1, "k": 1_000, "m": 1_000_000, "g": 1_000_000_000, "t": 1_000_000_000_000}

Host = Annotated[
    str,
    typer.Option("--host", metavar="ADDRESS", help="The address to listen at.", rich_help_panel=SERVER),
]
Port = Annotated[
    int,
    typer.Option(
        "--port", min=0, max=65535, metavar="N", help="The port; 0 takes a free one.", rich_help_panel=SERVER
    ),
]
Parallel = Annotated[
    int | None,
    typer.Option(
        "--parallel",
        min=1,
        metavar="N",
        help="How many requests to answer at once, on each device; others wait.",
        show_default="what suits the device",
        rich_help_panel=SERVER,
    ),
]
ApiKey = Annotated[
    list[str] | None,
    typer.Option(
        "--api-key",
        envvar="RWKV_API_KEY",
        metavar="KEY",
        help="Only answer requests with this key; may be repeated.",
        rich_help_panel=ACCESS,
    ),
]
Insecure = Annotated[
    bool,
    typer.Option("--insecure", help="Let other machines in without a key.", rich_help_panel=ACCESS),
]
AllowHost = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-host",
        metavar="NAME",
        help="A name by which this server is reached, beside localhost; may be repeated.",
        rich_help_panel=ACCESS,
    ),
]
AllowOrigin = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-origin",
        metavar="URL",
        help="A web page that may use this server, such as https://chat.example; may be repeated.",
        rich_help_panel=ACCESS,
    ),
]
MaxBody = Annotated[
    str,
    typer.Option("--max-body", metavar="SIZE", help="The largest request.", rich_help_panel=LIMITS),
]
MaxPrompt = Annotated[
    int,
    typer.Option("--max-prompt", min=1, metavar="N", help="The most tokens to read.", rich_help_panel=LIMITS),
]
MaxQueue = Annotated[
    int,
    typer.Option(
        "--max-queue",
        min=1,
        metavar="N",
        help="How many requests may wait; more are told to come back later.",
        rich_help_panel=LIMITS,
    ),
]
Timeout = Annotated[
    float,
    typer.Option(
        "--timeout", min=1, metavar="S", help="Seconds that an answer may take.", rich_help_panel=LIMITS
    ),
]
Grace = Annotated[
    float,
    typer.Option(
        "--grace",
        min=0,
        metavar="S",
        help="Seconds that answers have to end in when the server stops; the rest is saved.",
        rich_help_panel=LIMITS,
    ),
]
Memory = Annotated[
    str | None,
    typer.Option(
        "--memory",
        metavar="SIZE",
        help="Memory for models; those not used for longest are unloaded.",
        show_default="3/4 of the machine's",
        rich_help_panel=LIMITS,
    ),
]
StateMemory = Annotated[
    str,
    typer.Option(
        "--state-memory",
        metavar="SIZE",
        help="Memory for states of conversations, per model.",
        rich_help_panel=LIMITS,
    ),
]
StateDisk = Annotated[
    str,
    typer.Option(
        "--state-disk",
        metavar="SIZE",
        help="Disk space for states of conversations; 0 keeps none.",
        rich_help_panel=LIMITS,
    ),
]


LogPrompts = Annotated[
    bool,
    typer.Option("--log-prompts", help="Also log what is asked.", rich_help_panel=options.OUTPUT),
]


def serve(
    *,
    model: options.Model = None,
    device: options.Devices = "auto",
    threads: options.Threads = None,
    host: Host = "127.0.0.1",
    port: Port = 8080,
    parallel: Parallel = None,
    api_key: ApiKey = None,
    insecure: Insecure = False,
    allow_host: AllowHost = None,
    allow_origin: AllowOrigin = None,
    max_body: MaxBody = "16MB",
    max_prompt: MaxPrompt = 1_000_000,
    max_queue: MaxQueue = 64,
    timeout: Timeout = 1800,
    grace: Grace = 30,
    memory: Memory = None,
    state_memory: StateMemory = "512MB",
    state_disk: StateDisk = "8GB",
    log_prompts: LogPrompts = False,
    quiet: options.Quiet = False,
) -> None:
    """Serve models to programs and browsers.

    It speaks the APIs of OpenAI, Anthropic and ollama. Conversations are remembered as states: what was read once is
    not read again, also after a restart. Only this machine can connect, unless --host and --api-key say otherwise. See
    docs/serve.md.

    Examples:
        # Serve the built-in model at http://127.0.0.1:8080
        rwkv serve
        # Serve a model that was pulled, to other machines too
        rwkv serve -m g1-0.1b --host 0.0.0.0 --api-key "$KEY"
    """
    from rwkv_cli import settings
    from rwkv_cli.cli.terminal import ui
    from rwkv_cli.cli.terminal.progress import TerminalReporter
    from rwkv_cli.server.run import serve as run
    from rwkv_cli.server.settings import ServerSettings

    chosen = ServerSettings(
        model=model,
        device=device,
        threads=threads,
        parallel=parallel,
        host=host,
        port=port,
        api_keys=tuple(api_key or ()),
        insecure=insecure,
        allowed_hosts=tuple(allow_host or ()),
        allowed_origins=tuple(allow_origin or ()),
        max_body=_size("--max-body", max_body),
        max_prompt=max_prompt,
        max_queue=max_queue,
        timeout=timeout,
        grace=grace,
        memory_bytes=None if memory is None else _size("--memory", memory),
        state_bytes=_size("--state-memory", state_memory),
        disk_bytes=_size("--state-disk", state_disk),
        log_prompts=log_prompts,
        sampling=settings.load().sampling,
    )

    def log(line: str) -> None:
        if not quiet:
            ui.note(line)

    with TerminalReporter(quiet) as reporter:
        run(chosen, reporter, log, lambda address: ui.note(f"serving at {address}"))


def _size(option: str, text: str) -> int:
    """A number of bytes, such as 16MB. Raises UsageError."""
    found = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,3})?) ?([kmgt]?)i?b?", text.strip(), re.IGNORECASE)
    if not found:
        raise UsageError(f"{option} is {text[:40]!r}: it must be a size such as 500MB or 2GB")
    return int(float(found[1]) * _UNITS[found[2].lower()])
