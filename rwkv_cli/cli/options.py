"""The options of the commands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from rwkv_cli.cli import completion
from rwkv_cli.errors import UsageError
from rwkv_cli.sampling_settings import SamplingOverrides

Prompt = Annotated[str | None, typer.Option("--prompt", "-p", metavar="TEXT", help="The text to go on from.")]
PromptFile = Annotated[
    str | None,
    typer.Option("--prompt-file", "-f", metavar="FILE", help="Read it from a file; - is standard input."),
]
Batch = Annotated[
    str | None,
    typer.Option(
        "--batch",
        metavar="FILE",
        help="Answer many prompts: one a line, or a JSON object a line in a .jsonl file; - is standard input.",
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        min=1,
        metavar="N",
        help="Answer so many of them at once, on a GPU.",
        show_default="64",
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        envvar="RWKV_MODEL",
        metavar="PATH|NAME",
        help="A model file, a published checkpoint (.pth, .gguf, Hugging Face folder) or a name.",
        show_default="the one that comes with rwkv",
        autocompletion=completion.models,
    ),
]
Device = Annotated[
    str,
    typer.Option(
        "--device", "-d", metavar="NAME", help="Where to compute: auto, cuda, cpu, or reference (slow)."
    ),
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", metavar="N", help="Threads of the CPU to use.", show_default="one a core"),
]
MaxTokens = Annotated[
    int,
    typer.Option(
        "--max-tokens", "-n", min=-1, metavar="N", help="Stop after this many tokens; -1: no limit."
    ),
]
Stop = Annotated[
    list[str] | None,
    typer.Option("--stop", metavar="TEXT", help=r"Stop before this text, such as '\n'; repeatable."),
]
Template = Annotated[
    str | None,
    typer.Option(
        "--template",
        metavar="NAME|FILE",
        help="The prompt format: raw, story, dialogue, world, g1, qa, instruct, or a file of your own, in TOML.",
        show_default="the model's own",
    ),
]
ChatTemplate = Annotated[
    str | None,
    typer.Option(
        "--template",
        metavar="NAME|FILE",
        help="The form of the conversation: dialogue, world, g1, qa, ..., or a file of your own, in TOML.",
        show_default="the model's own",
    ),
]
Raw = Annotated[bool, typer.Option("--raw", help="Take the prompt as it is: --template raw.")]
System = Annotated[
    str | None, typer.Option("--system", metavar="TEXT", help="A system text, if the format has one.")
]
Name = Annotated[
    str | None,
    typer.Option(
        "--name",
        metavar="NAME",
        help="Save the conversation under this name, or go on with it.",
        autocompletion=completion.states,
    ),
]
Think = Annotated[
    str | None,
    typer.Option(
        "--think", metavar="MODE", help="How long to think, for models that do: off, fast, on or long."
    ),
]
ChatMaxTokens = Annotated[
    int | None,
    typer.Option(
        "--max-tokens",
        "-n",
        min=-1,
        metavar="N",
        help="End an answer after this many tokens; -1: no limit.",
        show_default="4096",
    ),
]
ShowThinking = Annotated[
    bool, typer.Option("--show-thinking/--hide-thinking", help="Show thoughts, or only how long they are.")
]
Markdown = Annotated[
    bool,
    typer.Option("--markdown/--no-markdown", help="Show bold, lists and the like, or the text as it is."),
]
Vi = Annotated[bool, typer.Option("--vi", help="Edit with the keys of vi.")]
State = Annotated[
    str | None,
    typer.Option(
        "--state",
        metavar="NAME|FILE",
        help="Go on from a saved state; see rwkv state.",
        autocompletion=completion.states,
    ),
]
SaveState = Annotated[
    str | None,
    typer.Option("--save-state", metavar="NAME|FILE", help="Save the state after the generated text."),
]
NoText = Annotated[bool, typer.Option("--no-text", help="Do not keep the text in the saved state.")]
Compact = Annotated[
    bool, typer.Option("--compact", help="Save in half the size, rounded: see docs/state-file.md.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace a state that exists.")]
NoCache = Annotated[
    bool, typer.Option("--no-cache", help="Read a long prompt anew, and do not keep what was read.")
]
Json = Annotated[bool, typer.Option("--json", help="Write a JSON object a token, and one at the end.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show nothing but the result, and errors.")]

Temperature = Annotated[
    float | None,
    typer.Option(
        "--temperature",
        "-t",
        metavar="X",
        help="Higher is more surprising; 0 always takes the likeliest token.",
    ),
]
TopP = Annotated[
    float | None,
    typer.Option("--top-p", metavar="X", help="Keep the likeliest tokens up to this probability in all."),
]
TopK = Annotated[
    int | None, typer.Option("--top-k", metavar="N", help="Keep this many of the likeliest tokens; 0: all.")
]
MinP = Annotated[
    float | None,
    typer.Option("--min-p", metavar="X", help="Keep tokens with this part of the highest probability."),
]
PresencePenalty = Annotated[
    float | None,
    typer.Option("--presence-penalty", metavar="X", help="Taken from the logit of each token seen."),
]
FrequencyPenalty = Annotated[
    float | None,
    typer.Option("--frequency-penalty", metavar="X", help="Taken from it again for each time it was seen."),
]
PenaltyDecay = Annotated[
    float | None,
    typer.Option("--penalty-decay", metavar="X", help="Each token, counts shrink by this factor (0.996)."),
]
Seed = Annotated[
    int | None,
    typer.Option("--seed", metavar="N", help="Same seed, same text; otherwise a new one each time."),
]
LogitBias = Annotated[
    list[str] | None,
    typer.Option("--logit-bias", metavar="ID=VALUE", help="Add VALUE to the logit of token ID; repeatable."),
]
Ban = Annotated[
    list[int] | None, typer.Option("--ban", metavar="ID", help="A token never to choose; repeatable.")
]


def refuse_with(option: str, others: Mapping[str, Any]) -> None:
    """Raise UsageError for any of the others that was given, if it is not None: it makes no sense with this option."""
    for other, value in others.items():
        if value is not None:
            raise UsageError(f"give either {option} or {other}, not both")


def sampling(logit_bias: Sequence[str] | None, ban: Sequence[int] | None, **given: Any) -> SamplingOverrides:
    """The fields of `SamplingSettings` that were chosen; what is None was not.

    Raises UsageError for what cannot be right: that should not be said only after a large model was loaded.
    """
    from rwkv_cli.sampling_settings import SamplingSettings

    banned = frozenset(ban) if ban else None
    fields = {**given, "logit_bias": _parse_logit_bias(logit_bias), "banned": banned}
    chosen = {name: value for name, value in fields.items() if value is not None}
    SamplingSettings(**chosen)
    return SamplingOverrides(**chosen)  # type: ignore[typeddict-item]


def _parse_logit_bias(pairs: Sequence[str] | None) -> dict[int, float] | None:
    """The values of --logit-bias, by token; None for none. Raises UsageError for one that is no ID=VALUE."""
    biases = {}
    for pair in pairs or ():
        token, _, value = pair.partition("=")
        try:
            biases[int(token)] = float(value)
        except ValueError:
            raise UsageError(f"--logit-bias is {pair!r}: it must be ID=VALUE, such as 42=-1.5") from None
    return biases or None
