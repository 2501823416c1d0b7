"""What a client asks for, in no API's own words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

from rwkv_cli.errors import UsageError
from rwkv_cli.sampling_settings import MAX_ANSWER_TOKENS, SamplingOverrides
from rwkv_cli.server.chat.messages import Message
from rwkv_cli.server.chat.tools import Form
from rwkv_cli.server.http import Fields
from rwkv_cli.text.template import Template

MOST_STOPS = 32
MOST_CHOICES = 32
MOST_LIKELY = 20
"""Tokens that can be asked for in place of each one."""

_NUMBERS = ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "penalty_decay")
_EFFORTS = {  # OpenAI's words for how much to think, and the modes that come near
    "none": ("off",),
    "minimal": ("fast", "off"),
    "low": ("short", "on"),
    "medium": ("on",),
    "high": ("long", "on"),
    "xhigh": ("long", "on"),
}


@dataclass(frozen=True)
class Kept:
    """Which states a request begins with and ends in."""

    state: str | None = None  # where it begins
    session: str | None = None  # where it begins, if that exists, and ends
    save_as: str | None = None  # where it ends
    overwrites: bool = False  # whether `save_as` may exist
    chat: str | None = None  # a client's own name for the conversation, whose whole history it sends

    def __post_init__(self) -> None:
        if self.session and (self.state or self.save_as):
            raise UsageError("give either {session}, or {state} and {save_as}")


@dataclass(frozen=True)
class ChatRequest:
    """A conversation to continue."""

    model: str | None
    messages: Sequence[Message]
    think: str | bool | None = None  # a mode of the template, or whether to think at all
    effort: str | None = None  # OpenAI's word for it, which templates without such a mode ignore
    max_tokens: int = MAX_ANSWER_TOKENS
    stop: Sequence[str] = ()
    sampling: SamplingOverrides = field(default_factory=SamplingOverrides)
    logprobs: bool = False  # whether each token is wanted, with its probability
    top: int = 0  # most likely tokens that are wanted with each token
    kept: Kept = field(default_factory=Kept)
    form: Form = field(default_factory=Form)

    def mode(self, template: Template) -> str | None:
        """The mode of thinking. Raises UsageError for one that was named and does not exist."""
        modes = template.thinking
        if isinstance(self.think, str):
            wanted = _EFFORTS.get(self.think, ()) if self.think not in modes else (self.think,)
            return next((mode for mode in wanted if mode in modes), self.think)
        if self.think is not None:
            wanted = ("on",) if self.think else ("off",)
        else:
            wanted = _EFFORTS.get(self.effort or "", ())
        if self.think and not modes:
            raise UsageError(f"{{think}}: the template {template.name} has no thinking modes")
        return next((mode for mode in wanted if mode in modes), None)


def sampling_of(fields: Fields) -> SamplingOverrides:
    """The settings of sampling in a body, by OpenAI's names and ours. Raises UsageError."""
    found: dict[str, object] = {name: fields.number(name) for name in _NUMBERS}
    found["top_k"] = None if (top_k := fields.integer("top_k")) is None else max(top_k, 0)
    if (seed := fields.integer("seed")) is not None:
        found["seed"] = seed % 2**64
    if "logit_bias" in fields:
        found["logit_bias"] = _biases(fields.object("logit_bias").values)
    return cast("SamplingOverrides", {name: value for name, value in found.items() if value is not None})


def _biases(values: Mapping[str, object]) -> dict[int, float]:
    try:
        return {int(token): float(bias) for token, bias in values.items()}  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise UsageError("{logit_bias} must be an object of numbers by token id") from None


def stops_of(fields: Fields, name: str = "stop") -> tuple[str, ...]:
    """The stop strings in a body; empty ones are left out, as clients send them."""
    return tuple(each for each in fields.texts(name, MOST_STOPS) if each)


def limit_of(fields: Fields, *names: str, default: int) -> int:
    """The most tokens of an answer, by the first of some names that is there."""
    for name in names:
        if (limit := fields.integer(name, -1)) is not None:
            return limit
    return default


def count_of(fields: Fields) -> int:
    """How many answers are wanted."""
    n = fields.integer("n", 1, MOST_CHOICES)
    return 1 if n is None else n


def kept_of(fields: Fields, headers: Mapping[str, str]) -> Kept:
    """The states that a body, or the header of Open WebUI, names."""
    return Kept(
        fields.text("state"),
        fields.text("session"),
        fields.text("save_as"),
        fields.flag("overwrite"),
        headers.get("x-openwebui-chat-id"),
    )


def think_of(fields: Fields) -> str | bool | None:
    """Whether to think, as our own field, ollama's and those of vLLM and SGLang say it."""
    think = fields.get("think")
    if think is None:
        think = fields.object("chat_template_kwargs").get("enable_thinking")
    if think is not None and not isinstance(think, str | bool):
        raise UsageError("{think} must be true, false or a mode of the template")
    return think
