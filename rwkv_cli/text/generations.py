"""What the names of published models tell: generation, size, date, and the prompt format that the generation speaks.

The publisher calls a file {architecture}-{generation}-{size}-{yyyymmdd}-ctx{N}.pth, as in
rwkv7-g1k-1.5b-20260930-ctx25600.pth. A generation is g0, g1, g2, ..., with a letter for each training run since, g1a to
g1z, and sometimes one more letter or digit for what came between two of them, as in g1a2.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

ARCHITECTURE = "rwkv7"
"""Of the models that this program runs; others that are named alike, such as rwkv7a, are experiments."""

_GENERATION = r"g[0-9](?:[a-z][a-z0-9]?)?"
_SIZE = r"[0-9]{1,3}(?:\.[0-9]{1,2})?b"
_FILE = re.compile(rf"(rwkv7[a-z]?)-({_GENERATION})-({_SIZE})-([0-9]{{8}})-ctx([0-9]{{1,9}})\.pth")
_NAME = re.compile(rf"({_GENERATION})-({_SIZE})")
_WITHIN = re.compile(rf"(?<![a-z0-9]){_GENERATION}(?![a-z0-9])")
_DATE = re.compile(r"-([0-9]{4})([0-9]{2})([0-9]{2})-ctx[0-9]")

# The first generation that is talked to in another format than g1.
_FIRST_WITH_MARKS = "g1h"
# The dates of the first models of both formats, the later one first.
_SINCE = (("20260701", "g1h"), ("20250301", "g1"))

_Order = tuple[int, str, int, str]


@dataclass(frozen=True)
class Published:
    """A published file, as far as its name tells."""

    file: str
    architecture: str
    generation: str
    size: str  # as in 1.5b
    date: str  # as in 20260930
    context: int  # tokens that it was trained on at a time

    @property
    def name(self) -> str:
        """What the model is called for short: g1k-1.5b."""
        return f"{self.generation}-{self.size}"

    @property
    def day(self) -> str:
        """Its date as 2026-09-30."""
        return f"{self.date[:4]}-{self.date[4:6]}-{self.date[6:]}"

    @property
    def order(self) -> tuple[_Order, str, int]:
        """Larger for what is newer, among models of one size: the generation comes before the date."""
        return order_of(self.generation), self.date, self.context


def parse(file: str) -> Published | None:
    """What the name of a published file tells; None for a name of any other form."""
    found = _FILE.fullmatch(file)
    if found is None:
        return None
    architecture, generation, size, date, context = found.groups()
    return Published(file, architecture, generation, size, date, int(context))


def split_name(name: str) -> tuple[str, str] | None:
    """The generation and size in a short name such as g1k-1.5b; None for any other name."""
    found = _NAME.fullmatch(name)
    return (found[1], found[2]) if found else None


def day_of(file: str) -> str | None:
    """The date in the name of any file that the publisher has dated, as 2026-09-30; None where there is none."""
    found = _DATE.search(file)
    return "-".join(found.groups()) if found else None


def newest(files: Iterable[str]) -> dict[str, Published]:
    """The newest model of each size among the names of files, by size, small ones first; experiments are left out."""
    found: dict[str, Published] = {}
    for published in filter(None, map(parse, files)):
        before = found.get(published.size)
        if published.architecture == ARCHITECTURE and (before is None or before.order < published.order):
            found[published.size] = published
    return dict(sorted(found.items(), key=lambda item: parameters_of(item[0])))


def parameters_of(size: str) -> float:
    """The billions of parameters that a size stands for: 1.5 for 1.5b."""
    return float(size.removesuffix("b"))


def order_of(generation: str) -> _Order:
    """Larger for a later generation: g0 < g1 < g1a < g1a2 < g1ab < g1b < g2."""
    letter, second = generation[2:3], generation[3:]
    return int(generation[1]), letter, int(second) if second.isdigit() else 10 if second else -1, second


def template_of(generation: str) -> str:
    """The name of the prompt template that models of a generation are made for."""
    return "g1" if order_of(generation) < order_of(_FIRST_WITH_MARKS) else "g1h"


def template_since(name: str) -> str | None:
    """The template of a model whose name has a date but no generation, such as RWKV7-1.5B-20260805, by that date."""
    dates = re.findall(r"(?<![0-9])20[2-9][0-9][01][0-9][0-3][0-9](?![0-9])", name)
    if not dates or not re.search(r"rwkv-?_?7", name.lower()):
        return None
    return next((template for first, template in _SINCE if dates[0] >= first), None)


def generation_in(name: str) -> str | None:
    """The generation that the name of a file or folder mentions, however it is written; None if it mentions none.

    Finds g1k in RWKV7-G1k-1.5B-20260930, in rwkv7_g1k_7.2b-Q8_0.gguf and in rwkv7-2.9B-g1k.
    """
    found = _WITHIN.search(name.lower())
    return found[0] if found else None
