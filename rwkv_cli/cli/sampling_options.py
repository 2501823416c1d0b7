"""The ten options of sampling, declared once: `with_sampling` gives them to a command."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from rwkv_cli.cli.options import SAMPLING
from rwkv_cli.errors import UsageError
from rwkv_cli.sampling_settings import SamplingOverrides, check_overrides, combined


def _option(*names: str, metavar: str, help: str) -> Any:
    return typer.Option(*names, metavar=metavar, help=help, rich_help_panel=SAMPLING)


def parse(
    *,
    temperature: Annotated[
        float | None,
        _option(
            "--temperature",
            "-t",
            metavar="X",
            help="Higher is more varied; 0 always takes the most likely token.",
        ),
    ] = None,
    top_p: Annotated[
        float | None,
        _option(
            "--top-p",
            metavar="X",
            help="Sample only from the most likely tokens whose probabilities add up to X (nucleus sampling).",
        ),
    ] = None,
    top_k: Annotated[
        int | None,
        _option("--top-k", metavar="N", help="Sample only from the N most likely tokens; 0: from all."),
    ] = None,
    min_p: Annotated[
        float | None,
        _option("--min-p", metavar="X", help="Drop tokens less likely than X times the most likely one."),
    ] = None,
    presence_penalty: Annotated[
        float | None,
        _option(
            "--presence-penalty",
            metavar="X",
            help="Subtracted from the logit of every token already used, once.",
        ),
    ] = None,
    frequency_penalty: Annotated[
        float | None,
        _option(
            "--frequency-penalty",
            metavar="X",
            help="Subtracted from the logit of every token already used, once per use.",
        ),
    ] = None,
    penalty_decay: Annotated[
        float | None,
        _option(
            "--penalty-decay",
            metavar="X",
            help="How fast the penalties fade: multiply counts by X after each token.",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        _option("--seed", metavar="N", help="Same seed, same text; otherwise it differs every time."),
    ] = None,
    logit_bias: Annotated[
        list[str] | None,
        _option("--logit-bias", metavar="ID=X", help="Add X to the logit of token ID; repeatable."),
    ] = None,
    ban: Annotated[
        list[int] | None, _option("--ban", metavar="ID", help="Never choose token ID; repeatable.")
    ] = None,
) -> SamplingOverrides:
    """The settings that were chosen. Raises UsageError for an invalid value, before a large model is loaded."""
    given: SamplingOverrides = {
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "presence_penalty": presence_penalty,
        "frequency_penalty": frequency_penalty,
        "penalty_decay": penalty_decay,
        "seed": seed,
        "logit_bias": _biases(logit_bias or ()),
        "banned": frozenset(ban) if ban else None,
    }
    chosen = combined(given)
    check_overrides(chosen)
    return chosen


def _biases(pairs: Sequence[str]) -> dict[int, float] | None:
    """The values of --logit-bias by token; None without any. Raises UsageError for one that is not ID=X."""
    biases = {}
    for pair in pairs:
        token, _, value = pair.partition("=")
        try:
            biases[int(token)] = float(value)
        except ValueError:
            raise UsageError(f"--logit-bias is {pair!r}: it must be ID=X, such as 42=-1.5") from None
    return biases or None


_OPTIONS = inspect.signature(parse, eval_str=True).parameters


def with_sampling(command: Callable[..., None]) -> Callable[..., None]:
    """A decorator: in place of its parameter `sampling`, a command has the ten options, parsed.

    Another command may call it with `sampling` itself.
    """
    own = inspect.signature(command, eval_str=True)

    @functools.wraps(command)
    def wrapper(*values: Any, **arguments: Any) -> None:
        options = {name: arguments.pop(name) for name in _OPTIONS if name in arguments}
        if options:
            arguments["sampling"] = parse(**options)
        command(*values, **arguments)

    parameters: list[inspect.Parameter] = []
    for name, parameter in own.parameters.items():
        parameters += _OPTIONS.values() if name == "sampling" else [parameter]
    wrapper.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {each.name: each.annotation for each in parameters}
    return wrapper
