"""The five options of the form of an answer, declared once: `with_constraint` gives them to a command."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rwkv_cli.errors import UsageError

if TYPE_CHECKING:
    from rwkv_cli.engine.constraints.grammar import Grammar

    Constraint = Grammar | None
else:
    Constraint = object  # Typer evaluates annotations, and importing the grammars takes a while
"""What the five options choose."""

PANEL = "Form of the answer"


def _option(*names: str, metavar: str, help: str) -> Any:
    return typer.Option(*names, metavar=metavar, help=help, rich_help_panel=PANEL)


def parse(
    *,
    json_schema: Annotated[
        str | None,
        _option(
            "--json-schema",
            metavar="FILE|TEXT",
            help="The answer is JSON that is valid under this JSON Schema.",
        ),
    ] = None,
    json_object: Annotated[
        bool,
        typer.Option("--json-object", help="The answer is a JSON object.", rich_help_panel=PANEL),
    ] = False,
    regex: Annotated[
        str | None,
        _option("--regex", metavar="RE", help="This regular expression matches all of the answer."),
    ] = None,
    grammar: Annotated[
        str | None,
        _option(
            "--grammar",
            metavar="FILE",
            help="The answer follows a grammar, in Lark's or llama.cpp's notation.",
        ),
    ] = None,
    choice: Annotated[
        list[str] | None,
        _option(
            "--choice", metavar="TEXT", help="The answer is this text, or another one given so; repeatable."
        ),
    ] = None,
) -> Constraint:
    """The grammar that was chosen, if one was. Raises UsageError for an invalid one, before a large model is loaded."""
    if not (json_object or choice or any(each is not None for each in (json_schema, regex, grammar))):
        return None
    from rwkv_cli.cli.prompt import checked_text
    from rwkv_cli.engine.constraints.requests import grammar_of

    return grammar_of(
        {
            "json_schema": None if json_schema is None else schema_text(json_schema),
            "json_object": json_object,
            "regex": None if regex is None else checked_text(regex, "regular expression"),
            "grammar": None if grammar is None else file_text(grammar, "grammar"),
            "choice": [checked_text(each, "choice") for each in choice] if choice else None,
        }
    )


def schema_text(file_or_text: str) -> str:
    """A JSON Schema: of a file, or what is given itself if it begins like one. Raises UsageError."""
    from rwkv_cli.cli.prompt import checked_text

    if file_or_text.lstrip().startswith("{") or file_or_text.strip() in ("true", "false"):
        return checked_text(file_or_text, "JSON Schema")
    return file_text(file_or_text, "JSON Schema")


def file_text(path: str, what: str) -> str:
    """The text of a file. Raises UsageError where there is none, or it is too large or not UTF-8."""
    from rwkv_cli import paths
    from rwkv_cli.cli.prompt import read_limited
    from rwkv_cli.engine.constraints.grammar import MOST_CHARACTERS
    from rwkv_cli.text.prompt_bytes import decoded

    try:
        data = read_limited(paths.user_path(path), 4 * MOST_CHARACTERS)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UsageError(f"cannot read the {what} {path}: {reason}") from None
    if data is None:
        raise UsageError(f"the {what} {path} is too large")
    return decoded(data, what)


_OPTIONS = inspect.signature(parse, eval_str=True).parameters


def with_constraint(command: Callable[..., None]) -> Callable[..., None]:
    """A decorator: in place of its parameter `constraint`, a command has the five options, parsed.

    Another command may call it with `constraint` itself, or without.
    """
    own = inspect.signature(command, eval_str=True)

    @functools.wraps(command)
    def wrapper(*values: Any, **arguments: Any) -> None:
        options = {name: arguments.pop(name) for name in _OPTIONS if name in arguments}
        if options:
            arguments["constraint"] = parse(**options)
        command(*values, **arguments)

    parameters: list[inspect.Parameter] = []
    for name, parameter in own.parameters.items():
        parameters += _OPTIONS.values() if name == "constraint" else [parameter]
    wrapper.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {each.name: each.annotation for each in parameters}
    return wrapper
