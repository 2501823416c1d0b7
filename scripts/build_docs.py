#!/usr/bin/env python3
"""Write docs/cli.md: the help page of every command, in the groups of `rwkv --help`.

    python scripts/build_docs.py

A test checks that the page is current.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import typer

from rwkv_cli.cli import help_pages
from rwkv_cli.cli.help_pages import Command, Group
from rwkv_cli.cli.main import app

PAGE = Path(__file__).parent.parent / "docs" / "cli.md"

OPENING = """\
# The command line

The help page of every command, as `rwkv COMMAND --help` prints it; written by `scripts/build_docs.py`.

`-t` is the temperature and `-f` a file with the prompt, wherever they occur; other options of these letters are written
out.

## Pipes and JSON

Text and results go to standard output, everything else to standard error. The exit code is 0 for success, 1 for a
failure, 2 for invalid options or arguments, 130 after Ctrl-C, and 128 plus its number after another signal; a failure
is one sentence on standard error. A closed pipe, as in `rwkv generate ... | head`, is not an error.

What is piped, or in `--prompt-file`, comes before the prompt on the command line, with a blank line between them:

```sh
git log -5 | rwkv generate "What was done?"
rwkv generate -f chapter.txt "Then he opened the door."
```

So standard input is read although there is a prompt, unless it is a terminal or `/dev/null`. In a loop over the lines
of a file, `while read line; do rwkv generate "$line" < /dev/null; done`, the redirection leaves those lines to the
loop.

`--json` prints one indented object or list. `rwkv generate --json` prints a line for every token, `{"token", "text",
"logprob"}`; the token is null where text was held back. The last line has `finish`, the whole `text`, `usage`,
`timings`, `seed` and `model`; with `--echo` also the `prompt`. What the model thinks is apart, in `thought`.

With `--json`, a failure is also an object on standard output, the last one there, with the exit code:

```json
{"error": {"message": "--top-p is 2: it must be between 0 and 1", "code": 2}}
```

## Environment variables

| variable | meaning |
|---|---|
| `RWKV_MODEL`, `RWKV_DEVICE`, `RWKV_THREADS`, ... | one for every [setting](settings.md), before config.toml |
| `RWKV_CACHE_DIR` | folder of compiled kernels, quantized checkpoints and the prompt cache |
| `RWKV_CACHE_SIZE` | size limit of the prompt cache, such as `2GB` (default: 512 MB); `0` turns it off |
| `RWKV_API_KEY` | a key that clients of `rwkv serve` need |
| `RWKV_DATA_DIR` | folder of pulled models and saved states |
| `RWKV_CONFIG_DIR` | folder of your own settings, config.toml, and models, models.toml |
| `HF_HOME`, `HF_ENDPOINT`, `HF_TOKEN`, `HF_HUB_OFFLINE` | the hub's cache, address and token; 1 for no network |
| `HTTPS_PROXY`, `NO_PROXY` | the proxy for downloads, and hosts that need none |
| `RWKV_CPU_KERNEL` | the CPU instruction set to use; `rwkv info` lists those of this machine |
| `RWKV_DEBUG` | 1 prints the traceback of an unexpected error |
| `NO_COLOR` | no colours and no bold text |
"""


class Section(NamedTuple):
    """A command with its names, the group that it is listed in, and the context of its help page."""

    names: tuple[str, ...]
    group: str
    command: Command | Group
    context: Any  # click's, whose class Typer keeps private

    @property
    def heading(self) -> str:
        """Its title, which links to it repeat."""
        return " ".join(("rwkv", *self.names))

    def __str__(self) -> str:
        text = help_pages.page(self.command, self.context, help_pages.MAX_WIDTH)
        return f"### {self.heading}\n\n```text\n{text}\n```\n"


def sections(root: Group) -> Iterator[Section]:
    """All commands, in the order of `rwkv --help`, each followed by its subcommands."""
    context = root.make_context("rwkv", [], resilient_parsing=True)
    yield Section((), "The program", root, context)
    by_group: dict[str, list[str]] = {}
    for name, command in _subcommands(root).items():
        by_group.setdefault(command.rich_help_panel or "", []).append(name)
    for group, names in by_group.items():
        for name in names:
            yield from _with_subcommands((name,), group, _subcommands(root)[name], context)


def _with_subcommands(
    names: tuple[str, ...], group: str, command: Command | Group, parent: Any
) -> Iterator[Section]:
    context = command.make_context(names[-1], [], parent=parent, resilient_parsing=True)
    yield Section(names, group, command, context)
    if isinstance(command, Group):
        for name, inner in _subcommands(command).items():
            yield from _with_subcommands((*names, name), group, inner, context)


def _subcommands(group: Group) -> dict[str, Command | Group]:
    """By name; all commands of the program have the classes of `help_pages`."""
    return cast("dict[str, Command | Group]", group.commands)


def page() -> str:
    """The whole page."""
    root = typer.main.get_command(app)
    assert isinstance(root, Group)
    found = list(sections(root))
    groups = dict.fromkeys(each.group for each in found)
    parts, index = [], []
    for group in groups:
        inside = [each for each in found if each.group == group]
        links = [f"[{each.heading}](#{each.heading.replace(' ', '-')})" for each in inside]
        index.append(f"- {group}: {', '.join(links)}")
        parts += [f"## {group}\n", *map(str, inside)]
    return "\n".join([OPENING, *index, "", *parts]).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
