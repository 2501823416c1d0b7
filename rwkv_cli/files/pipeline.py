"""Work on several tensors at a time, whose results come in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from rwkv_cli import machine

AT_ONCE = 4
"""Tensors, so that one is read while another is rounded and a third is written."""

Result = TypeVar("Result")


def in_order(
    work: Callable[[str], Result], sizes: Mapping[str, int], at_once: int = AT_ONCE
) -> Iterator[tuple[str, Result]]:
    """Each name in `sizes` and what `work` makes of it, in this order; at most `at_once` are in memory.

    Their sizes together are at most the largest of all, so that memory is bounded as if it was one at a time. An
    exception of `work` is raised in its turn.
    """
    if at_once == 1 or not machine.has_threads():
        yield from ((name, work(name)) for name in sizes)
        return
    most = max(sizes.values(), default=0)
    waiting, in_work, held = deque(sizes), deque[tuple[str, Future[Result]]](), 0
    pool = ThreadPoolExecutor(at_once)
    try:
        while waiting or in_work:
            while waiting and len(in_work) < at_once and (not held or held + sizes[waiting[0]] <= most):
                name = waiting.popleft()
                held += sizes[name]
                in_work.append((name, pool.submit(work, name)))
            name, future = in_work.popleft()
            yield name, future.result()
            del future  # and with it the result, before more is read
            held -= sizes[name]
    finally:
        pool.shutdown(cancel_futures=True)
