"""Which files of a repository make up its model: a single file, or weights with their configuration and vocabulary."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from rwkv_cli.catalog.names import is_relative_file
from rwkv_cli.errors import DownloadError, UnsupportedModelError, UsageError

# The files of a folder in the layout of Hugging Face that a conversion reads.
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_INDEX = ".index.json"
# What belongs to the weights, where it is there: sizes, vocabularies, and how to talk to the model.
_BESIDES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "fake_think_generation_config.json",
    "chat_template.jinja",
    "rwkv_vocab_v20230424.txt",
)
_SINGLE = (".pth", ".gguf", ".st")
_FILES = (*_SINGLE, ".safetensors", ".st", ".bin", ".pt")


def model_files(repository: str, available: Sequence[str], read: Callable[[str], Any]) -> tuple[str, ...]:
    """The names of the files of the model among all `available` ones; `read` returns the content of a JSON file.

    Raises UsageError where the choice is not clear, UnsupportedModelError where there is no model, DownloadError where
    one is incomplete.
    """
    top = [name for name in available if "/" not in name and is_relative_file(name)]
    names = _whole_folder(repository, top, read)
    return names or (_only(repository, [name for name in available if name.endswith(_SINGLE)]),)


def may_be_folder(name: str) -> bool:
    """Whether a name in a repository may be that of a folder with a model, rather than of a file with weights."""
    return not name.lower().endswith(_FILES)


def is_folder(names: Sequence[str]) -> bool:
    """Whether these are the files of a folder in the layout of Hugging Face, rather than a single file."""
    return not names[0].endswith(_SINGLE)


def parse_json(data: bytes, what: str) -> Any:
    """JSON values. Raises DownloadError."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise DownloadError(f"{what} is not valid JSON") from None


def _whole_folder(repository: str, top: Sequence[str], read: Callable[[str], Any]) -> tuple[str, ...] | None:
    """The names of the weights and of what belongs to them; None if there are none in this layout."""
    besides = [name for name in _BESIDES if name in top]
    for weights in _WEIGHTS:
        if weights in top:
            return (weights, *besides)
        if weights + _INDEX in top:
            return (*_shards(repository, top, weights, read), weights + _INDEX, *besides)
    single = [name for name in top if name.endswith(".safetensors")]
    return (single[0], *besides) if len(single) == 1 else None


def _shards(repository: str, top: Sequence[str], weights: str, read: Callable[[str], Any]) -> list[str]:
    """The files that the index of the weights lists. Raises DownloadError if one is missing."""
    table = read(weights + _INDEX)
    shards = table.get("weight_map") if isinstance(table, dict) else None
    if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
        raise DownloadError(f"{weights}{_INDEX} of {repository} lists no weight files")
    wanted = sorted(set(shards.values()))
    missing = next((shard for shard in wanted if shard not in top), None)
    if missing is not None:
        raise DownloadError(
            f"{repository} is incomplete: the file {missing[:80]!r} of {weights}{_INDEX} is missing"
        )
    return wanted


def _only(repository: str, candidates: Sequence[str]) -> str:
    """The single candidate. Raises UsageError for several, UnsupportedModelError for none."""
    sound = [name for name in candidates if is_relative_file(name)]
    if not sound:
        raise UnsupportedModelError(
            f"{repository} holds no weights of an RWKV-7 model: no .pth, .gguf or .safetensors"
        )
    if len(sound) > 1:
        shown = ", ".join(sound[:12]) + (", ..." if len(sound) > 12 else "")
        raise UsageError(
            f"{repository} holds {len(sound)} models: name one, hf:{repository}/FILE; there are {shown}"
        )
    return sound[0]
