"""What a pass consists of: kernels and matrix products, as plain data, so that anything can run or list them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from rwkv_cli.engine.gpu import kernel_sources


@dataclass(slots=True)
class Launch:
    """One kernel of cuda/. Raises TypeError for a missing or unknown argument."""

    kernel: str
    grid: tuple[int, ...]  # blocks
    block: int  # threads of each
    arguments: Mapping[str, int]  # addresses and sizes, by the names of the kernel's parameters
    shared: int = 0  # bytes of shared memory, besides what the kernel declares
    overlaps: bool = False  # with the kernel before it, up to its `wait_for_previous`
    values: tuple[int, ...] = field(init=False)  # the arguments, in the order of the parameters

    def __post_init__(self) -> None:
        self.values = kernel_sources.ordered(self.kernel, self.arguments)


class Product(NamedTuple):
    """out [T, R] = x [T, K] times a matrix, on tensor cores; all row-major, `x` and the matrix in float16."""

    weights: int  # address of W [R, K], or of its transpose [K, R] if it is stored `by_input`
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
    times: int = 1  # the number of products, whose matrices, inputs and outputs follow one another in memory


class Parallel(NamedTuple):
    """Independent branches of steps: a graph runs them side by side."""

    branches: tuple[tuple[Step, ...], ...]


Step: TypeAlias = "Launch | Product | Parallel"


def max_parallel(steps: Sequence[Step]) -> int:
    """The largest number of steps that run side by side."""
    return max(
        (sum(map(max_parallel, step.branches)) if isinstance(step, Parallel) else 1 for step in steps),
        default=0,
    )
