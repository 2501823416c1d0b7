"""Names that a shell completes when Tab is pressed; if anything fails here, there are none."""

from __future__ import annotations

from rwkv_cli.errors import RwkvError


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
        return [name for name in state_store.names() if name.startswith(incomplete)]
    except (RwkvError, OSError):
        return []
