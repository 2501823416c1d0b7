"""Models that are not RWKV-7, recognised by their tensors' names, so that they can be refused by name."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

NOT_RECOGNISED = "is not a recognised model file (.pth, .gguf, .st, .safetensors)"


class _Signature(NamedTuple):
    """A kind of model: each pattern occurs in some of its tensor names, `absent` in none."""

    kind: str
    patterns: tuple[str, ...]
    absent: str = r"(?!)"


_RWKV7 = r"\.r_k\b|time_mix_r_k"
_ATTENTION = (
    r"\bself_attn\.|\bq_proj\b|query_key_value|\bc_attn\b|\bin_proj_weight$|\battn_(q|k|qkv)\b|\bw[qk]\.weight$"
    r"|\battention\.(self\.)?query\b"
)

# The first row that matches is the answer. Official names and those of Hugging Face exports share these parts.
_SIGNATURES = (
    _Signature(
        "is an RWKV-7a or RWKV-7b model (DeepEmbed)",
        (_RWKV7, r"\b(ffn|feed_forward|mlp)\.(s_emb|s[012]$)|\bqkv\b"),
    ),
    _Signature("is a hybrid of RWKV-7 and a transformer", (_RWKV7, _ATTENTION)),
    _Signature("is an RWKV-6 model (Finch)", (r"\btime_maa_",)),
    _Signature("is an RWKV-5 model (Eagle)", (r"\btime_decay$", r"\bln_x\.weight$")),
    _Signature("is an RWKV-4 model (Raven)", (r"\btime_decay$",)),
    _Signature("is a LoRA adapter, not a model: merge it into its base model first", (r"\blora_[AB]\b",)),
    _Signature("is a transformer", (_ATTENTION,)),
    _Signature("is a tuned initial state, not a model", (r"\batt\.time_state$",), absent=_RWKV7),
)

# What config.json (model_type) and GGUF (general.architecture) call their models.
_MODEL_TYPES = {
    "rwkv4": "is an RWKV-4 model (Raven)",
    "rwkv5": "is an RWKV-5 model (Eagle)",
    "rwkv6": "is an RWKV-6 model (Finch)",
    "rwkv6qwen2": "is a hybrid of RWKV-6 and Qwen2",
    "arwkv7": "is a hybrid of RWKV-7 and a transformer",
    "rwkv_hybrid": "is a hybrid of RWKV-7 and a transformer",
}
# "rwkv" was RWKV-4 in transformers, and is RWKV-7 for rwkv-rs: the tensors tell them apart.
_ANY_RWKV7 = (None, "", "rwkv7", "rwkv")


def describe_foreign(names: Iterable[str], model_type: str | None = None) -> str | None:
    """What the file is ("is an RWKV-6 model (Finch)"), or None if it may be RWKV-7.

    `model_type` is what the file calls itself, if it does. A file without any sign of RWKV-7 or of another kind
    is `NOT_RECOGNISED`.
    """
    called = None if model_type in _ANY_RWKV7 else _printable(str(model_type))
    if called in _MODEL_TYPES:
        return _MODEL_TYPES[called]
    names = list(names)

    def occurs(pattern: str) -> bool:
        return any(re.search(pattern, name) for name in names)

    for kind, patterns, absent in _SIGNATURES:
        if all(map(occurs, patterns)) and not occurs(absent):
            return f"{kind} ({called})" if called and "transformer" in kind else kind
    if called:
        return f"is a model of the type {called}"
    if not occurs(_RWKV7):
        return NOT_RECOGNISED
    return None


def _printable(text: str) -> str:
    """A name from a file, short and without control characters, fit for a message."""
    return "".join(character for character in text[:40] if character.isprintable())
