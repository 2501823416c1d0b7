"""Converting any readable model to a model file: a published checkpoint, or a model file of another type."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rwkv_cli.config import ModelConfig
from rwkv_cli.convert.lora import Merged
from rwkv_cli.convert.template_choice import ChosenTemplate, choose_template
from rwkv_cli.files import weight_layouts
from rwkv_cli.files.checkpoints import Checkpoint, open_checkpoint
from rwkv_cli.files.model_file import ModelFile, ModelInfo, is_model_file, write_model
from rwkv_cli.files.weight_layouts import WEIGHT_TYPES, Rounder, WeightType
from rwkv_cli.files.weight_source import WeightSource
from rwkv_cli.reporting import Reporter
from rwkv_cli.text.tokenizer import load_tokenizer

Array = NDArray[np.float32]

# How the types of llama.cpp begin whose weights are few bits and shared scales.
_QUANTIZED = ("q", "iq", "tq", "mxfp4", "nvfp4")
_HEADER_BYTES = 110  # per tensor, approximately


def describe(
    checkpoint: Checkpoint,
    weight_type: WeightType,
    digest: bool = False,
    chosen: ChosenTemplate | None = None,
) -> ModelInfo:
    """The `ModelInfo` of a model file made of this checkpoint; `digest` reads the whole file for its sha256.

    `chosen` is its prompt template; without it, the one that its files bring, or that its name implies.
    """
    chosen = chosen or choose_template(checkpoint)
    source = {"name": source_name(checkpoint), "format": checkpoint.format}
    return ModelInfo(
        config=checkpoint.config,
        weight_type=weight_type,
        tokenizer=checkpoint.tokenizer,
        template=chosen.template,
        template_from=chosen.origin,
        source=source | ({"sha256": checkpoint.sha256()} if digest else {}),
    )


def source_name(checkpoint: Checkpoint) -> str:
    """What a checkpoint is called, with the ending of a file that has this name itself."""
    file = checkpoint.path.name
    return file if file.startswith(checkpoint.name) else checkpoint.name


def convert_checkpoint(
    checkpoint: Checkpoint,
    target: Path,
    weight_type: WeightType,
    reporter: Reporter | None = None,
    chosen: ChosenTemplate | None = None,
    sampling: Mapping[str, float] | None = None,
    source: Mapping[str, str] | None = None,
) -> None:
    """Quantize a checkpoint into a model file; all or nothing. Raises StorageError, CheckpointError, TokenizerError.

    `chosen` is as for `describe`; `sampling` are defaults of the model, over those of its template; `source` is
    recorded as its origin, beside what is known from the checkpoint.
    """
    source = source or {}
    info = describe(checkpoint, weight_type, digest="sha256" not in source, chosen=chosen)
    info = replace(info, source={**info.source, **source}, sampling=sampling or {})
    if info.tokenizer:
        load_tokenizer(info.tokenizer, info.config.vocab_size)  # refuse a vocabulary that does not fit
    write_model(target, checkpoint, info, (reporter or Reporter()).quantizing)


@dataclass(frozen=True)
class Source:
    """A model to be converted: its weights and what is known about them."""

    path: Path
    files: tuple[Path, ...]
    dtype: str  # of most weights, as its own format calls it
    weights: WeightSource
    origin: Checkpoint | ModelFile

    @property
    def adapter(self) -> str | None:
        """The name of the LoRA that is merged, if one is."""
        return self.weights.path.name if isinstance(self.weights, Merged) else None

    @property
    def remark(self) -> str | None:
        """What the user should know of how the LoRA is merged, if anything."""
        return self.weights.remark if isinstance(self.weights, Merged) else None

    @property
    def config(self) -> ModelConfig:
        """The sizes of the model."""
        return self.weights.config

    @property
    def bytes(self) -> int:
        """The size of its files."""
        return sum(file.stat().st_size for file in self.files)

    @property
    def is_quantized(self) -> bool:
        """Whether its weights were rounded to a few bits before, so that converting them rounds a second time."""
        integers = (*weight_layouts.INTEGERS, weight_layouts.MIXED)
        return self.dtype in integers or self.dtype.startswith(_QUANTIZED)

    def tensor(self, name: str) -> Array:
        """One tensor in float32, by its official name."""
        return self.weights.tensor(name)

    def info(
        self, weight_type: WeightType, chosen: ChosenTemplate | None = None, digest: bool = True
    ) -> ModelInfo:
        """The `ModelInfo` of a model file made of it; `digest` reads a checkpoint for its sha256."""
        if isinstance(self.origin, ModelFile):
            info = replace(self.origin.info, weight_type=weight_type, narrow=frozenset())
            info = replace(info, source={**info.source, "converted_from": self.dtype})
            if chosen:
                info = replace(info, template=chosen.template, template_from=chosen.origin, sampling={})
        else:
            info = describe(self.origin, weight_type, digest, chosen)
        if isinstance(self.weights, Merged):
            source = {**info.source, "lora": self.weights.path.name, "lora_alpha": repr(self.weights.alpha)}
            if settings := self.weights.settings:
                source["lora_config"] = settings.sha256
            if digest and "sha256" in source:  # a different model now, which states of the base do not fit
                parts = [source["sha256"], self.weights.sha256(), source["lora_alpha"]]
                parts += [source["lora_config"]] if "lora_config" in source else []
                source |= {
                    "base_sha256": source["sha256"],
                    "sha256": hashlib.sha256(" ".join(parts).encode("utf-8", "surrogatepass")).hexdigest(),
                }
            info = replace(info, source=source)
        return info


def open_source(path: Path, lora: Path | None = None, alpha: float | None = None) -> Source:
    """Open a model of any format, with a LoRA adapter merged into it if one is given, as a file or its folder.

    `alpha` is needed unless an adapter_config.json beside the adapter has it.

    Raises CheckpointError, ModelFileError, UsageError.
    """
    origin: Checkpoint | ModelFile
    files: tuple[Path, ...]
    if is_model_file(path):
        origin = ModelFile(path)
        files, dtype = (path,), str(origin.info.weight_type)
    else:
        origin = open_checkpoint(path)
        files, dtype = origin.files, origin.dtype
    if lora is None:
        return Source(path, files, dtype, origin, origin)
    merged = Merged(origin, lora, alpha)
    return Source(path, (*files, merged.path), dtype, merged, origin)


def convert(
    source: Source,
    target: Path,
    weight_type: WeightType,
    reporter: Reporter,
    chosen: ChosenTemplate | None = None,
    rounder: Rounder | None = None,
) -> None:
    """Write a model file; all or nothing. Raises StorageError, CheckpointError, TokenizerError.

    `rounder` takes the place of rounding int4 to the nearest, see `calibration`.
    """
    info = source.info(weight_type, chosen)
    if info.tokenizer:
        load_tokenizer(info.tokenizer, info.config.vocab_size)  # refuse a vocabulary that does not fit
    write_model(target, source.weights, info, reporter.quantizing, rounder)


def file_bytes(source: Source, weight_type: WeightType) -> int:
    """The estimated size of a model file of this type: exact for the weights, approximate for the header."""
    info = source.info(weight_type, digest=False)
    sizes = weight_layouts.stored_bytes(source.config, weight_type)
    vocabulary = len((info.tokenizer.data if info.tokenizer else None) or b"")
    return sum(sizes.values()) + vocabulary + _HEADER_BYTES * len(sizes)


def plan(source: Source, bytes_per_second: float | None) -> list[dict[str, float | int | str | None]]:
    """For each type of weights: the size of the file, and the most tokens per second that this memory allows."""
    rows: list[dict[str, float | int | str | None]] = []
    for weight_type in WEIGHT_TYPES:
        moved = weight_layouts.bytes_per_token(source.config, weight_type)
        speed = bytes_per_second / moved if bytes_per_second else None
        size = file_bytes(source, weight_type)
        rows.append(
            {"type": weight_type, "file_bytes": size, "bytes_per_token": moved, "tokens_per_second": speed}
        )
    return rows
