"""Which of the known models suits a machine: what each takes, and the largest that leaves room for other programs."""

from __future__ import annotations

from rwkv_cli import machine
from rwkv_cli.catalog import registry
from rwkv_cli.catalog.entries import Entry
from rwkv_cli.reporting import format_size

_BYTES_PER_WEIGHT = 1.06  # in int8, scales included
_PROGRAM = 150_000_000  # bytes that the program takes beside the weights
_SHARE = (
    4  # a model may take a quarter of the memory: it also has to be fast, and other programs run beside it
)
_ORDINARY = 8_000_000_000  # bytes of memory, where the system does not say how many it has
_PUBLISHED_BYTES = 2  # per weight in most published files


def current() -> list[Entry]:
    """The known models without their older generations, in the order of models.toml.

    Of several generations of a size, it is the one that has the short name, whose checksum is known.
    """
    chosen: dict[tuple[str | None, str], Entry] = {}
    for entry in registry.set_of(registry.entries()):
        found = entry.published
        key = (entry.repository, found.size) if found else (None, entry.name)
        if key not in chosen or _rank(entry) > _rank(chosen[key]):
            chosen[key] = entry
    return list(chosen.values())


def _rank(entry: Entry) -> tuple[bool, tuple[object, ...]]:
    found = entry.published
    return registry.short_name(entry) != entry.name, found.order if found else ()


def download_bytes(entry: Entry) -> int | None:
    """The size of the download: exact, or as most files have it; None if nothing is known of it."""
    return entry.bytes or (_PUBLISHED_BYTES * entry.parameters if entry.parameters else None)


def memory_bytes(entry: Entry) -> int | None:
    """About how much memory a model takes in int8, the program included; None if its size is not known."""
    if entry.parameters is None:
        return None
    return int(_BYTES_PER_WEIGHT * entry.parameters) + _PROGRAM


def recommended(memory: int | None = None) -> Entry | None:
    """The model to begin with: the largest of the newest ones that takes no more than a quarter of the memory.

    `memory` is in bytes, that of this machine by default. Where even the smallest takes more, it is the smallest; None
    only if models.toml has none.
    """
    memory = memory or machine.memory().total or _ORDINARY
    sizes = {entry.name: memory_bytes(entry) for entry in current() if entry.published}
    by_size = sorted((size, name) for name, size in sizes.items() if size)
    fitting = [name for size, name in by_size if _SHARE * size <= memory]
    name = fitting[-1] if fitting else by_size[0][1] if by_size else None
    return registry.entries()[name] if name else None


def this_machine() -> str:
    """What it is recommended for, in words."""
    memory = machine.memory().total
    return f"this machine, which has {format_size(memory)} of memory" if memory else "most machines"
