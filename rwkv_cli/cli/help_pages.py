"""Help pages: options in panels by topic, commands in groups, and examples, in at most 80 columns.

Typer has panels only in pages that `rich` draws, and importing `rich` takes as long as everything else that
`rwkv --help` does. So its commands get pages of their own here, from what they already say: the docstring, which may
end in a section "Examples:", and `rich_help_panel` of options and commands.
"""

from __future__ import annotations

import inspect
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from rwkv_cli.cli import defaults
from rwkv_cli.cli.terminal import ui

MAX_WIDTH = 80

_MIN_WIDTH = 40
_INDENT = "  "
_EXAMPLES = "\nExamples:\n"

Row = tuple[str, str]
"""What is explained, and its explanation."""


_FORMER = {"-f": "--force", "-t": "--type"}
"""Short options that scripts may still have: now `-f` is a file everywhere, and `-t` the temperature."""


class Command(TyperCommand):
    """A command with such a page, whose options have the user's settings for defaults."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Read the arguments."""
        if not extra.get("resilient_parsing"):  # which completes a line, or makes a page
            extra["default_map"] = defaults.Defaults()
        return super().make_context(info_name, args, parent, **extra)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the arguments; short options of earlier versions still work where they have no other meaning."""
        known = {name for parameter in self.params for name in parameter.opts}
        former = {short: long for short, long in _FORMER.items() if long in known and short not in known}
        n = args.index("--") if "--" in args else len(args)
        return super().parse_args(ctx, [*(former.get(each, each) for each in args[:n]), *args[n:]])

    def invoke(self, ctx: Any) -> Any:
        """Run the command, in the user's theme."""
        ui.use_theme(defaults.theme())
        if ui.is_verbose() or ctx.params.get("verbose"):
            ui.be_verbose(True)
            ui.detail(defaults.in_force())
        return super().invoke(ctx)

    def get_help(self, ctx: Any) -> str:
        """The help page."""
        return page(self, ctx)

    def get_short_help_str(self, limit: int = 45) -> str:  # noqa: ARG002  # nothing is cut off
        """The first line of the docstring, for a list of commands."""
        return _summary(self)


class Group(TyperGroup):
    """A command that consists of commands; alone, it shows its page."""

    def get_help(self, ctx: Any) -> str:
        """The help page."""
        return page(self, ctx)

    def get_short_help_str(self, limit: int = 45) -> str:  # noqa: ARG002
        """The first line of the docstring, for a list of commands."""
        return _summary(self)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the arguments; none at all ask for help."""
        if not args and not self.invoke_without_command and not ctx.resilient_parsing:
            args = ["--help"]
        return super().parse_args(ctx, args)


def page(command: Command | Group, context: Any, width: int | None = None) -> str:
    """The help page of a command, `width` columns wide; by default as wide as the terminal, up to MAX_WIDTH."""
    width = width or max(min(ui.columns_of_terminal(), MAX_WIDTH), _MIN_WIDTH)
    text, examples = _description(command)
    panels = _panels(command, context)
    column = _first_column((row for rows in panels.values() for row in rows), width // 3)
    parts = [_wrapped(text, width), _usage(command, context, width)]
    parts += [f"{_heading(title)}\n{_table(rows, column, width)}" for title, rows in panels.items()]
    if examples:
        parts.append(f"{_heading('Examples')}\n{_indented(examples, width)}")
    if isinstance(command, Group):
        parts.append(_wrapped(f"For the options of a command: {context.command_path} COMMAND --help", width))
    return "\n\n".join(parts)


def examples_of(command: Command | Group) -> list[str]:
    """The command lines of a command's examples."""
    return [line for line in _description(command)[1].splitlines() if not line.startswith("#")]


def long_options(command: Any, short: str) -> str:
    """A hint for an option of one letter that a command does not have: its options that begin with this letter."""
    if len(short) != 2 or not short[1].isalpha():
        return ""
    names = [each for parameter in command.params for each in parameter.opts if each.startswith(f"-{short}")]
    return f"; did you mean {' or '.join(names)}?" if names else ""


def elsewhere(context: Any, name: str) -> str:
    """A hint for a command that a group does not have: the groups in it that do."""
    groups = [each for each in context.command.commands.values() if name in getattr(each, "commands", {})]
    names = [f"`{context.command_path} {group.name} {name}`" for group in groups]
    return f"; did you mean {' or '.join(names)}?" if names else ""


def _description(command: Command | Group) -> tuple[str, str]:
    """The text of a docstring, and its examples: command lines, and above them comments that begin with #."""
    text, _, examples = inspect.cleandoc(command.help or "").partition(_EXAMPLES)
    return text.strip(), textwrap.dedent(examples).strip()


def _summary(command: Any) -> str:
    return inspect.cleandoc(command.short_help or command.help or "").partition("\n\n")[0].replace("\n", " ")


def _usage(command: Command | Group, context: Any, width: int) -> str:
    arguments = [_usage_of(each) for each in command.params if isinstance(each, TyperArgument)]
    if isinstance(command, Group):
        arguments.append("COMMAND ...")
    line = " ".join([context.command_path, "[OPTIONS]", *arguments])
    return textwrap.fill(line, width, initial_indent="Usage: ", subsequent_indent=" " * 7)


def _usage_of(argument: TyperArgument) -> str:
    text = argument.display_name_raw + ("..." if argument.nargs != 1 else "")
    return text if argument.required else f"[{text}]"


# ------------------------------------------------------------------------------------------------------- panels


def _panels(command: Command | Group, context: Any) -> dict[str, list[Row]]:
    """The rows of each panel, in the order in which commands, arguments and options are declared."""
    panels: dict[str, list[Row]] = {}
    if isinstance(command, Group):
        for name, each in command.commands.items():
            if not each.hidden:
                title = getattr(each, "rich_help_panel", None) or "Commands"
                panels.setdefault(title, []).append((name, _summary(each)))
    in_no_panel = []
    for parameter in command.get_params(context):
        if isinstance(parameter, TyperArgument) and not parameter.hidden:
            panels.setdefault("Arguments", []).append((parameter.display_name_raw, _explained(parameter)))
        elif isinstance(parameter, TyperOption) and not parameter.hidden:
            row = _names(parameter), _explained(parameter)
            if parameter.rich_help_panel:
                panels.setdefault(parameter.rich_help_panel, []).append(row)
            else:
                in_no_panel.append(row)  # --help, which is Typer's
    has_options = any(isinstance(each, TyperOption) for each in command.params) and not isinstance(
        command, Group
    )
    title = list(panels)[-1] if has_options else "Options"
    panels.setdefault(title, []).extend(in_no_panel)
    return panels


def _names(option: TyperOption) -> str:
    """The names of an option: "-m, --model PATH|NAME". Of a flag that is on by default, the one that turns it off."""
    names = option.secondary_opts if option.default is True and option.secondary_opts else option.opts
    short = [name for name in names if not name.startswith("--")]
    long = [name for name in names if name.startswith("--")]
    text = f"{', '.join(short) + ', ' if short else '    '}{', '.join(long)}"
    return text if option.is_flag else f"{text} {option.metavar}"


def _explained(parameter: TyperArgument | TyperOption) -> str:
    """The help of a parameter, with its default and its variable."""
    text = parameter.help or ""
    if isinstance(parameter.show_default, str):
        text += f" [default: {parameter.show_default}]"
    elif parameter.show_default and not isinstance(parameter.default, bool | list | None):
        text += f" [default: {parameter.default}]"
    if parameter.envvar and parameter.show_envvar:
        text += f" [env: {parameter.envvar}]"
    return text.strip()


# ------------------------------------------------------------------------------------------------------- layout


def _heading(title: str) -> str:
    return ui.styled(f"{title}:", ui.BOLD, sys.stdout)


def _first_column(rows: Iterable[Row], limit: int) -> int:
    """Columns for what is explained; longer ones get a line of their own."""
    return max((len(name) for name, _ in rows if len(name) <= limit), default=limit)


def _table(rows: Sequence[Row], column: int, width: int) -> str:
    indent = " " * (len(_INDENT) + column + 2)
    lines = []
    for name, text in rows:
        first, *others = _fill(text, width - len(indent)) or [""]
        if len(name) > column:
            lines += [f"{_INDENT}{name}", f"{indent}{first}"]
        else:
            lines.append(f"{_INDENT}{name:{column}}  {first}")
        lines += [f"{indent}{line}" for line in others]
    return "\n".join(line.rstrip() for line in lines)


def _indented(examples: str, width: int) -> str:
    """Examples, in which comments are wrapped; commands are not, so that they can be copied."""
    lines: list[str] = []
    for line in examples.splitlines():
        is_comment = line.startswith("#")
        parts = _fill(line.removeprefix("# "), width - len(_INDENT) - 2) if is_comment else [line]
        lines += [f"{_INDENT}# {part}" if is_comment else f"{_INDENT}{part}" for part in parts]
    return "\n".join(lines)


def _wrapped(text: str, width: int) -> str:
    return "\n\n".join("\n".join(_fill(paragraph, width)) for paragraph in text.split("\n\n"))


def _fill(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
