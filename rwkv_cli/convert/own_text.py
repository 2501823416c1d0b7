"""Text that a model writes itself: for measuring and calibrating where there is no other.

Every other piece begins a document, the others with tokens drawn from the whole vocabulary: so they differ more than
what a model writes from the beginning alone. (Liu et al., 2023, "LLM-QAT: Data-Free Quantization Aware Training for
Large Language Models", section 3.1.)
"""

from __future__ import annotations

import numpy as np

from rwkv_cli.engine.backends.base import Backend
from rwkv_cli.engine.generate import Ending
from rwkv_cli.engine.sampling import Sampler
from rwkv_cli.engine.scheduler import Request, Scheduler
from rwkv_cli.sampling_settings import SamplingSettings

_END_OF_DOCUMENT = 0
_NO_END = -1  # a text goes on after the end of a document


def pieces(backend: Backend, count: int, length: int) -> list[list[int]]:
    """`count` texts of `length` tokens, the first one of each included: the same ones each time."""
    first = np.random.default_rng(0).integers(0, backend.config.vocab_size, count)
    first[::2] = _END_OF_DOCUMENT
    scheduler = Scheduler(backend, min(count, backend.batch_size))
    ending = Ending(_NO_END, (), length - 1)
    handles = [
        scheduler.submit(Request([int(token)], Sampler(SamplingSettings(seed=seed)), ending))
        for seed, token in enumerate(first)
    ]
    return [
        [int(token), *(choice.token for choice in handle)]
        for token, handle in zip(first, handles, strict=True)
    ]
