"""The choice of the next token on the device, by cuda/survey.cu and cuda/sample.cu: a few bytes each way."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkv_cli.engine.gpu.device_protocol import Buffers, Device
from rwkv_cli.engine.gpu.kernel_sources import constants, structure
from rwkv_cli.engine.gpu.launch_plan import Launch, Step
from rwkv_cli.engine.sampling import Choice, SampleRequest

SURVEY_THREADS, SAMPLE_THREADS = (constants(file)["THREADS"] for file in ("survey.cu", "sample.cu"))
PARTS, LIST = (constants("sampling.cuh")[name] for name in ("PARTS", "LIST"))

REQUEST, CHANGE, SURVEY, CHOICE = (
    structure("sampling.cuh", name) for name in ("Request", "Change", "Survey", "Choice")
)

_LOWEST_TEMPERATURE = float(np.finfo(np.float32).tiny)
"""In float32: in place of 0, by which nothing can be divided."""

_HIGHEST_TEMPERATURE = float(np.finfo(np.float32).max)  # in place of infinity
_MOST_RANKS = int(np.iinfo(np.int32).max)


@functools.lru_cache
def _cuts(temperature: float, top_p: float, min_p: float, top_k: int) -> tuple[float, float, float, int]:
    """The logarithm of min-p, temperature, top-p and top-k as a request of the device has them."""
    log_min_p = math.log(min_p) if min_p else -math.inf
    temperature = min(max(temperature, _LOWEST_TEMPERATURE), _HIGHEST_TEMPERATURE)
    return log_min_p, temperature, top_p, int(min(top_k, _MOST_RANKS))


class _Staged:
    """An array on the device, and page-locked memory on the host that it is copied from."""

    def __init__(self, gpu: Device, size: int, dtype: np.dtype[Any]) -> None:
        self._gpu, self._memory = gpu, gpu.allocate(size * dtype.itemsize)
        self.host: NDArray[Any] = gpu.pinned(size * dtype.itemsize).view(dtype)

    def upload(self, size: int, places: Iterable[int]) -> list[int]:
        """Copy the first elements, which must not change before that is done: the addresses of some of them."""
        self._gpu.upload(self._memory.address, self.host[:size])
        return [self._memory.address + self.host.itemsize * place for place in places]


class DeviceSampler:
    """Chooses tokens from logits that are on the device, for one sequence or for many at the same time."""

    def __init__(self, gpu: Device, logits: int, V: int, sequences: int = 1, stride: int = 0) -> None:
        """`logits` is the address of [sequences, stride] float32, of which V are used; a stride of 0 is V.

        Raises DeviceError if too little memory is free.
        """
        self._gpu, self._logits, self._V, self._stride = gpu, logits, V, stride or V
        lists = PARTS * sequences
        sizes = {
            "requests": REQUEST.itemsize * sequences,
            "adjusted": 4 * V * sequences,
            "own": SURVEY.itemsize * lists,
            "changed": SURVEY.itemsize * lists,
            "values": 4 * LIST * lists,
            "tokens": 4 * LIST * lists,
            "counts": 4 * lists,
            "choices": CHOICE.itemsize * sequences,
        }
        self._at = Buffers(gpu, sizes)
        self._requests = gpu.pinned(sizes["requests"]).view(REQUEST)
        self._choices = gpu.pinned(sizes["choices"]).view(CHOICE)
        self._changes = _Staged(gpu, V, CHANGE)  # enough for one sequence, and mostly for many
        self._masks: _Staged | None = None

    @property
    def token(self) -> int:
        """The address of the token to read first, an int32, of the first sequence."""
        return self._at["requests"]

    def steps(self, sequences: int = 1) -> list[Step]:
        """Choose by the requests that were submitted last; leaves the logits as they were."""
        at = self._at
        shared = {
            "logits": self._logits,
            "adjusted": at["adjusted"],
            "requests": at["requests"],
            "changed": at["changed"],
            "V": self._V,
            "stride": self._stride,
        }
        own = {"own": at["own"]}
        lists = {name: at[name] for name in ("values", "tokens", "counts")}
        parts, part_bytes = (PARTS, sequences), 4 * -(-self._V // PARTS)
        choose = {**shared, **own, **lists, "choices": at["choices"]}
        return [
            Launch("survey", parts, SURVEY_THREADS, {**shared, **own}, part_bytes, overlaps=True),
            Launch("candidates", parts, SURVEY_THREADS, {**shared, **lists}, overlaps=True),
            Launch("sample", (sequences,), self._threads(sequences), choose, overlaps=True),
        ]

    def _threads(self, sequences: int) -> int:
        """Of a block of `sample`: fewer where a multiprocessor has several."""
        return SAMPLE_THREADS if sequences <= self._gpu.multiprocessors else SAMPLE_THREADS // 2

    def submit(self, requests: Sequence[SampleRequest], token: int = 0, rows: Sequence[int] = ()) -> None:
        """Upload how to choose the next token of each sequence, and the `token` to read first, if there is one.

        `rows` are those of the logits, if they are not the first ones in order. The previous choices must have been
        collected.
        """
        changes = self._submit_changes(requests)
        masks = self._submit_masks(requests)
        self._requests[: len(requests)] = [
            (token, len(tokens), change, bits, random, *_cuts(temperature, top_p, min_p, top_k), row)
            for (tokens, _, _, random, temperature, top_p, min_p, top_k, _), change, bits, row in zip(
                requests, changes, masks, rows or range(len(requests)), strict=True
            )
        ]
        self._gpu.upload(self._at["requests"], self._requests[: len(requests)])

    def _submit_changes(self, requests: Sequence[SampleRequest]) -> Iterable[int]:
        """Upload what is added to logits: the address of each sequence's changes."""
        counts = [len(request.tokens) for request in requests]
        total = sum(counts)
        if not total:
            return itertools.repeat(0, len(requests))
        if total > len(self._changes.host):
            self._changes = _Staged(self._gpu, 2 * total, CHANGE)
        host = self._changes.host[:total]
        host["token"] = np.concatenate([request.tokens for request in requests])
        with np.errstate(over="ignore"):  # the logit becomes infinite: right
            host["amount"] = np.concatenate([request.amounts for request in requests])
        return self._changes.upload(total, itertools.accumulate(counts[:-1], initial=0))

    def _submit_masks(self, requests: Sequence[SampleRequest]) -> Iterable[int]:
        """Upload the masks of those sequences that have one: their addresses, 0 for none."""
        masks = [request.mask for request in requests if request.mask is not None]
        if not masks:
            return itertools.repeat(0, len(requests))
        words = len(masks[0])
        if self._masks is None or words * len(masks) > len(self._masks.host):
            self._masks = _Staged(self._gpu, words * len(requests), np.dtype(np.uint32))
        np.concatenate(masks, out=self._masks.host[: words * len(masks)])
        addresses = iter(self._masks.upload(words * len(masks), range(0, words * len(masks), words)))
        return [0 if request.mask is None else next(addresses) for request in requests]

    def collect(self, sequences: int = 1) -> list[Choice]:
        """The choices; a token may be a reason why none could be chosen: see `Sampler.accept`."""
        found = self._choices[:sequences]
        self._gpu.download(self._at["choices"], found)
        return list(map(Choice, found["token"].tolist(), found["logprob"].tolist()))
