"""The way back: a model that rwkv can read becomes a file that other programs can.

    pth    the official format, for PyTorch and the package rwkv; written without PyTorch
    hf     a folder for Hugging Face's transformers with flash-linear-attention
    gguf   a file for llama.cpp

`write` holds one tensor at a time in memory, and nothing appears under its name before it is whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from rwkv_cli.errors import UsageError
from rwkv_cli.files.weight_source import WeightSource
from rwkv_cli.text.tokenizer import TokenizerSpec

ExportFormat = Literal["pth", "hf", "gguf"]
ExportType = Literal["bf16", "fp16", "fp32", "q8_0"]
FORMATS: tuple[ExportFormat, ...] = get_args(ExportFormat)

_TYPES: dict[ExportFormat, tuple[ExportType, ...]] = {  # the default first
    "pth": ("bf16", "fp16", "fp32"),
    "hf": ("bf16", "fp16", "fp32"),
    "gguf": ("fp16", "q8_0", "fp32"),
}

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Export:
    """What to write."""

    source: WeightSource
    name: str  # of the model, for files that bear one
    tokenizer: TokenizerSpec | None
    type: ExportType
    progress: Progress


def type_for(format: ExportFormat, wanted: ExportType | None) -> ExportType:
    """The type of weights to write, the format's default if none is wanted. Raises UsageError for one it lacks."""
    if wanted is None:
        return _TYPES[format][0]
    if wanted not in _TYPES[format]:
        raise UsageError(
            f"--format {format} has no --type {wanted}: choose among {', '.join(_TYPES[format])}"
        )
    return wanted


def format_of(target: Path) -> ExportFormat:
    """The format that a name shows. Raises UsageError where it shows none."""
    suffix = target.suffix.lower().lstrip(".")
    if suffix in ("pth", "gguf"):
        return "pth" if suffix == "pth" else "gguf"
    if not suffix and not target.is_file():
        return "hf"
    raise UsageError(
        f"{target.name} does not show which format is meant: give --format, one of {', '.join(FORMATS)}"
    )


def write(format: ExportFormat, target: Path, what: Export) -> None:
    """Write a file, for hf a folder. Raises StorageError, UnsupportedModelError for values too large for the type."""
    if format == "pth":
        from rwkv_cli.files.export.pth import write_pth

        write_pth(target, what)
    elif format == "hf":
        from rwkv_cli.files.export.hf import write_hf

        write_hf(target, what)
    else:
        from rwkv_cli.files.export.gguf import write_gguf

        write_gguf(target, what)
