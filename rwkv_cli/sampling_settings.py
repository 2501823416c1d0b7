"""How the next token is chosen, as data: what files, commands and programs set, and `engine.sampling` follows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import TypedDict, cast

from rwkv_cli.errors import UsageError
from rwkv_cli.reporting import did_you_mean

MAX_TOKENS = 256
"""Of a text, unless another limit is set."""

MAX_ANSWER_TOKENS = 4096
"""Of an answer in a conversation, unless another limit is set."""


class SamplingOverrides(TypedDict, total=False):
    """Fields of `SamplingSettings` that are chosen; None stands for the model's default, like a missing key."""

    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    penalty_decay: float | None
    logit_bias: Mapping[int, float] | None
    banned: frozenset[int] | None
    seed: int | None


@dataclass(frozen=True)
class SamplingSettings:
    """How to choose; the defaults are those of the published `rwkv` package, without its penalties.

    Raises UsageError for an invalid value.
    """

    temperature: float = 1.0  # above 1 flattens, below 1 sharpens, 0 always takes the most likely token
    top_p: float = 0.85  # keep the most likely tokens whose probabilities add up to this; 1 keeps all
    top_k: int = 0  # keep this many of the most likely tokens; 0 keeps all
    min_p: float = 0.0  # drop tokens less likely than this times the most likely one; 0 keeps all
    presence_penalty: float = 0.0  # subtracted from the logit of every token already used
    frequency_penalty: float = 0.0  # subtracted from it again for each use
    penalty_decay: float = 0.996  # after each token, all counts are multiplied by this
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # added to the logits of these tokens
    banned: frozenset[int] = frozenset()  # tokens that are never chosen
    seed: int | None = None  # same seed, same tokens; None takes one from the operating system

    def __post_init__(self) -> None:
        check_overrides(cast("SamplingOverrides", vars(self)))

    @property
    def greedy(self) -> bool:
        """Whether only the most likely token can be chosen."""
        return self.temperature == 0 or self.top_p == 0 or self.top_k == 1


SAMPLING_FIELDS = tuple(each.name for each in fields(SamplingSettings))
NUMERIC_FIELDS = tuple(name for name in SAMPLING_FIELDS if name not in ("logit_bias", "banned", "seed"))
"""Those that a model or a template may give defaults for."""

_RANGES: Mapping[str, tuple[float, float]] = {
    "temperature": (0, math.inf),
    "top_p": (0, 1),
    "top_k": (0, math.inf),
    "min_p": (0, 1),
    "presence_penalty": (-math.inf, math.inf),
    "frequency_penalty": (-math.inf, math.inf),
    "penalty_decay": (0, 1),
    "seed": (0, math.inf),
}


_BESIDE = ("max_tokens", "template", "system", "think", "stop", "start", "progress")
"""What functions with settings of sampling take as well, in the same way: perhaps one of them was meant."""


def check_names(names: Iterable[str]) -> None:
    """Raise TypeError, with the nearest, for a keyword that is not a field of `SamplingSettings`."""
    for name in names:
        if name not in SAMPLING_FIELDS:
            hint = (
                did_you_mean(name[:80], (*SAMPLING_FIELDS, *_BESIDE))
                or f"; there are {', '.join(SAMPLING_FIELDS)}"
            )
            raise TypeError(f"unknown setting {name[:40]!r}{hint}")


def check_number(name: str, value: float) -> None:
    """Raise UsageError unless `value` is one that a field of `NUMERIC_FIELDS`, or `seed`, can have."""
    _check(f"{{{name}}}", value, *_RANGES[name])
    if name == "top_k" and value != int(value):
        raise UsageError(f"{{top_k}} is {value:g}: it must be a whole number")


def check_overrides(overrides: SamplingOverrides) -> None:
    """Raise UsageError for a value that its field cannot have."""
    numbers = cast("Mapping[str, float | None]", overrides)
    for name in _RANGES:
        if (value := numbers.get(name)) is not None:
            check_number(name, value)
    logit_bias = overrides.get("logit_bias") or {}
    for token, bias in logit_bias.items():
        _check(f"{{logit_bias}} of token {token}", bias)
    for token in {*logit_bias, *(overrides.get("banned") or ())}:
        _check("the id of a biased or banned token", token, 0)


def parse_defaults(values: Mapping[str, object]) -> dict[str, float]:
    """The defaults that a file gives for sampling, as numbers by field. Raises UsageError for anything else."""
    defaults: dict[str, float] = {}
    for name, value in values.items():
        if name not in _RANGES:
            raise UsageError(
                f"{name[:40]!r} is not a sampling setting: there are {', '.join(NUMERIC_FIELDS)}"
            )
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise UsageError(f"{{{name}}} must be a number")
        check_number(name, value)
        defaults[name] = value
    return defaults


def combined(*overrides: SamplingOverrides) -> SamplingOverrides:
    """What is chosen by any of them, where the last one wins; without the fields that are None."""
    merged = {name: value for each in overrides for name, value in each.items()}
    return cast("SamplingOverrides", {name: value for name, value in merged.items() if value is not None})


def _check(name: str, value: float, low: float = -math.inf, high: float = math.inf) -> None:
    """Raise UsageError unless value is finite and between low and high, both included."""
    if isinstance(value, int) and value.bit_length() > 1023:
        raise UsageError(f"{name} is too large")  # for a float, so that even a message could not show it
    if math.isfinite(value) and low <= value <= high:
        return
    if high < math.inf:
        wanted = f"be between {low:g} and {high:g}"
    elif math.isfinite(value):
        wanted = f"be at least {low:g}"
    else:
        wanted = "be a finite number"
    raise UsageError(f"{name} is {value:g}: it must {wanted}")
