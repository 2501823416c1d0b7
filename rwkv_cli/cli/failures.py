"""Failures that no command expected, as sentences."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence


def sentence(error: Exception) -> str:
    """What to tell of an exception that is no `RwkvError`; one that nobody foresaw is raised with RWKV_DEBUG=1."""
    if isinstance(error, MemoryError):
        return "not enough memory"
    if isinstance(error, OSError):
        where = error.filename or "cannot write the output"
        return f"{where}: {(error.strerror or str(error)).lower()}"
    if isinstance(error, RuntimeError) and "start new thread" in str(error):
        return "the system allows no more threads: raise the limit of processes (ulimit -u)"
    if os.environ.get("RWKV_DEBUG") == "1":
        raise error
    what = f"{type(error).__name__}: {error}"
    return f"this should not happen ({what}); please report it, with what RWKV_DEBUG=1 adds"


def asks_for_json(arguments: Sequence[str]) -> bool:
    """Whether a command line, which may be invalid, has the option --json."""
    return "--json" in itertools.takewhile(lambda argument: argument != "--", arguments)
