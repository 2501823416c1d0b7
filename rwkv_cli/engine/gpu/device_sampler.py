"""The choice of the next token on the device, by cuda/sample.cu: a few bytes each way instead of all logits."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from rwkv_cli.engine.gpu.buffers import Buffers
from rwkv_cli.engine.gpu.device_protocol import Device
from rwkv_cli.engine.gpu.launch_plan import Launch
from rwkv_cli.engine.sampling import Choice, Draw

THREADS = 1024
"""Of the block of a sequence: the most that there can be."""

# As cuda/sample.cu has them.
REQUEST = np.dtype(
    [
        ("token", np.int32),
        ("n", np.int32),
        ("changes", np.uint64),
        ("random", np.float64),
        ("log_min_p", np.float64),
        ("temperature", np.float32),
        ("top_p", np.float32),
    ]
)
CHANGE = np.dtype([("token", np.int32), ("amount", np.float32)])
CHOICE = np.dtype([("token", np.int32), ("logprob", np.float32)])

_TEMPERATURES = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
"""What a float32 has instead of 0 and infinity, by which nothing can be divided."""


class Chooser:
    """Chooses tokens from logits that are on the device: for one sequence, or for many at the same time."""

    def __init__(self, gpu: Device, logits: int, V: int, sequences: int = 1, stride: int = 0) -> None:
        """`logits` is the address of [sequences, stride] float32, of which V are used; a stride of 0 is V."""
        self._gpu, self._logits, self._V, self._stride = gpu, logits, V, stride or V
        rounds = math.ceil(V / THREADS)
        sizes = {
            "requests": REQUEST.itemsize * sequences,
            "candidates": 4 * rounds * THREADS * sequences,
            "choices": CHOICE.itemsize * sequences,
        }
        self._at = Buffers(gpu, sizes)
        self._requests = gpu.pinned(sizes["requests"]).view(REQUEST)
        self._choices = gpu.pinned(sizes["choices"]).view(CHOICE)
        self._changes = gpu.allocate(CHANGE.itemsize * V)  # enough for one sequence, and mostly for many

    @property
    def token(self) -> int:
        """The address of the token to read before, an int32, of the first sequence."""
        return self._at["requests"]

    def step(self, sequences: int = 1) -> Launch:
        """Choose, as the last requests want it; the logits are as they were afterwards."""
        at = self._at
        arguments = self._logits, at["requests"], at["candidates"], at["choices"], self._V, self._stride
        return Launch("sample", (sequences,), THREADS, arguments, overlaps=True)

    def ask(self, draws: Sequence[Draw], token: int = 0) -> None:
        """Say how to choose the next token of each sequence, after `token` if there is one to be read before.

        The choices before must have been taken.
        """
        ends = np.cumsum([len(draw.tokens) for draw in draws])
        changes = np.empty(ends[-1], CHANGE)
        changes["token"] = np.concatenate([draw.tokens for draw in draws])
        with np.errstate(over="ignore"):  # the logit becomes infinite: right
            changes["amount"] = np.concatenate([draw.amounts for draw in draws])
        if changes.nbytes > self._changes.nbytes:
            self._changes = self._gpu.allocate(2 * changes.nbytes)
        for i, (draw, end) in enumerate(zip(draws, ends.tolist(), strict=True)):
            n = len(draw.tokens)
            begin = self._changes.address + CHANGE.itemsize * (end - n)
            log_min_p = math.log(draw.min_p) if draw.min_p else -math.inf
            temperature = min(max(draw.temperature, _TEMPERATURES[0]), _TEMPERATURES[1])
            self._requests[i] = token, n, begin, draw.random, log_min_p, temperature, draw.top_p
        self._gpu.upload(self._at["requests"], self._requests[: len(draws)])
        if len(changes):
            self._gpu.upload(self._changes.address, changes)
            self._gpu.synchronize()  # `changes` is not there for long

    def choices(self, sequences: int = 1) -> list[Choice]:
        """What was chosen, or why nothing was: see `Sampler.take`."""
        found = self._choices[:sequences]
        self._gpu.download(self._at["choices"], found)
        return [Choice(token, logprob) for token, logprob in found.tolist()]
