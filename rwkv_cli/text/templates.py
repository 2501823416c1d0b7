"""The prompt formats by name: those that come with the program, and the user's own."""

from __future__ import annotations

import difflib
import functools
import re
from pathlib import Path

from rwkv_cli import paths
from rwkv_cli.errors import UsageError
from rwkv_cli.text import chat_template, generations
from rwkv_cli.text.template import Template
from rwkv_cli.text.template_file import as_fields, read_template, read_templates, template_from

# Fewer rows than this cannot hold the World vocabulary, which the chat formats are made for.
_WORLD_VOCAB_SIZE = 65530


@functools.cache
def templates() -> dict[str, Template]:
    """All templates by name: ours, and the user's own over them. Raises UsageError for a file that is wrong."""
    own_file = paths.user_registry_file().with_name("templates.toml")
    return _ours() | (read_templates(own_file, _ours()) if own_file.exists() else {})


@functools.cache
def _ours() -> dict[str, Template]:
    return read_templates(paths.DATA / "templates.toml", {})


def get_template(name: str) -> Template:
    """The template of that name. Raises UsageError with the nearest name and all of them."""
    known = templates()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name.lower(), known, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise UsageError(f"unknown template {name!r}{hint}: choose one of {', '.join(known)}")


def open_template(name_or_file: str) -> Template:
    """The template of that name, or the one in a file: a path, or a name that ends in .toml or .jinja.

    Raises UsageError.
    """
    suffix = Path(name_or_file).suffix.lower()
    if suffix == ".jinja":
        return chat_template.read(paths.user_path(name_or_file))
    if suffix == ".toml" or re.search(r"[/\\]", name_or_file):
        return read_template(paths.user_path(name_or_file), templates())
    return get_template(name_or_file)


def for_chat(template: Template) -> Template:
    """The format of a conversation with a model whose own format this is."""
    return get_template(template.chat) if template.chat else template


def to_json(template: Template) -> object:
    """What a file keeps of a template: the name of one that every copy of the program has, or else all of it."""
    return template.name if _ours().get(template.name) == template else as_fields(template)


def from_json(value: object) -> Template:
    """The inverse of `to_json`. Raises ValueError, half a sentence, for what it never made, and for an unknown name."""
    if isinstance(value, dict):
        return template_from(value)
    if not isinstance(value, str):
        raise ValueError("its metadata has no valid 'template'")
    if value not in templates():
        raise ValueError(
            f"it needs the template {value[:80]!r}, which this program does not have; update rwkv-cli"
        )
    return templates()[value]


def find_template(source_name: str, vocab_size: int) -> str:
    """The template for a model, guessed from the name of its file or repository; "raw" if none fits."""
    name = re.split(r"[/\\]", source_name.rstrip("/\\"))[-1].lower()
    if name.startswith("gosling"):
        return "story"
    if vocab_size < _WORLD_VOCAB_SIZE:  # the chat formats are made for the World vocabulary
        return "raw"
    if generation := generations.generation_in(name):
        return generations.template_of(generation)
    if re.search(r"(?<![a-z0-9])world", name):
        return "world"
    return generations.template_since(name) or "raw"
