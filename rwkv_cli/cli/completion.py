"""Names that a shell completes when Tab is pressed; if anything fails here, there are none.

Names of states may have spaces. bash puts into the line what it is given, as it is; so it gets them with backslashes,
unless the word that is completed begins with a quotation mark. Other shells quote by themselves.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import Any, Self

from rwkv_cli.errors import RwkvError

_SPECIAL = re.compile(r"[^\w.,:/@%+=-]")  # what bash would not take as a part of a word


def models(incomplete: str) -> list[str]:
    """Models in the store and the registry: the names that --model takes."""
    return sorted({*pulled(incomplete), *known(incomplete)})


def installed(incomplete: str) -> list[str]:
    """Models that can be used at once: those in the store, and the built-in one."""
    own = [name for name in known(incomplete) if name == "gosling"]
    return sorted({*pulled(incomplete), *own})


def known(incomplete: str) -> list[str]:
    """Models in the registry."""
    from rwkv_cli.catalog import registry

    try:
        return [name for name in registry.names() if name.startswith(incomplete.lower())]
    except (RwkvError, OSError):
        return []


def pulled(incomplete: str) -> list[str]:
    """Models in the store."""
    from rwkv_cli.catalog import model_store

    try:
        return [stored.name for stored in model_store.listed() if stored.name.startswith(incomplete.lower())]
    except (RwkvError, OSError):
        return []


def states(incomplete: str) -> list[str]:
    """States in the store: the names that --state takes."""
    from rwkv_cli.sessions import state_store

    try:
        return _quoted(name for name in state_store.names() if name.startswith(incomplete))
    except (RwkvError, OSError):
        return []


def devices(incomplete: str) -> list[str]:
    """The values of --device."""
    from rwkv_cli.engine.backends.registry import DEVICES

    return [name for name in DEVICES if name.startswith(incomplete)]


def drafts(incomplete: str) -> list[str]:
    """The values of --draft."""
    return [name for name in ("lookup", "self") if name.startswith(incomplete)] + models(incomplete)


def templates(incomplete: str) -> list[str]:
    """Templates by name; where none begins like that, the shell completes files."""
    from rwkv_cli.text import templates

    try:
        return [name for name in templates.templates() if name.startswith(incomplete)]
    except (RwkvError, OSError):
        return []


def modes(incomplete: str) -> list[str]:
    """The modes of thinking of all templates: the values of --think."""
    from rwkv_cli.text import templates

    try:
        known = {mode: None for template in templates.templates().values() for mode in template.thinking}
    except (RwkvError, OSError):
        return []
    return [mode for mode in known if mode.startswith(incomplete)]


def settings(incomplete: str) -> list[str]:
    """Keys of config.toml."""
    from rwkv_cli.settings import KEYS

    return [name for name in KEYS if name.startswith(incomplete.replace("-", "_"))]


def _quoted(names: Iterable[str]) -> list[str]:
    """Names as the shell that asks for them needs them."""
    words = os.environ.get("COMP_WORDS")  # which only bash sets
    if words is None or words.rpartition("\n")[2].startswith(("'", '"')):
        return list(names)
    return [_Quoted(name) for name in names]


class _Quoted(str):
    """A name with backslashes that begins like the name without them, which Typer compares with what was typed."""

    name: str

    def __new__(cls, name: str) -> Self:
        quoted = super().__new__(cls, _SPECIAL.sub(r"\\\g<0>", name))
        quoted.name = name
        return quoted

    def startswith(self, *arguments: Any) -> bool:
        return self.name.startswith(*arguments)
