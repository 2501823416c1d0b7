"""What a pass consists of: kernels and matrix products, as plain data, so that anything can run or list them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias


class Launch(NamedTuple):
    """One kernel of cuda/."""

    kernel: str
    grid: tuple[int, ...]  # blocks
    block: int  # threads of each
    arguments: tuple[int, ...]  # addresses and sizes, as the kernel lists them
    shared: int = 0  # bytes of shared memory, besides what the kernel declares
    overlaps: bool = False  # with the kernel before it, up to its `wait_for_previous`


class Product(NamedTuple):
    """out [T, R] = x [T, K] times a matrix, on tensor cores; all row-major, `x` and the matrix in float16."""

    weights: int  # address of W [R, K], or of its transpose [K, R] if it lies `by_input`
    x: int  # address
    out: int  # address
    T: int
    R: int
    K: int
    by_input: bool = False
    x_stride: int = 0  # from one row to the next; 0 for K
    out_stride: int = 0  # from one row to the next; 0 for R
    half: bool = False  # `out` is float16; otherwise it is float32
    add: bool = False  # to what is in `out`
    times: int = 1  # so many products, their matrices, inputs and outputs one after another


class Together(NamedTuple):
    """Steps of which those in one branch need nothing of those in another: a graph runs the branches side by side."""

    branches: tuple[tuple[Step, ...], ...]


Step: TypeAlias = "Launch | Product | Together"


def lanes(steps: Sequence[Step]) -> int:
    """How many of them run side by side at most."""
    return max(
        (sum(map(lanes, step.branches)) if isinstance(step, Together) else 1 for step in steps), default=0
    )
