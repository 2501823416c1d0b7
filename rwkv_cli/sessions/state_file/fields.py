"""The parts of a state file, one by one: encoding, and decoding with every check.

A file is a safetensors header of JSON texts, and tensors. Decoding raises ValueError with half a sentence
about the file ("its metadata ...").
"""

from __future__ import annotations

import codecs
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeVar, cast, get_args

import numpy as np
from numpy.typing import NDArray

from rwkv_cli.engine.constraint import LEADS, ConstraintMemory, Kind
from rwkv_cli.engine.sampling import SamplerMemory
from rwkv_cli.errors import StateError, UsageError
from rwkv_cli.files.safetensors import MappedTensor, Shape
from rwkv_cli.sampling_settings import SAMPLING_FIELDS, SamplingOverrides, check_overrides
from rwkv_cli.sessions.model_identity import ModelIdentity
from rwkv_cli.text import templates
from rwkv_cli.text.template import Template

SCALE = ".scale"

MOST_TEXT = 1 << 28
"""Bytes of text or conversation in a file: two hundred books."""

Array = NDArray[np.float32]
Metadata = Mapping[str, str]
Tensors = Mapping[str, MappedTensor]
Stored = dict[str, tuple[str, NDArray[Any]]]
"""Name -> the type as safetensors has it, and the values."""

T = TypeVar("T")

_MOST_CHARACTERS = 4096  # of a name, a path and the like
_NUMBER = re.compile(r"[0-9]{1,39}")  # below 2 ** 128 there are 39 digits


# ------------------------------------------------------------------------------------------------------------
# Encoding
# ------------------------------------------------------------------------------------------------------------


def store_values(name: str, array: Array, axes: tuple[int, ...], compact: bool) -> Stored:
    """A tensor of the state: as it is, or in float16 with a scale for all values along `axes`, which come last.

    Raises StateError for values that are not finite.
    """
    if not _is_finite(array):
        raise StateError("the state is not saved: it contains NaN or infinity")
    if not compact:
        return {name: ("F32", array)}
    half, scale = _halved(array, axes)
    return {name: ("F16", half), name + SCALE: ("F32", scale)}


def _halved(array: Array, axes: tuple[int, ...]) -> tuple[NDArray[np.float16], Array]:
    """float16, and the scale that it was divided by: a power of two, so that only float16 itself rounds.

    The largest magnitude is then below 2 ** 15, so that nothing overflows, however large it was.
    """
    _, exponent = np.frexp(np.abs(array).max(axes, keepdims=True))
    scale = np.ldexp(np.float32(1), np.clip(exponent - 15, -126, 127)).astype(np.float32)
    return (array / scale).astype(np.float16), scale.reshape(scale.shape[: -len(axes)] or (1,))


def store_penalties(memory: SamplerMemory | None) -> Stored:
    """The counts of a sampler; nothing where there are none."""
    if memory is None or memory.generator is None or not memory.counts:
        return {}
    tokens, counts = memory.counts.keys(), memory.counts.values()
    return {
        "penalty.tokens": ("I64", np.array(list(tokens), np.int64)),
        "penalty.counts": ("F64", np.array(list(counts), np.float64)),
    }


def store_text(name: str, text: str) -> Stored:
    """A text as bytes; nothing for an empty one. Raises StateError for one that is too long."""
    data = text.encode("utf-8", "replace")
    if len(data) > MOST_TEXT:
        limit = f"{MOST_TEXT >> 20} MB"
        raise StateError(
            f"the state is not saved: its {name} is longer than {limit}; leave it out ({{keep_text=false}})"
        )
    return {name: ("U8", np.frombuffer(data, np.uint8))} if data else {}


def checksum(metadata: Metadata, tensors: Stored) -> str:
    """The CRC-32 of all metadata and tensors, by name."""
    crc = 0
    for key in sorted(metadata.keys() - {"checksum"}):
        crc = zlib.crc32(f"{key}={metadata[key]}\n".encode("utf-8", "surrogatepass"), crc)
    for name in sorted(tensors):
        dtype, array = tensors[name]
        shape = ",".join(map(str, array.shape))
        crc = zlib.crc32(f"{name} {dtype} {shape}\n".encode("utf-8", "surrogatepass"), crc)
        crc = zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data, crc)
    return f"{crc:08x}"


def store_constraint(memory: SamplerMemory | None) -> Stored:
    """What the text follows, and how far; nothing where there is nothing."""
    if memory is None or memory.constraint is None:
        return {}
    fields = asdict(memory.constraint)
    thought = memory.constraint.thought
    fields["thought"] = None if thought is None else thought.hex()
    return store_text("constraint", json.dumps(fields, separators=(",", ":")))


def plain_settings(settings: SamplingOverrides) -> dict[str, object]:
    """Settings in types that JSON has."""
    plain: dict[str, object] = dict(settings)
    if banned := settings.get("banned"):
        plain["banned"] = sorted(banned)
    if logit_bias := settings.get("logit_bias"):
        plain["logit_bias"] = {str(token): bias for token, bias in logit_bias.items()}
    return plain


def plain_generator(memory: SamplerMemory | None) -> dict[str, object] | None:
    """The state of PCG64; its two numbers have 128 bits, more than JSON readers keep, and become strings."""
    if memory is None or memory.generator is None:
        return None
    generator, numbers = memory.generator, memory.generator["state"]
    return {
        "kind": generator["bit_generator"],
        "state": str(int(numbers["state"])),
        "increment": str(int(numbers["inc"])),
        "has_half": int(generator["has_uint32"]),
        "half": int(generator["uinteger"]),
    }


# ------------------------------------------------------------------------------------------------------------
# Decoding
# ------------------------------------------------------------------------------------------------------------


def check_checksum(metadata: Metadata, tensors: Tensors) -> None:
    """Compare the checksum, where the file has one, with what there is."""
    if "checksum" not in metadata:
        return
    stored = {name: (tensor.dtype, tensor.array) for name, tensor in tensors.items()}
    if read_string(metadata, "checksum") != checksum(metadata, stored):
        raise ValueError("it is damaged: its checksum is wrong")


def read_values(tensors: Tensors, name: str, shape: Shape, scale_shape: Shape) -> Array:
    """A tensor as float32 of its own, from either form; checked."""
    found = tensors.get(name)
    if found is None or found.dtype not in ("F32", "F16") or found.shape != shape or 0 in shape:
        raise ValueError(f"the tensor {name} is missing or has the wrong type or shape")
    values: Array = np.array(found.array, np.float32, order="C")
    if found.dtype == "F16":
        scale = tensors.get(name + SCALE)
        if scale is None or (scale.dtype, scale.shape) != ("F32", scale_shape):
            raise ValueError(f"the tensor {name + SCALE} is missing or has the wrong type or shape")
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused below
            values *= scale.array.reshape(scale_shape + (1,) * (len(shape) - len(scale_shape)))
    if not _is_finite(values):
        raise ValueError(f"the tensor {name} contains NaN or infinity")
    return values


def _is_finite(array: NDArray[Any]) -> bool:
    # The extremes show both, without a temporary array: NaN wins every comparison.
    return bool(np.isfinite(array.min()) and np.isfinite(array.max()))


def read_identity(metadata: Metadata) -> ModelIdentity:
    """The model that made the state."""
    fields = read_json(metadata, "model", dict)
    names = ("name", "weights", "weight_type", "tokenizer", "location")
    if set(fields) != set(names) or not all(_is_short(value) for value in fields.values()):
        raise ValueError("its metadata has no valid 'model'")
    return ModelIdentity(**fields)


def read_tokens(metadata: Metadata) -> int:
    """How many were read."""
    tokens = read_json(metadata, "tokens", int)
    if not 0 <= tokens < 2**63:
        raise ValueError("its metadata has no valid 'tokens'")
    return tokens


def read_string(metadata: Metadata, key: str) -> str:
    """A short text."""
    value = read_json(metadata, key, str)
    if not _is_short(value):
        raise ValueError(f"its metadata has no valid {key!r}")
    return value


def _is_short(value: object) -> bool:
    return isinstance(value, str) and len(value) <= _MOST_CHARACTERS


def read_template(metadata: Metadata) -> Template | None:
    """The prompt template, if there was one."""
    if metadata.get("template") == "null":
        return None
    return templates.from_json(_value(metadata, "template"))


def read_memory(metadata: Metadata, tensors: Tensors, vocab_size: int | None) -> SamplerMemory | None:
    """What the sampler remembered, if there was one; its tokens are those of a vocabulary of this size."""
    if metadata.get("generator") == "null":
        return None
    fields = read_json(metadata, "generator", dict)
    numbers: list[Any] = [fields.get("state"), fields.get("increment")]
    halves = [fields.get("has_half"), fields.get("half")]
    if (
        fields.get("kind") != "PCG64"
        or not all(isinstance(text, str) and _NUMBER.fullmatch(text) for text in numbers)
        or not all(type(half) is int and 0 <= half < 2**32 for half in halves)
    ):
        raise ValueError("its metadata has no valid 'generator'")
    state, increment = (int(text) for text in numbers)
    if max(state, increment) >= 2**128 or increment % 2 == 0:
        raise ValueError("its metadata has no valid 'generator'")
    generator = {
        "bit_generator": "PCG64",
        "state": {"state": state, "inc": increment},
        "has_uint32": halves[0],
        "uinteger": halves[1],
    }
    return SamplerMemory(_read_counts(tensors, vocab_size), generator)


def _read_counts(tensors: Tensors, vocab_size: int | None) -> dict[int, float]:
    tokens, counts = tensors.get("penalty.tokens"), tensors.get("penalty.counts")
    if tokens is None and counts is None:
        return {}
    if (
        tokens is None
        or counts is None
        or (tokens.dtype, counts.dtype) != ("I64", "F64")
        or tokens.shape != counts.shape
        or len(tokens.shape) != 1
        or 0 in tokens.shape
    ):
        raise ValueError("the penalties are incomplete or have the wrong type or shape")
    found = dict(zip(tokens.array.tolist(), counts.array.tolist(), strict=True))
    if len(found) != len(tokens.array) or min(found) < 0 or max(found) >= (vocab_size or 2**31):
        raise ValueError("the penalties name a token twice, or one outside the vocabulary")
    if not _is_finite(counts.array) or counts.array.min() < 0:
        raise ValueError("a penalty count is negative or not finite")
    return found


def read_settings(metadata: Metadata) -> SamplingOverrides:
    """The sampling settings that were chosen, in the types that `SamplingSettings` has."""
    settings = read_json(metadata, "settings", dict)
    try:
        if "banned" in settings:
            settings["banned"] = frozenset(map(_whole, settings["banned"]))
        if "logit_bias" in settings:
            settings["logit_bias"] = {int(token): bias for token, bias in settings["logit_bias"].items()}
        if settings.get("seed") is not None:
            _whole(settings["seed"])
        if unknown := settings.keys() - set(SAMPLING_FIELDS):
            raise TypeError(f"there is no setting {min(unknown)[:40]!r}")
        check_overrides(cast("SamplingOverrides", settings))
    except (TypeError, AttributeError, ValueError, OverflowError, UsageError) as error:
        raise ValueError(f"its sampling settings are wrong: {str(error)[:80]}") from None
    return cast("SamplingOverrides", settings)


def _whole(value: object) -> int:
    if type(value) is not int:
        raise TypeError(f"{str(value)[:20]} is not a whole number")
    return value


def read_unfinished(metadata: Metadata) -> bytes:
    """The first bytes of a character, if the text ends in the middle of one."""
    if "unfinished" not in metadata:
        return b""
    try:
        data = bytes.fromhex(read_string(metadata, "unfinished"))
        if not data or codecs.getincrementaldecoder("utf-8")().decode(data):
            raise ValueError
    except ValueError:
        raise ValueError("its metadata has no valid 'unfinished'") from None
    return data


def read_text(tensor: MappedTensor | None, what: str) -> str:
    """The text of a tensor of bytes, empty without one."""
    if tensor is None:
        return ""
    if tensor.dtype != "U8" or len(tensor.shape) != 1 or tensor.array.size > MOST_TEXT:
        raise ValueError(f"its {what} is too long, or no text")
    try:
        return tensor.array.tobytes().decode()
    except UnicodeDecodeError:
        raise ValueError(f"its {what} is not UTF-8") from None


def read_conversation(tensor: MappedTensor | None) -> dict[str, object] | None:
    """The JSON object of a tensor of bytes, None without one."""
    if tensor is None:
        return None
    try:
        conversation = json.loads(read_text(tensor, "conversation"))
    except (ValueError, RecursionError):
        conversation = None
    if not isinstance(conversation, dict):
        raise ValueError("its conversation is not a JSON object")
    return conversation


def read_constraint(tensor: MappedTensor | None) -> ConstraintMemory | None:
    """What the text follows, None without one. Whether the tokens follow it is seen when it is used."""
    if tensor is None:
        return None
    try:
        fields = json.loads(read_text(tensor, "constraint"))
        thought = fields["thought"]
        return ConstraintMemory(
            kind=_one_of(fields["kind"], get_args(Kind)),
            source=_text(fields["source"]),
            ends=tuple(map(_whole, fields["ends"])),
            lead=_one_of(fields["lead"], LEADS),
            thought=None if thought is None else bytes.fromhex(thought),
            tokens=tuple(map(_whole, fields["tokens"])),
        )
    except (KeyError, TypeError, ValueError, RecursionError):
        raise ValueError("its constraint is damaged") from None


def _text(value: object) -> str:
    if type(value) is not str:
        raise TypeError("it is not a text")
    return value


def _one_of(value: Any, known: Sequence[T]) -> T:
    return known[known.index(value)]


def read_json(metadata: Metadata, key: str, kind: type[T]) -> T:
    """A metadata entry, decoded. Raises ValueError when it is missing or of another kind."""
    value = _value(metadata, key)
    if type(value) is not kind:  # a bool is not an int here
        raise ValueError(f"its metadata has no valid {key!r}")
    return value


def _value(metadata: Metadata, key: str) -> object:
    """A metadata entry, decoded; None if it is missing or damaged."""
    try:
        return json.loads(metadata[key])
    except (KeyError, ValueError, RecursionError):
        return None
