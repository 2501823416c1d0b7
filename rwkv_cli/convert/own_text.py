"""Text that a model writes itself: for measuring and calibrating where there is no other.

Each piece begins with another token, drawn from the whole vocabulary: so the pieces differ more than what a model
writes from the beginning of a document. (Liu et al., 2023, "LLM-QAT: Data-Free Quantization Aware Training for Large
Language Models", section 3.1.)
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cpu_kernels.runtime.leftovers import temporary_beside
from rwkv_cli.convert.conversion import Source, convert
from rwkv_cli.engine.backends import registry
from rwkv_cli.engine.backends.base import Backend
from rwkv_cli.engine.generate import Ending
from rwkv_cli.engine.sampling import Sampler
from rwkv_cli.engine.scheduler import Request, Scheduler
from rwkv_cli.files.atomic import storage_error
from rwkv_cli.files.model_file import ModelFile
from rwkv_cli.reporting import Reporter
from rwkv_cli.sampling_settings import SamplingSettings

_NO_END = -1  # a text goes on after the end of a document


def pieces(backend: Backend, count: int, length: int) -> list[list[int]]:
    """`count` texts of `length` tokens, the first one of each included: the same ones each time."""
    first = np.random.default_rng(0).integers(0, backend.config.vocab_size, count)
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


def of_source(source: Source, folder: Path, count: int, length: int, reporter: Reporter) -> Sequence[int]:
    """Such texts of a model that was not converted yet, one after another; it runs in int8, from a file in `folder`.

    The file is removed. Raises StorageError, and what `convert` raises.
    """
    temporary = temporary_beside(folder / "own-text")
    try:
        temporary.mkdir()
    except OSError as error:
        raise storage_error(folder, error) from None
    try:
        file = temporary / "int8.safetensors"
        convert(source, file, "int8", reporter)
        backend = registry.open_backend("cpu", ModelFile(file), None, reporter.compiling).backend
        return [token for piece in pieces(backend, count, length) for token in piece]
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
