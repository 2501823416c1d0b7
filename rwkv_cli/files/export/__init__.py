"""Exporting: a model that rwkv can read becomes a file for other programs.

    pth    the official format, for PyTorch and the package `rwkv`; written without PyTorch
    hf     a folder for Hugging Face's transformers with flash-linear-attention
    st     a safetensors file for web-rwkv and Ai00
    gguf   a file for llama.cpp

`write` holds one tensor at a time in memory, and nothing appears under its name before it is complete.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from rwkv_cli.errors import UsageError
from rwkv_cli.files.weight_source import WeightProgress, WeightSource
from rwkv_cli.tensors import Format
from rwkv_cli.text.tokenizer import TokenizerSpec

ExportType = Literal["bf16", "fp16", "fp32", "q8_0"]
FORMATS: tuple[Format, ...] = get_args(Format)

_TYPES: dict[Format, tuple[ExportType, ...]] = {  # the default first
    "pth": ("bf16", "fp16", "fp32"),
    "hf": ("bf16", "fp16", "fp32"),
    "st": ("fp16", "bf16", "fp32"),  # web-rwkv reads fp16 alone
    "gguf": ("fp16", "q8_0", "fp32"),
}


@dataclass(frozen=True)
class ExportJob:
    """What to write."""

    source: WeightSource
    name: str  # of the model, for formats that store one
    tokenizer: TokenizerSpec | None
    type: ExportType
    progress: WeightProgress


def type_for(format: Format, wanted: ExportType | None) -> ExportType:
    """The type of weights to write; None stands for the format's default. Raises UsageError for a wrong one."""
    if wanted is None:
        return _TYPES[format][0]
    if wanted not in _TYPES[format]:
        raise UsageError(
            f"{{type={wanted}}} does not work with {{format={format}}}: choose one of {', '.join(_TYPES[format])}"
        )
    return wanted


def format_of(target: Path) -> Format:
    """The format that a file name implies. Raises UsageError if it implies none."""
    suffix = target.suffix.lower().lstrip(".")
    named: Format | None = next((format for format in FORMATS if format == suffix != "hf"), None)
    if named:
        return named
    if not suffix and not target.is_file():
        return "hf"
    raise UsageError(f"{target.name} does not imply a format: set {{format}} to one of {', '.join(FORMATS)}")


def write(format: Format, target: Path, job: ExportJob) -> None:
    """Write a file, for hf a folder.

    Raises StorageError, UnsupportedModelError for values too large for the type, UsageError for a tokenizer that the
    format cannot hold.
    """
    if format == "pth":
        from rwkv_cli.files.export.pth import write_pth

        write_pth(target, job)
    elif format == "hf":
        from rwkv_cli.files.export.hf import write_hf

        write_hf(target, job)
    elif format == "st":
        from rwkv_cli.files.export.st import write_st

        write_st(target, job)
    else:
        from rwkv_cli.files.export.gguf import write_gguf

        write_gguf(target, job)
