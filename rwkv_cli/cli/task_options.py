"""Options of `rwkv eval --tasks`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

PANEL = "Tasks (needs pip install '.[eval]')"

Tasks = Annotated[
    str | None,
    typer.Option(
        "--tasks",
        metavar="NAMES",
        help="Tasks of lm-eval, separated by commas: names, groups, or YAML files.",
        rich_help_panel=PANEL,
    ),
]
TaskFolder = Annotated[
    Path | None,
    typer.Option(
        "--task-folder",
        metavar="FOLDER",
        help="A folder with YAML files of more tasks, which are known by name.",
        rich_help_panel=PANEL,
    ),
]
Shots = Annotated[
    int | None,
    typer.Option(
        "--shots",
        min=0,
        metavar="N",
        help="Examples before each question.",
        show_default="the task's own",
        rich_help_panel=PANEL,
    ),
]
LeadingToken = Annotated[
    bool,
    typer.Option(
        "--leading-token",
        help="Begin every text with the token that ends a document, as in training; lm-eval does not.",
        rich_help_panel=PANEL,
    ),
]
Chat = Annotated[
    bool,
    typer.Option(
        "--chat",
        help="Ask as in a conversation, in the model's own template or in --template.",
        rich_help_panel=PANEL,
    ),
]
Anew = Annotated[
    bool,
    typer.Option(
        "--anew",
        help="Forget the results that are kept: a run that was interrupted does not continue.",
        rich_help_panel=PANEL,
    ),
]
