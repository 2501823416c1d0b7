"""The choice of tokens by `cpu_kernels.sampling`, on the compute threads: those of many texts at the same time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cpu_kernels import abi
from cpu_kernels.runtime.aot import address, kernel
from rwkv_cli.engine.backends.compute_threads import next_job, team
from rwkv_cli.engine.sampling import NOT_A_NUMBER, NOTHING_LEFT, Choice, Sampler, SampleRequest

Array = NDArray[np.float32]

assert (NOT_A_NUMBER, NOTHING_LEFT) == (abi.NOT_A_NUMBER, abi.NOTHING_LEFT)

_LOWEST_TEMPERATURE = float(np.finfo(np.float32).tiny)  # in place of 0, by which nothing can be divided
_HIGHEST_TEMPERATURE = float(np.finfo(np.float32).max)  # in place of infinity
_NO_RESULT = (0, 0.0, 0.0)  # the last fields of CHOICE: token, peak, total


class CpuSampler:
    """Chooses tokens. What it has of memory serves one call at a time."""

    def __init__(self, vocab_size: int, n_threads: int) -> None:
        self.vocab_size = vocab_size
        self._n_threads = n_threads
        self._samplings = np.zeros(1, abi.SAMPLING)
        self._choices = np.zeros(0, abi.CHOICE)
        self._scratch: Array | None = None
        self._passes = kernel("sampling.passes")
        self._job = next_job()

    def choose_for(self, logits: Sequence[Array] | Array, samplers: Sequence[Sampler]) -> list[Choice]:
        """The tokens that samplers, of which there is at least one, choose from logits [n] [V] in contiguous rows.

        A token may be a reason why none could be chosen: see `Sampler.accept`.
        """
        requests = [sampler.request(self.vocab_size) for sampler in samplers]
        found = self.choose(logits, requests)
        for i, (choice, request) in enumerate(zip(found, requests, strict=True)):
            if choice.token == NOTHING_LEFT and request.mask is not None:
                found[i] = samplers[i].choose(logits[i])
        return found

    def choose(self, logits: Sequence[Array] | Array, requests: Sequence[SampleRequest]) -> list[Choice]:
        """The tokens that requests, of which there is at least one, choose from logits [n] [V] in contiguous rows.

        A token may be a reason why none could be chosen: see `Sampler.accept`. `SampleRequest.tokens` must be in the
        vocabulary.
        """
        n = len(requests)
        self._reserve(n)
        for i, (row, request) in enumerate(zip(logits, requests, strict=True)):
            self._choices[i] = _description(row, request)
        self._samplings["n"] = n
        # One token is chosen by one thread: the others stay with the forward pass, and never come back to Python.
        team(self._n_threads if n > 1 else 1).run(self._passes, self._job, self._samplings)
        return [
            Choice(token, self._logprob(row, token, peak, total))
            for row, (*_, token, peak, total) in zip(logits, self._choices[:n].tolist(), strict=True)
        ]

    def _reserve(self, n: int) -> None:
        """Allocate records for n choices, and at first the scratch memory of the threads."""
        sampling = self._samplings[0]
        if self._scratch is None:
            padded = -(-self.vocab_size // abi.LANES) * abi.LANES
            self._scratch = np.empty((self._n_threads, abi.N_SCRATCH, padded), np.float32)
            sampling["V"], sampling["padded"] = self.vocab_size, padded
            sampling["threads"] = self._n_threads
            sampling["scratch"] = address(self._scratch)
        if len(self._choices) < n:
            self._choices = np.zeros(n, abi.CHOICE)
            sampling["choices"] = address(self._choices)

    @staticmethod
    def _logprob(logits: Array, token: int, peak: float, total: float) -> float:
        return float(logits[token]) - peak - math.log(total) if token >= 0 else 0.0


def _description(logits: Array, request: SampleRequest) -> tuple[float, ...]:
    """A record CHOICE without a result; the arrays must stay."""
    return (
        address(logits),
        len(request.tokens),
        address(request.tokens),
        address(request.amounts),
        0 if request.mask is None else address(request.mask),
        request.top_k,
        request.is_greedy,
        request.top_p,
        math.log(request.min_p) if request.min_p else -math.inf,
        min(max(request.temperature, _LOWEST_TEMPERATURE), _HIGHEST_TEMPERATURE),
        request.random,
        *_NO_RESULT,
    )
