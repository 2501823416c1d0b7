"""The options of the commands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from rwkv_cli.cli import complete
from rwkv_cli.errors import UsageError

Prompt = Annotated[str | None, typer.Option("--prompt", "-p", metavar="TEXT", help="The text to go on from.")]
PromptFile = Annotated[
    str | None,
    typer.Option("--prompt-file", "-f", metavar="FILE", help="Read it from a file; - is standard input."),
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
        autocompletion=complete.models,
    ),
]
Device = Annotated[
    str,
    typer.Option("--device", "-d", metavar="NAME", help="Where to compute: auto, cpu, or reference (slow)."),
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
        metavar="NAME",
        help="The prompt format: raw, story, world, g1, qa or instruct.",
        show_default="the model's own",
    ),
]
Raw = Annotated[bool, typer.Option("--raw", help="Take the prompt as it is: --template raw.")]
System = Annotated[
    str | None, typer.Option("--system", metavar="TEXT", help="A system text, if the format has one.")
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


def parse_logit_bias(pairs: Sequence[str] | None) -> dict[int, float] | None:
    """The values of --logit-bias, by token; None for none. Raises UsageError for one that is no ID=VALUE."""
    biases = {}
    for pair in pairs or ():
        token, _, value = pair.partition("=")
        try:
            biases[int(token)] = float(value)
        except ValueError:
            raise UsageError(f"--logit-bias is {pair!r}: it must be ID=VALUE, such as 42=-1.5") from None
    return biases or None
