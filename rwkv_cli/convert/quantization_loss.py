"""What a conversion costs: how differently a text is predicted, questions answered, and the error of each tensor."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cpu_kernels.runtime.leftovers import temporary_beside
from rwkv_cli.convert.conversion import Source, convert
from rwkv_cli.engine.backends import registry
from rwkv_cli.engine.backends.base import Backend
from rwkv_cli.errors import UnsupportedModelError, UsageError
from rwkv_cli.evaluation.comparison import Comparison, compare_models
from rwkv_cli.evaluation.questions import Question
from rwkv_cli.evaluation.text import windows_of
from rwkv_cli.files.atomic import storage_error
from rwkv_cli.files.model_file import ModelFile
from rwkv_cli.files.weight_layouts import WeightType
from rwkv_cli.files.weight_source import WeightSource
from rwkv_cli.reporting import Reporter
from rwkv_cli.text.tokenizer import Tokenizer, load_tokenizer

WINDOWS = 4
LENGTH = 512
"""The most windows, spread over the text, and the most predictions in each of them."""

_LARGE = 1_000_000_000  # weights; up to this, the original is measured in float32, beyond it in float16


@dataclass(frozen=True)
class TensorError:
    """The error of a tensor: the norm of the difference, relative to the norm of the original."""

    name: str
    weight_type: WeightType
    relative: float


@dataclass(frozen=True)
class Loss:
    """What was measured."""

    models: Comparison
    tensors: list[TensorError]  # the worst first


def tokenizer_of(source: Source) -> Tokenizer:
    """The tokenizer of a model. Raises UsageError if it has none."""
    spec = source.info("int8", digest=False).tokenizer
    if spec is None:
        raise UsageError(f"{source.path} has no tokenizer, so a text cannot be compared")
    return load_tokenizer(spec, source.config.vocab_size)


def tokens_of(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of a text. Raises UsageError for too short a text."""
    tokens = tokenizer.encode(text)
    if len(tokens) < 2:
        raise UsageError("the text to compare with is too short: it must have at least two tokens")
    return tokens


def compare(
    source: Source,
    target: Path,
    tokenizer: Tokenizer,
    tokens: list[int],
    questions: Sequence[Question],
    reporter: Reporter,
) -> Loss:
    """Measure a model file against what it was made of. Raises StorageError if the disk has no space for that."""
    after = ModelFile(target)
    windows = windows_of(tokens, LENGTH, WINDOWS)
    with _original(source, target.parent, reporter) as original:
        models = compare_models(
            _backend(original, reporter), _backend(after, reporter), tokenizer, windows, questions
        )
    return Loss(models, tensor_errors(source.weights, after))


def tensor_errors(original: WeightSource, made: ModelFile) -> list[TensorError]:
    """The error of each tensor, the worst first; one tensor is in memory at a time."""
    errors = []
    for name in made.config.tensor_shapes():
        before = original.tensor(name).reshape(-1)
        difference = made.tensor(name).reshape(-1) - before
        # In float64: squares of tiny or huge weights underflow or overflow float32.
        length, off = (math.sqrt(_square(vector)) for vector in (before, difference))
        relative = off / length if length else (0.0 if off == 0 else math.inf)
        errors.append(TensorError(name, made.info.type_of(name), relative))
    return sorted(errors, key=lambda error: -error.relative)


def _square(vector: np.ndarray[tuple[int], np.dtype[np.float32]]) -> float:
    step = 1 << 20
    parts = (vector[i : i + step].astype(np.float64) for i in range(0, vector.size, step))
    return float(sum(np.dot(part, part) for part in parts))


@contextmanager
def _original(source: Source, folder: Path, reporter: Reporter) -> Iterator[ModelFile]:
    """The original model in a file that the CPU backend can run: its own, or a temporary one beside the target."""
    if isinstance(source.weights, ModelFile):
        yield source.weights
        return
    kind: WeightType = "fp16" if source.config.n_params > _LARGE else "fp32"
    temporary = temporary_beside(folder / "compare")
    try:
        temporary.mkdir()
    except OSError as error:
        raise storage_error(folder, error) from None
    try:
        path = temporary / "original.safetensors"
        reporter.note(f"writing the original in {kind} for the comparison, which is removed afterwards")
        try:
            convert(source, path, kind, reporter)
        except UnsupportedModelError:  # values beyond float16
            convert(source, path, "fp32", reporter)
        yield ModelFile(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _backend(file: ModelFile, reporter: Reporter) -> Backend:
    # The CPU runs all types: both sides of the comparison are computed the same way.
    return registry.open_backend("cpu", file, None, reporter.compiling).backend
