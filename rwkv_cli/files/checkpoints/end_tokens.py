"""Which tokens end a document, as the files beside a checkpoint say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rwkv_cli.errors import CheckpointError
from rwkv_cli.files.checkpoints.small_files import read_json

# The first that says something is believed. config.json is the last one: what it has may be the default of a class.
_FILES = ("tokenizer_config.json", "generation_config.json", "special_tokens_map.json", "config.json")
_MOST = 64  # more are a mistake


def end_tokens_beside(folder: Path, tokenizer: bytes, vocab_size: int) -> tuple[int, ...]:
    """The ids that end a document in a model with this tokenizer.json, the main one first; empty where nothing is said.

    Damaged files say nothing.
    """
    ids = _ids_of(tokenizer)
    for name in _FILES:
        found = [token for token in _named(folder / name, ids) if 0 <= token < vocab_size]
        if found:
            return tuple(dict.fromkeys(found))[:_MOST]
    return ()


def _named(path: Path, ids: dict[str, int]) -> Iterator[int]:
    """The ids of `eos_token` and `eos_token_id` in a file."""
    try:
        settings = read_json(path) if path.is_file() else {}
    except (CheckpointError, OSError):
        return
    text = settings.get("eos_token")
    if isinstance(text, dict):  # with its attributes
        text = text.get("content")
    if isinstance(text, str) and text in ids:
        yield ids[text]
    token = settings.get("eos_token_id")
    for each in token if isinstance(token, list) else [token]:
        if type(each) is int:
            yield each


def _ids_of(tokenizer: bytes) -> dict[str, int]:
    """Piece -> id of a tokenizer.json; empty if it is damaged, which is for others to say."""
    try:
        content: dict[str, Any] = json.loads(tokenizer)
        pieces = content["model"]["vocab"]
        pieces = pieces if isinstance(pieces, dict) else {}
        added = {entry["content"]: entry["id"] for entry in content.get("added_tokens", ())}
        return {text: token for text, token in {**pieces, **added}.items() if type(token) is int}
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return {}
