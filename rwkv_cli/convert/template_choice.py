"""Which prompt template a checkpoint gets, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from rwkv_cli.errors import UsageError
from rwkv_cli.files.checkpoints import Checkpoint
from rwkv_cli.text import chat_template
from rwkv_cli.text.template import Template
from rwkv_cli.text.templates import find_template, get_template
from rwkv_cli.text.tokenizer import load_tokenizer

# The converter of llama.cpp writes this for every World vocabulary: a name of its own, which says nothing of the model.
_NO_TEMPLATE = "rwkv-world"


class ChosenTemplate(NamedTuple):
    """A prompt template, and what it was chosen by, for people."""

    template: Template
    origin: str


def choose_template(checkpoint: Checkpoint, name: str | None = None) -> ChosenTemplate:
    """The template that the files of a checkpoint bring; without one, or if it cannot be used, that of its name.

    `name` is what its publisher calls it, where the file has another name.
    """
    name = name or checkpoint.name
    chosen = _chosen(checkpoint, name, get_template(find_template(name, checkpoint.config.vocab_size)))
    return chosen._replace(template=_sampled(chosen.template, checkpoint.sampling))


def _chosen(checkpoint: Checkpoint, name: str, guess: Template) -> ChosenTemplate:
    by_name = f"the name {name}" if not guess.is_plain else "no sign of another one"
    brought = checkpoint.chat_template
    if brought is None:
        return ChosenTemplate(guess, by_name)
    if brought.text.strip() == _NO_TEMPLATE:
        return ChosenTemplate(guess if guess.is_chat else get_template("world"), by_name)
    try:
        made = chat_template.from_source(brought.text, _end_of_text(checkpoint), guess)
    except UsageError as error:
        return ChosenTemplate(guess, f"{by_name}, since {error} ({brought.origin})")
    return ChosenTemplate(made, brought.origin)


def _sampled(template: Template, brought: Mapping[str, Mapping[str, float]]) -> Template:
    """A template with the sampling defaults that the files of the model bring."""
    if not brought:
        return template
    if not template.thinking:
        return replace(template, sampling={**template.sampling, **brought.get("on", {})})
    modes = {
        mode: replace(
            thinking, sampling={**thinking.sampling, **brought.get("off" if mode == "off" else "on", {})}
        )
        for mode, thinking in template.thinking.items()
    }
    return replace(template, thinking=modes)


def _end_of_text(checkpoint: Checkpoint) -> str:
    """The text of the token that ends a document; empty where it has none, as in the World vocabulary."""
    if checkpoint.tokenizer is None or checkpoint.tokenizer.kind == "world":
        return ""
    tokenizer = load_tokenizer(checkpoint.tokenizer, checkpoint.config.vocab_size)
    return tokenizer.text_of_end
