"""The choice of the next token on the device, by cuda/sample.cu: a few bytes each way instead of all logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import itemgetter

import numpy as np

from rwkv_cli.engine.gpu.device_protocol import Buffers, Device
from rwkv_cli.engine.gpu.kernel_sources import constants, structure
from rwkv_cli.engine.gpu.launch_plan import Launch
from rwkv_cli.engine.sampling import Choice, SampleRequest

THREADS = constants("sample.cu")["THREADS"]
"""Of a sequence's block."""

REQUEST, CHANGE, CHOICE = (structure("sample.cu", name) for name in ("Request", "Change", "Choice"))

_in_order = itemgetter(*REQUEST.names or ())
_LOWEST_TEMPERATURE = float(np.finfo(np.float32).tiny)
"""In float32: in place of 0, by which nothing can be divided."""

_HIGHEST_TEMPERATURE = float(np.finfo(np.float32).max)  # in place of infinity


class DeviceSampler:
    """Chooses tokens from logits that are on the device, for one sequence or for many at the same time."""

    def __init__(self, gpu: Device, logits: int, V: int, sequences: int = 1, stride: int = 0) -> None:
        """`logits` is the address of [sequences, stride] float32, of which V are used; a stride of 0 is V.

        Raises DeviceError if too little memory is free.
        """
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
        """The address of the token to read first, an int32, of the first sequence."""
        return self._at["requests"]

    def step(self, sequences: int = 1) -> Launch:
        """Choose by the requests that were submitted last; leaves the logits as they were."""
        arguments = {
            "logits": self._logits,
            "requests": self._at["requests"],
            "candidates": self._at["candidates"],
            "choices": self._at["choices"],
            "V": self._V,
            "stride": self._stride,
        }
        return Launch("sample", (sequences,), THREADS, arguments, overlaps=True)

    def submit(self, requests: Sequence[SampleRequest], token: int = 0) -> None:
        """Upload how to choose the next token of each sequence, and the `token` to read first, if there is one.

        The previous choices must have been collected.
        """
        ends = np.cumsum([len(request.tokens) for request in requests])
        changes = np.empty(ends[-1], CHANGE)
        changes["token"] = np.concatenate([request.tokens for request in requests])
        with np.errstate(over="ignore"):  # the logit becomes infinite: right
            changes["amount"] = np.concatenate([request.amounts for request in requests])
        if changes.nbytes > self._changes.nbytes:
            self._changes = self._gpu.allocate(2 * changes.nbytes)
        for i, (request, end) in enumerate(zip(requests, ends.tolist(), strict=True)):
            n = len(request.tokens)
            fields = {
                "token": token,
                "n": n,
                "changes": self._changes.address + CHANGE.itemsize * (end - n),
                "random": request.random,
                "log_min_p": math.log(request.min_p) if request.min_p else -math.inf,
                "temperature": min(max(request.temperature, _LOWEST_TEMPERATURE), _HIGHEST_TEMPERATURE),
                "top_p": request.top_p,
            }
            self._requests[i] = _in_order(fields)
        self._gpu.upload(self._at["requests"], self._requests[: len(requests)])
        if len(changes):
            self._gpu.upload(self._changes.address, changes)
            self._gpu.synchronize()  # before `changes` is freed

    def collect(self, sequences: int = 1) -> list[Choice]:
        """The choices; a token may be a reason why none could be chosen: see `Sampler.accept`."""
        found = self._choices[:sequences]
        self._gpu.download(self._at["choices"], found)
        return [Choice(token, logprob) for token, logprob in found.tolist()]
