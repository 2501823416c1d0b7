"""What restricts the choice of the next token: the protocol, and masks of tokens.

A `Sampler` that has a constraint chooses among the tokens that its mask allows, tells it what was chosen, and takes
what it forces without asking the model. Only `engine.constraints` knows what the tokens have to spell.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.uint32]
"""One bit per token, [ceil(V / 32)]: token t is allowed if bit t % 32 of word t // 32 is set."""

Kind = Literal["json_schema", "regex", "grammar", "choice"]

GAP = r"[ \n]{0,2}"
"""What may stand between the beginning of an answer, or a thought, and the text that is demanded."""

LEADS = ("", GAP, ">", ">" + GAP)
"""Regular expressions of what stands before that text; > ends a tag that the template began."""


@dataclass(frozen=True)
class ConstraintMemory:
    """All that it takes to build a constraint again where it stands: what it demands, and what it has accepted."""

    kind: Kind  # of the source
    source: str  # see `engine.constraints.grammar.Grammar`
    ends: tuple[int, ...]  # the tokens that end the text
    lead: str  # one of LEADS
    thought: bytes | None  # the last bytes of the thought that comes first; None without one
    tokens: tuple[int, ...]  # accepted so far


class Constraint(Protocol):
    """Says which tokens may come next, as they come."""

    @property
    def is_complete(self) -> bool:
        """Whether nothing but the end may follow."""
        ...

    def mask(self) -> Mask | None:
        """The tokens that may come next; None if all may. Not to be changed. Raises UsageError if it is too complex."""
        ...

    def accept(self, token: int) -> None:
        """Take the next token. Raises UsageError for one that the mask does not allow."""
        ...

    def rollback(self, n: int) -> None:
        """Forget the last n tokens that were accepted."""
        ...

    def forced(self) -> list[int]:
        """The tokens that have to come next, whatever the model says; empty where there is a choice, or the end."""
        ...

    def copy(self) -> Self:
        """An independent constraint that stands at the same place."""
        ...

    def save(self) -> ConstraintMemory:
        """What to keep."""
        ...


def allowed_tokens(mask: Mask, vocab_size: int) -> NDArray[np.int64]:
    """The ids, ascending, that a mask allows."""
    return np.flatnonzero(unpacked(mask, vocab_size))


def unpacked(mask: Mask, vocab_size: int) -> NDArray[np.bool_]:
    """Whether a mask allows each token, [V]; an array of its own."""
    bits = np.unpackbits(mask.astype("<u4", copy=False).view(np.uint8), count=vocab_size, bitorder="little")
    return bits.view(np.bool_)


def mask_of(tokens: NDArray[np.int64], vocab_size: int) -> Mask:
    """The mask that allows these ids."""
    bits = np.zeros((vocab_size + 31) // 32 * 32, np.uint8)
    bits[tokens] = 1
    return np.packbits(bits, bitorder="little").view("<u4").astype(np.uint32, copy=False)
