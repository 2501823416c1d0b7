#!/usr/bin/env python3
"""Write docs/cli.md: what every command says to --help.

    python scripts/build_docs.py

A test checks that the page is current.
"""

import os
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "cli.md"

OPENING = """\
# The command line

What `rwkv` and its commands say to `--help`; written by `scripts/build_docs.py`.

Text and results go to standard output, everything else to standard error. The exit code is 0 for success, 1 for a
failure, 2 for an option or argument that cannot be right, and 130 after Ctrl-C; a failure is one sentence on standard
error. A reader that goes away, as in `rwkv generate ... | head`, is no failure.

| variable | meaning |
|---|---|
| `RWKV_MODEL` | the model that is used without `--model` |
| `RWKV_CACHE_DIR` | where compiled kernels, quantized checkpoints and long prompts are kept |
| `RWKV_CACHE_SIZE` | the most that long prompts may take there, such as `2GB`; 512 MB without it, `0` keeps none |
| `RWKV_DATA_DIR` | where models that were pulled and saved states are kept |
| `RWKV_CONFIG_DIR` | where your own models.toml is read from |
| `HF_HOME`, `HF_ENDPOINT`, `HF_TOKEN`, `HF_HUB_OFFLINE` | cache, address and token of the hub, and 1 for no network |
| `HTTPS_PROXY`, `NO_PROXY` | the proxy for downloads, and what needs none |
| `RWKV_CPU_KERNEL` | the CPU instruction to use; `rwkv info` lists those that this machine has |
| `RWKV_DEBUG` | 1 shows the traceback of an error that should not happen |
| `NO_COLOR` | no colours and no bold text |
"""


def help_of(*command: str) -> str:
    """The help page of a command, 80 columns wide."""
    environment = os.environ | {"COLUMNS": "80", "NO_COLOR": "1"}
    arguments = [sys.executable, "-m", "rwkv_cli", *command, "--help"]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True)
    return "\n".join(line.rstrip() for line in done.stdout.strip().splitlines())


def commands() -> list[tuple[str, ...]]:
    """The names of all commands, and of those inside others."""
    import typer

    from rwkv_cli.cli.main import app

    found: list[tuple[str, ...]] = []
    for name, command in typer.main.get_command(app).commands.items():
        found.append((name,))
        found += [(name, inner) for inner in getattr(command, "commands", ())]
    return found


def page() -> str:
    """The whole page."""
    sections = [f"## rwkv\n\n```text\n{help_of()}\n```"]
    sections += [f"## rwkv {' '.join(names)}\n\n```text\n{help_of(*names)}\n```" for names in commands()]
    return "\n".join([OPENING, *(section + "\n" for section in sections)]).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
