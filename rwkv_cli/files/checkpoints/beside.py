"""What the place of a checkpoint says about it: its vocabulary, and what it is called."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from rwkv_cli.errors import CheckpointError, TokenizerError
from rwkv_cli.files.checkpoints.end_tokens import end_tokens_beside
from rwkv_cli.files.checkpoints.small_files import MAX_JSON, read_limited
from rwkv_cli.text.tokenizer import TokenizerSpec, WorldTokenizer, WorldVocabulary

CONFIG = "config.json"
WORLD_VOCAB_SIZE = 65_536
"""The rows of the published World models."""

_WORLD_IDS = 65_530  # the vocabulary has fewer: its highest id + 1
_WORLD_FILE = "rwkv_vocab_v20230424.txt"
_WORLD_SHA256 = "8324476023347dec2964625ccb2075c864d250a9c6d9a74f36daba628de8c008"
_MAX_VOCABULARY = 16 << 20  # the published one has 1.2 MB

_SUFFIX = re.compile(r"\.(pth|pt|bin|gguf|safetensors|st)", re.IGNORECASE)
# What the files of any model are called, and digests: names of commits, and of files in the hub's cache.
_GENERIC = re.compile(r"(pytorch_)?model(-\d+-of-\d+)?|[0-9a-f]{40}|[0-9a-f]{64}", re.IGNORECASE)
# In the hub's cache: models--OWNER--NAME/snapshots/COMMIT/FILE, a link to models--OWNER--NAME/blobs/DIGEST.
_SNAPSHOTS, _BLOBS, _MODELS = "snapshots", "blobs", "models--"
_MAX_NAME = 100


# -------------------------------------------------------------------------------------------------- the vocabulary


def tokenizer_beside(folder: Path, vocab_size: int) -> TokenizerSpec | None:
    """The vocabulary of a model with `vocab_size` rows whose weights are in `folder`, or None.

    The first of: the folder's World vocabulary, if its ids fit; the folder's `tokenizer.json`; the packaged World
    vocabulary for models of its size. Raises CheckpointError if the file to be used is damaged or too large.
    """
    world = _world_beside(folder / _WORLD_FILE, vocab_size)
    if world is not None:
        return world
    usual = TokenizerSpec("world") if vocab_size == WORLD_VOCAB_SIZE else None
    file = folder / "tokenizer.json"
    if not file.is_file():
        return usual
    data = read_limited(file, MAX_JSON, "vocabulary")
    if _is_trie(data):
        return TokenizerSpec("world") if vocab_size >= _WORLD_IDS else None
    return TokenizerSpec("tokenizer.json", data, end_tokens_beside(folder, data, vocab_size))


def _world_beside(file: Path, vocab_size: int) -> TokenizerSpec | None:
    """The World vocabulary of a folder; None if there is none, or one with ids that the model does not have."""
    if not file.is_file():
        return None
    data = read_limited(file, _MAX_VOCABULARY, "World vocabulary").replace(b"\r\n", b"\n")
    if hashlib.sha256(data).hexdigest() == _WORLD_SHA256:
        return TokenizerSpec("world") if vocab_size >= _WORLD_IDS else None
    try:
        vocabulary = WorldVocabulary.from_text(data)
    except TokenizerError as error:
        raise CheckpointError(f"{file} cannot be read: {error}; get it again or remove it") from None
    if len(vocabulary) > vocab_size:
        return None
    return TokenizerSpec("world") if _is_packaged(vocabulary) else TokenizerSpec("world", data)


def _is_packaged(vocabulary: WorldVocabulary) -> bool:
    packaged = WorldTokenizer()
    return len(vocabulary) == packaged.vocab_size and all(
        vocabulary[token] == packaged.token_bytes(token) for token in range(len(vocabulary))
    )


def _is_trie(data: bytes) -> bool:
    """Whether a `tokenizer.json` holds the World vocabulary, as a type that only a fork of `tokenizers` knows."""
    if b'"RwkvTrie"' not in data:
        return False
    try:
        model = json.loads(data).get("model")
    except (ValueError, RecursionError, AttributeError):
        return False
    return isinstance(model, dict) and model.get("type") == "RwkvTrie"


# -------------------------------------------------------------------------------------------------------- the name


def model_name(files: Sequence[Path], is_folder: bool = False) -> str:
    """What a model in these files is called: after its only file, otherwise or if `is_folder` after their folder.

    It does not depend on how the path is written. A file called `model` or the like gives its folder's name, and the
    hub's cache that of the repository. Never empty.
    """
    file = Path(os.path.abspath(files[0]))  # noqa: PTH100  # without following links, as resolve() would
    stem = without_suffix(file.name)
    if len(files) == 1 and not is_folder and not _GENERIC.fullmatch(stem):
        return stem
    folder = file.parent
    repository = folder.parent if folder.name == _BLOBS else folder.parent.parent
    is_cached = folder.name == _BLOBS or folder.parent.name == _SNAPSHOTS
    if is_cached and repository.name.startswith(_MODELS):
        return repository.name.rpartition("--")[2] or stem
    return folder.name or stem


def without_suffix(name: str) -> str:
    """The name of a file without the ending of a checkpoint; other dots belong to the name, as in "0.1b"."""
    stem, dot, suffix = name.rpartition(".")
    return stem if stem and _SUFFIX.fullmatch(dot + suffix) else name


def sensible_name(text: str | None) -> str | None:
    """A name that a file gives its model, or None if nobody would call a model that."""
    name = without_suffix((text or "").strip())
    is_plain = name.isprintable() and not set(name) & {"/", "\\", "\N{REPLACEMENT CHARACTER}"}
    is_name = any(character.isalnum() for character in name) and not _GENERIC.fullmatch(name)
    return name if is_plain and is_name and len(name) <= _MAX_NAME else None
