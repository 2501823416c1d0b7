"""The options of tools, which a model may call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from rwkv_cli.cli.options import CONVERSATION, INPUT
from rwkv_cli.errors import UsageError

if TYPE_CHECKING:
    from rwkv_cli.text.tool_calls.tools import Tool


def _option(panel: str) -> Any:
    return typer.Option(
        "--tools",
        metavar="FILE",
        help="Offer the tools in this JSON file, in the form of OpenAI's API.",
        rich_help_panel=panel,
    )


Tools = Annotated[str | None, _option(INPUT)]
ChatTools = Annotated[str | None, _option(CONVERSATION)]
ToolChoice = Annotated[
    str | None,
    typer.Option(
        "--tool-choice",
        metavar="NAME",
        help="Which tool has to be called: auto, none, required (any), or the name of one.",
        show_default="auto",
        rich_help_panel=INPUT,
    ),
]
Mcp = Annotated[
    list[str] | None,
    typer.Option(
        "--mcp",
        metavar="COMMAND",
        help="Start an MCP server, and let the model call its tools; repeatable.",
        rich_help_panel=CONVERSATION,
    ),
]
Yes = Annotated[
    bool,
    typer.Option(
        "--yes", "-y", help="Call tools of MCP servers without asking.", rich_help_panel=CONVERSATION
    ),
]


def parse(file: str | None, choice: str | None = None) -> tuple[Tool, ...]:
    """The tools in the file of --tools; empty without it. Raises UsageError for what cannot be offered or chosen."""
    if file is None:
        if choice is not None:
            raise UsageError("--tool-choice needs --tools")
        return ()
    from rwkv_cli.cli.constraint_options import file_text
    from rwkv_cli.text.tool_calls import layout, tools

    found = tools.parse_tools(file_text(file, "file of tools"))
    if choice and (chosen := layout.chosen(found, choice)):
        from rwkv_cli.engine.constraints.grammar import Grammar

        Grammar.tool_call(layout.FORMATS["short"], chosen)
    return found
