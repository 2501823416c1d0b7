"""Properties that are computed once, when they are first asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class lazy_property(Generic[T]):  # noqa: N801  # a decorator
    """A method whose first result becomes an attribute; two threads that ask at once may both compute it.

    `functools.cached_property` of Python 3.11 has one lock for all instances. A process that is forked while another
    thread holds it would wait for ever.
    """

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self._compute = compute
        self.__doc__ = compute.__doc__

    def __get__(self, instance: Any, owner: type | None = None) -> T:
        if instance is None:  # help and documentation ask the class
            return self  # type: ignore[return-value]
        value: T = self._compute(instance)
        instance.__dict__[self._compute.__name__] = value
        return value
