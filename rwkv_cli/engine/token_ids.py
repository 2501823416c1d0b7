"""Token ids, checked before a backend reads them."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from rwkv_cli.errors import UsageError

NO_TOKENS = "there are no tokens to read"


def check_tokens(tokens: NDArray[Any], vocab_size: int) -> None:
    """Raise UsageError unless `tokens` [T] are whole numbers in [0, V), at least one of them."""
    if not tokens.size:
        raise UsageError(NO_TOKENS)
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise UsageError("tokens must be a sequence of whole numbers")
    lowest, highest = tokens.min(), tokens.max()
    if lowest < 0 or highest >= vocab_size:
        wrong = lowest if lowest < 0 else highest
        raise UsageError(f"there is no token {wrong}: the vocabulary has {vocab_size:,}")
