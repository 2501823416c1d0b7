"""Names that a shell offers when Tab is pressed; whatever goes wrong here, it offers nothing."""

from __future__ import annotations

from rwkv_cli.errors import RwkvError


def models(incomplete: str) -> list[str]:
    """Models of the store and of the registry: what --model takes."""
    return sorted({*pulled(incomplete), *known(incomplete)})


def known(incomplete: str) -> list[str]:
    """Models of the registry."""
    from rwkv_cli.catalog import registry

    try:
        return [name for name in registry.names() if name.startswith(incomplete.lower())]
    except (RwkvError, OSError):
        return []


def pulled(incomplete: str) -> list[str]:
    """Models of the store."""
    from rwkv_cli.catalog import model_store

    try:
        return [stored.name for stored in model_store.listed() if stored.name.startswith(incomplete.lower())]
    except (RwkvError, OSError):
        return []


def states(incomplete: str) -> list[str]:
    """States of the store: what --state takes."""
    from rwkv_cli.sessions import state_store

    try:
        return [name for name in state_store.names() if name.startswith(incomplete)]
    except (RwkvError, OSError):
        return []


def types(incomplete: str) -> list[str]:
    """Types of weights."""
    from rwkv_cli.files.weight_layouts import WEIGHT_TYPES

    return [kind for kind in WEIGHT_TYPES if kind.startswith(incomplete)]
