"""The tokenizer that a GGUF file carries in its keys, as a `TokenizerSpec`."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rwkv_cli.errors import CheckpointError
from rwkv_cli.files.checkpoints.beside import WORLD_VOCAB_SIZE
from rwkv_cli.text.tokenizer import TokenizerSpec

_PREFIX = "tokenizer.ggml."
# Values of tokenizer.ggml.token_type.
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4
# Values of tokenizer.ggml.pre whose words are split as GPT-2 does; others need other splitting rules.
_GPT2_SPLITS = (None, b"default", b"gpt-2", b"mpt", b"olmo", b"phi-2", b"jais")

_ESCAPE = re.compile(rb"\\(x[0-9a-fA-F]{2}|.)", re.DOTALL)
_NAMED_ESCAPES = {b"t": b"\t", b"n": b"\n", b"r": b"\r"}


def tokenizer_spec(path: Path, keys: dict[str, object]) -> TokenizerSpec | None:
    """The tokenizer in a file's keys, or None if it has none of a kind that RWKV models use.

    Raises CheckpointError if it is damaged.
    """
    model = keys.get(_PREFIX + "model")
    if model not in (b"rwkv", b"gpt2"):
        return None
    tokens = _strings(keys, "tokens")
    types = keys.get(_PREFIX + "token_type", np.array([_CONTROL] + [_NORMAL] * (len(tokens) - 1)))
    if not isinstance(types, np.ndarray) or not 0 < len(tokens) == len(types):
        raise CheckpointError(f"{path} has a damaged tokenizer: get the file again")
    if model == b"rwkv":
        is_world = len(tokens) == WORLD_VOCAB_SIZE
        return TokenizerSpec("world", None if is_world else _vocabulary(tokens, types.tolist()))
    if keys.get(_PREFIX + "pre") not in _GPT2_SPLITS:
        return None
    try:
        data = _byte_level_bpe(tokens, types.tolist(), _strings(keys, "merges"))
        return TokenizerSpec("tokenizer.json", data, _ends(keys, len(tokens)))
    except ValueError:
        raise CheckpointError(f"{path} has a damaged tokenizer: get the file again") from None


def _ends(keys: dict[str, object], n_tokens: int) -> tuple[int, ...]:
    """The tokens that end a document or a turn, the former first; without those that the vocabulary lacks."""
    found = [keys.get(f"{_PREFIX}{name}_token_id") for name in ("eos", "eot")]
    return tuple(dict.fromkeys(token for token in found if type(token) is int and 0 <= token < n_tokens))


def unescape(token: bytes) -> bytes:
    r"""The bytes of a token as llama.cpp writes it: the inside of a Python literal, such as `\xe4\n`."""

    def plain(match: re.Match[bytes]) -> bytes:
        code = match[1]
        return bytes([int(code[1:], 16)]) if len(code) == 3 else _NAMED_ESCAPES.get(code, code)

    return _ESCAPE.sub(plain, token)


def _strings(keys: dict[str, object], name: str) -> list[bytes]:
    values = keys.get(_PREFIX + name)
    return values if isinstance(values, list) else []


def _vocabulary(tokens: Sequence[bytes], types: Sequence[int]) -> bytes:
    """The lines of a World vocabulary: id, Python literal, length; padding and the end of a document have no line."""
    lines = []
    for index, (token, code) in enumerate(zip(tokens, types, strict=True)):
        if code == _NORMAL:
            text = unescape(token)
            lines.append(f"{index} {text!r} {len(text)}\n")
    return "".join(lines).encode()


def _byte_level_bpe(tokens: Sequence[bytes], types: Sequence[int], merges: Sequence[bytes]) -> bytes:
    """A file of the `tokenizers` library. Raises ValueError for tokens that are not text or occur twice."""
    vocabulary = {token.decode(): index for index, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise ValueError("a token occurs twice")
    added = [
        {"id": index, "content": token.decode(), "special": code == _CONTROL, "normalized": False}
        | {"single_word": False, "lstrip": False, "rstrip": False}
        for index, (token, code) in enumerate(zip(tokens, types, strict=True))
        if code in (_CONTROL, _USER_DEFINED)
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    content = {
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": [merge.decode() for merge in merges]},
    }
    return json.dumps(content, ensure_ascii=False).encode()
