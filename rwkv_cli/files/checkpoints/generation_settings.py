"""How a Hugging Face folder wants its model to be sampled: generation_config.json, perhaps by mode of thinking."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rwkv_cli.errors import CheckpointError, UsageError
from rwkv_cli.files.checkpoints.small_files import read_json
from rwkv_cli.sampling_settings import NUMERIC_FIELDS, parse_defaults

# The file of each mode; without a thought, the second one.
_FILES = {"on": "generation_config.json", "off": "fake_think_generation_config.json"}

Settings = Mapping[str, Mapping[str, float]]
"""Fields of `SamplingSettings` by mode of thinking; "on" stands for a model without modes too."""


def settings_of_folder(folder: Path) -> Settings:
    """What a folder brings; what is damaged, invalid or greedy by default is left out."""
    found = {mode: _read(folder / file) for mode, file in _FILES.items()}
    return {mode: settings for mode, settings in found.items() if settings}


def _read(path: Path) -> Mapping[str, float]:
    try:
        content: dict[str, Any] = read_json(path) if path.is_file() else {}
        if content.get("do_sample") is not True:  # the other fields mean nothing then
            return {}
        chosen = {name: content[name] for name in NUMERIC_FIELDS if content.get(name) is not None}
        return parse_defaults(chosen)
    except (CheckpointError, UsageError, OSError):
        return {}
