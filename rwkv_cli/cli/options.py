"""The options of the commands, each declared once, in the panels and the order of every help page.

The options of sampling are in `sampling_options`. The names by which errors call the options are here too: an error
names a field, and `as_flag` or `as_setting` spells it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rwkv_cli.cli import completion
from rwkv_cli.errors import UsageError
from rwkv_cli.sampling_settings import MAX_ANSWER_TOKENS, MAX_TOKENS, NUMERIC_FIELDS

if TYPE_CHECKING:
    from rwkv_cli.text.template import Template as PromptFormat

INPUT, CONVERSATION, MODEL, STATE, OUTPUT = "Input", "Conversation", "Model", "State", "Output"
CHECK = "Check"
SAMPLING = "Sampling (the defaults are the model's own: see rwkv info)"

# ----------------------------------------------------------------------------------------------- input, conversation

Prompt = Annotated[
    str | None, typer.Option("--prompt", "-p", metavar="TEXT", help="The prompt.", rich_help_panel=INPUT)
]
Text = Annotated[
    str | None,
    typer.Option("--prompt", "-p", metavar="TEXT", help="The text to read.", rich_help_panel=INPUT),
]
PromptFile = Annotated[
    str | None,
    typer.Option(
        "--prompt-file",
        "-f",
        metavar="FILE",
        help="Read it from a file, before what --prompt says; - is standard input.",
        rich_help_panel=INPUT,
    ),
]
PromptWords = Annotated[
    list[str] | None, typer.Argument(metavar="PROMPT", help="The prompt; the same as --prompt.")
]
ModelName = Annotated[
    str | None,
    typer.Argument(metavar="MODEL", help="The model; the same as --model.", autocompletion=completion.models),
]
Batch = Annotated[
    str | None,
    typer.Option(
        "--batch",
        metavar="FILE",
        help="Answer many prompts: one per line, or one JSON object per line in a .jsonl file; - is standard input.",
        rich_help_panel=INPUT,
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        min=1,
        metavar="N",
        help="How many prompts to answer at once.",
        show_default="32; on a GPU 64",
        rich_help_panel=INPUT,
    ),
]


def _template(default: str, panel: str) -> Any:
    return typer.Option(
        "--template",
        metavar="NAME|FILE",
        help="Prompt format: raw, story, dialogue, world, g1, g1h, qa, instruct or a file of your own "
        "(.toml, .jinja).",
        show_default=default,
        autocompletion=completion.templates,
        rich_help_panel=panel,
    )


Template = Annotated[str | None, _template("the model's own", INPUT)]
ChatTemplate = Annotated[str | None, _template("the model's own", CONVERSATION)]
DocumentTemplate = Annotated[str | None, _template("none: a document", INPUT)]
ModelTemplate = Annotated[str | None, _template("of its files, or guessed from its name", MODEL)]
Raw = Annotated[
    bool,
    typer.Option("--raw", help="Use the prompt unchanged (same as --template raw).", rich_help_panel=INPUT),
]


def _system(panel: str) -> Any:
    return typer.Option(
        "--system",
        metavar="TEXT",
        help="System prompt, if the template supports one.",
        rich_help_panel=panel,
    )


System = Annotated[str | None, _system(INPUT)]
ChatSystem = Annotated[str | None, _system(CONVERSATION)]
Name = Annotated[
    str | None,
    typer.Option(
        "--name",
        metavar="NAME",
        help="Save the conversation under this name, or resume it.",
        autocompletion=completion.states,
        rich_help_panel=CONVERSATION,
    ),
]
Continue = Annotated[
    bool,
    typer.Option(
        "--continue", "-c", help="Continue the last chat that has no name.", rich_help_panel=CONVERSATION
    ),
]
NoHistory = Annotated[
    bool,
    typer.Option(
        "--no-history",
        help="Keep neither this chat, if it has no name, nor the lines that are typed.",
        rich_help_panel=CONVERSATION,
    ),
]


def _think(panel: str) -> Any:
    return typer.Option(
        "--think",
        metavar="MODE",
        help="Whether a model that reasons thinks first: off or on; some know short and long too.",
        show_default="the template's own",
        autocompletion=completion.modes,
        rich_help_panel=panel,
    )


Think = Annotated[str | None, _think(INPUT)]
ChatThink = Annotated[str | None, _think(CONVERSATION)]
Vi = Annotated[
    bool, typer.Option("--vi/--emacs", help="Edit messages with vi keys.", rich_help_panel=CONVERSATION)
]

# ------------------------------------------------------------------------------------------------------------- model

Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        envvar="RWKV_MODEL",
        metavar="PATH|NAME",
        help="A model file, a checkpoint (.pth, .gguf, .st, Hugging Face folder) or a name.",
        show_default="the built-in gosling",
        autocompletion=completion.models,
        rich_help_panel=MODEL,
    ),
]
Source = Annotated[
    str,
    typer.Argument(
        metavar="SRC",
        help="A model file, a checkpoint (.pth, .gguf, .st, Hugging Face folder) or a name.",
        autocompletion=completion.models,
    ),
]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        "-d",
        envvar="RWKV_DEVICE",
        metavar="NAME",
        help="Where to compute: auto, cuda, cpu or reference (slow).",
        autocompletion=completion.devices,
        rich_help_panel=MODEL,
    ),
]
Devices = Annotated[
    str,
    typer.Option(
        "--device",
        "-d",
        envvar="RWKV_DEVICE",
        metavar="NAMES",
        help="Where to compute: auto, cuda, cpu or reference (slow); cuda:0,cuda:1 or all uses several GPUs.",
        autocompletion=completion.devices,
        rich_help_panel=MODEL,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        envvar="RWKV_THREADS",
        metavar="N",
        help="CPU threads.",
        show_default="one per core",
        rich_help_panel=MODEL,
    ),
]
Draft = Annotated[
    str | None,
    typer.Option(
        "--draft",
        metavar="MODEL|lookup|self",
        help="What proposes tokens, to be faster; the text stays the same.",
        autocompletion=completion.drafts,
        rich_help_panel=MODEL,
    ),
]
WeightType = Annotated[
    Literal["int8", "int4", "fp16", "fp32"],
    typer.Option(
        "--type",
        metavar="TYPE",
        help="How weights are stored: int8, int4, fp16 or fp32.",
        rich_help_panel=MODEL,
    ),
]
ExportType = Annotated[
    Literal["bf16", "fp16", "fp32", "q8_0"] | None,
    typer.Option(
        "--type",
        metavar="TYPE",
        help="How weights are stored: bf16, fp16, fp32 or q8_0.",
        show_default="bf16; fp16 for st and gguf",
        rich_help_panel=MODEL,
    ),
]

Questions = Annotated[
    Path | None,
    typer.Option(
        "--questions",
        metavar="FILE",
        help="Count exact answers: JSON lines with task, prompt and answer.",
        rich_help_panel=CHECK,
    ),
]

# ------------------------------------------------------------------------------------------------------------- state

State = Annotated[
    str | None,
    typer.Option(
        "--state",
        metavar="NAME|FILE",
        help="Continue from a saved state; see rwkv state.",
        autocompletion=completion.states,
        rich_help_panel=STATE,
    ),
]
SaveState = Annotated[
    str | None,
    typer.Option(
        "--save-state",
        metavar="NAME|FILE",
        help="Save the state after the generated text.",
        rich_help_panel=STATE,
    ),
]
NoText = Annotated[
    bool,
    typer.Option("--no-text", help="Do not keep the text in the saved state.", rich_help_panel=STATE),
]
Compact = Annotated[
    bool,
    typer.Option(
        "--compact", help="Save the state at half the size, rounded to float16.", rich_help_panel=STATE
    ),
]
NoCache = Annotated[
    bool, typer.Option("--no-cache", help="Do not use the prompt cache.", rich_help_panel=STATE)
]

# ------------------------------------------------------------------------------------------------------------ output


def _max_tokens(default: int) -> Any:
    return typer.Option(
        "--max-tokens",
        "-n",
        min=-1,
        metavar="N",
        help="Stop after this many tokens; -1: no limit.",
        show_default=str(default),
        rich_help_panel=OUTPUT,
    )


MaxTokens = Annotated[int | None, _max_tokens(MAX_TOKENS)]
ChatMaxTokens = Annotated[int | None, _max_tokens(MAX_ANSWER_TOKENS)]
Echo = Annotated[
    bool,
    typer.Option("--echo", help="Print the prompt too, before the text.", rich_help_panel=OUTPUT),
]
Stop = Annotated[
    list[str] | None,
    typer.Option(
        "--stop",
        metavar="TEXT",
        help=r"Stop before this text, such as '\n'; repeatable.",
        rich_help_panel=OUTPUT,
    ),
]
ShowThinking = Annotated[
    bool,
    typer.Option(
        "--show-thinking/--hide-thinking", help="Show only how long the model thinks.", rich_help_panel=OUTPUT
    ),
]
Markdown = Annotated[
    bool,
    typer.Option(
        "--markdown/--no-markdown",
        help="Show Markdown as plain text, without styles.",
        rich_help_panel=OUTPUT,
    ),
]


Unordered = Annotated[
    bool,
    typer.Option(
        "--unordered",
        help="With --batch: write each result as soon as it is complete.",
        rich_help_panel=OUTPUT,
    ),
]
ResumeBatch = Annotated[
    str | None,
    typer.Option(
        "--resume",
        metavar="OUT",
        help="With --batch: write the results to this file, and leave out those that it has already.",
        rich_help_panel=OUTPUT,
    ),
]
Force = Annotated[
    bool, typer.Option("--force", help="Replace an existing file or state.", rich_help_panel=OUTPUT)
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.", rich_help_panel=OUTPUT)]
Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", help="Print only the result and errors.", rich_help_panel=OUTPUT),
]

Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose", help="Say what is used, and how fast it is, on standard error.", rich_help_panel=OUTPUT
    ),
]


def with_verbose(command: Callable[..., None]) -> Callable[..., None]:
    """A decorator: a command has --verbose, as its last option."""
    own = inspect.signature(command, eval_str=True)

    @functools.wraps(command)
    def wrapper(*values: Any, verbose: bool = False, **arguments: Any) -> None:  # noqa: ARG001  # see help_pages
        command(*values, **arguments)

    last = inspect.Parameter("verbose", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Verbose)
    wrapper.__signature__ = own.replace(parameters=[*own.parameters.values(), last])  # type: ignore[attr-defined]
    wrapper.__annotations__ = {name: each.annotation for name, each in own.parameters.items()}
    wrapper.__annotations__["verbose"] = Verbose
    return wrapper


# ----------------------------------------------------------------------------------- options in errors, and together

_FLAGS: Mapping[str, str] = {"banned": "--ban", "weight_type": "--type", "keep_text": "--text"}
"""Fields whose option is not called like them."""

FORMS = ("json_schema", "json_object", "regex", "grammar", "choice")
"""Fields that say what an answer has to look like."""

_CHAT_SETTINGS = frozenset(
    {*NUMERIC_FIELDS, "seed", "max_tokens", "think", "show_thinking", "markdown", *FORMS}
)


def as_flag(field: str, value: str | None = None) -> str:
    """A field of an error as an option: `--device cpu`, and for {keep_text=false} `--no-text`."""
    flag = _FLAGS.get(field) or f"--{field.replace('_', '-')}"
    if value == "false":
        return flag.replace("--", "--no-", 1)
    return flag if value in (None, "true") else f"{flag} {value}"


def as_setting(field: str, value: str | None = None) -> str:
    """A field of an error in a chat: `top-p` or `/set top-p 0.5`; what /set does not know is an option."""
    if field not in _CHAT_SETTINGS:
        return as_flag(field, value)
    name = field.replace("_", "-")
    return name if value is None else f"/set {name} {value}"


def refuse_with(option: str, others: Mapping[str, object]) -> None:
    """Raise UsageError if any of the others was given, that is, is not None: they cannot be combined with `option`."""
    for other, value in others.items():
        if value is not None:
            raise UsageError(f"give either {option} or {other}, not both")


def refuse_without(option: str, others: Mapping[str, object]) -> None:
    """Raise UsageError if any of the others was given, that is, is not None: they mean nothing without `option`."""
    for other, value in others.items():
        if value is not None:
            raise UsageError(f"{other} needs {option}")


def model_of(argument: str | None, option: str | None) -> str | None:
    """The model of the argument MODEL, or of --model. Raises UsageError if both were given."""
    if argument is None:
        return option
    from rwkv_cli import settings

    if option not in (None, settings.load().model):
        raise UsageError("give either MODEL or --model, not both")
    return argument


def limit_of(max_tokens: int | None, default: int = MAX_TOKENS) -> int:
    """The most tokens of a text: those of the option, of the user's settings, or the default."""
    from rwkv_cli import settings

    return next(each for each in (max_tokens, settings.load().max_tokens, default) if each is not None)


def parse_template(name_or_file: str | None) -> PromptFormat | None:
    """The value of --template; None if it was not given. Raises UsageError for an unknown or malformed template."""
    if name_or_file is None:
        return None
    from rwkv_cli.text.templates import open_template

    return open_template(name_or_file)


def parse_system(text: str | None) -> str | None:
    """The value of --system; None if it was not given. Raises UsageError unless it is UTF-8."""
    from rwkv_cli.cli.prompt import checked_text

    return None if text is None else checked_text(text, "system prompt")
