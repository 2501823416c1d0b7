"""The choice of the next token on the device, by cuda/sample.cu: a few bytes each way instead of all logits."""

from __future__ import annotations

import math

import numpy as np

from rwkv_cli.gpu.buffers import Buffers
from rwkv_cli.gpu.interface import Device
from rwkv_cli.gpu.steps import Launch
from rwkv_cli.sampling import Choice, Draw

THREADS = 1024
"""Of the one block: the most that there can be."""

# As cuda/sample.cu has them.
REQUEST = np.dtype(
    [
        ("token", np.int32),
        ("changes", np.int32),
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
    """Chooses tokens from logits that are on the device."""

    def __init__(self, gpu: Device, logits: int, V: int) -> None:
        """`logits` is the address of [V] float32."""
        self._gpu, self._logits, self._V = gpu, logits, V
        size = REQUEST.itemsize + V * CHANGE.itemsize
        rounds = math.ceil(V / THREADS)
        self._at = Buffers(
            gpu, {"asked": size, "candidates": 4 * rounds * THREADS, "choice": CHOICE.itemsize}
        )
        self._asked = gpu.pinned(size)
        self._request = self._asked[: REQUEST.itemsize].view(REQUEST)
        self._changes = self._asked[REQUEST.itemsize :].view(CHANGE)
        self._choice = gpu.pinned(CHOICE.itemsize).view(CHOICE)

    @property
    def token(self) -> int:
        """The address of the token to read before, an int32."""
        return self._at["asked"]

    def step(self) -> Launch:
        """Choose, as the last request wants it; the logits are as they were afterwards."""
        at, changes = self._at, self._at["asked"] + REQUEST.itemsize
        arguments = (self._logits, at["asked"], changes, at["candidates"], at["choice"], self._V)
        return Launch("sample", (1,), THREADS, arguments, overlaps=True)

    def ask(self, token: int, draw: Draw) -> None:
        """Say which token to read and how to choose the next one; the choice before must have been taken."""
        n = len(draw.tokens)
        log_min_p = math.log(draw.min_p) if draw.min_p else -math.inf
        temperature = min(max(draw.temperature, _TEMPERATURES[0]), _TEMPERATURES[1])
        self._request[0] = token, n, draw.random, log_min_p, temperature, draw.top_p
        self._changes["token"][:n] = draw.tokens
        with np.errstate(over="ignore"):  # the logit becomes infinite: right
            self._changes["amount"][:n] = draw.amounts
        self._gpu.upload(self._at["asked"], self._asked[: REQUEST.itemsize + n * CHANGE.itemsize])

    def choice(self) -> Choice:
        """What was chosen, or why nothing was: see `Sampler.take`."""
        self._gpu.download(self._at["choice"], self._choice)
        token, logprob = self._choice[0].item()
        return Choice(token, logprob)
