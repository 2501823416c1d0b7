"""The compute threads of this process, which all models share, and what a fork does to them."""

from __future__ import annotations

import functools
import itertools
import os
import weakref
from typing import Protocol

from cpu_kernels.runtime import thread_team


class _Forgets(Protocol):
    def forget_threads(self) -> None: ...


_jobs = itertools.count()
_users: list[weakref.ref[_Forgets]] = []
"""All that compute in this process: a list, which a fork cannot meet half changed."""


def next_job() -> int:
    """A number for `Team.run` that nobody else in this process has."""
    return next(_jobs)


@functools.cache
def team(n_threads: int) -> thread_team.Team:
    """The compute threads."""
    return thread_team.Team(n_threads)


def tell_of_forks(user: _Forgets) -> None:
    """Have `user.forget_threads` called in a process that was forked, perhaps while another thread was computing.

    That thread is not there to release a lock, or to finish what it was doing with a buffer.
    """
    _users.append(weakref.ref(user, _users.remove))


def _after_fork() -> None:
    """In the child, which has none of its parent's threads."""
    team.cache_clear()
    for reference in _users.copy():
        if user := reference():
            user.forget_threads()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
