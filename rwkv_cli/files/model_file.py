"""Our model file: one safetensors file with everything that generation needs, mapped rather than loaded.

The tensors have their official names and the form that `files.weight_layouts` describes. A tensor `tokenizer` holds the
bytes of the vocabulary, if the model brings its own. The metadata, all of it JSON:

    rwkv           the version of this format, 1
    config         the fields of `ModelConfig`
    quantization   {"type": "int8", "group": 64, ...}; of a "mixed" file, the matrices of dtype U8 are int4
    tokenizer      {"kind": "world" | "tokenizer.json" | null, "ends": [2]}; ends may be missing
    template       the prompt template: its name or, if it does not come with the program, all of it
    template_from  what it was chosen by, for people; may be missing
    sampling       defaults for `SamplingSettings`, over those of the template
    digest         a sha256 over all tensors, to find out whether they are still what was written
    source         {"name": ..., "format": "pth" | "hf" | "gguf", "sha256": ...} of the checkpoint
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from rwkv_cli.config import ModelConfig, Shape
from rwkv_cli.errors import ModelFileError, UnsupportedModelError, UsageError
from rwkv_cli.files import weight_layouts
from rwkv_cli.files.pipeline import AT_ONCE, in_order
from rwkv_cli.files.safetensors import (
    DIGEST,
    NO_DIGEST,
    MappedTensor,
    SafetensorsWriter,
    digest_of,
    map_safetensors,
    release_pages,
)
from rwkv_cli.files.weight_layouts import Rounder, WeightType
from rwkv_cli.files.weight_source import WeightProgress, WeightSource
from rwkv_cli.sampling_settings import parse_defaults
from rwkv_cli.text import templates
from rwkv_cli.text.template import Template
from rwkv_cli.text.tokenizer import TokenizerSpec

VERSION = 1
TOKENIZER = "tokenizer"

Array = NDArray[np.float32]
_Kind = TypeVar("_Kind", int, str, dict[str, Any])


@dataclass(frozen=True)
class ModelInfo:
    """What a model file contains beside its weights."""

    config: ModelConfig
    weight_type: WeightType
    tokenizer: TokenizerSpec | None
    template: Template
    sampling: Mapping[str, float] = field(default_factory=dict)
    source: Mapping[str, str] = field(default_factory=dict)
    template_from: str = ""  # what it was chosen by: "models.toml", "chat_template.jinja", "the name ..."
    narrow: frozenset[str] = frozenset()  # the matrices of a mixed file that are int4

    def type_of(self, name: str) -> WeightType:
        """How a tensor is stored."""
        return weight_layouts.type_in_mix(name, self.weight_type, self.narrow)

    @property
    def label(self) -> str:
        """The type of the weights; of mixed files, those with other int4 matrices have another one."""
        if self.weight_type != "mixed":
            return self.weight_type
        return f"mixed-{hashlib.sha256(' '.join(sorted(self.narrow)).encode()).hexdigest()[:8]}"


class ModelFile:
    """A model file, opened: the header is read and checked, the weights are mapped."""

    def __init__(self, path: Path) -> None:
        """Raises ModelFileError, in one sentence, for a file that is damaged, of another kind or of a newer version."""
        self.path = path
        try:
            mapped = self._mapped = map_safetensors(path)
            self._tensors = mapped.tensors
            self.info = _read_info(mapped.metadata, self._tensors)
        except FileNotFoundError:
            raise ModelFileError(f"there is no file {path}") from None
        except OSError as error:
            raise ModelFileError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from None
        except (ValueError, UnsupportedModelError) as error:
            raise ModelFileError(f"{path} is not a model file that can be used: {error}") from None

    @property
    def config(self) -> ModelConfig:
        """The sizes of the model."""
        return self.info.config

    @property
    def names(self) -> list[str]:
        """The names of all stored arrays of weights."""
        return [name for name in self._tensors if name != TOKENIZER]

    @property
    def weight_bytes(self) -> int:
        """Bytes of all stored weights."""
        return sum(self._tensors[name].array.nbytes for name in self.names)

    def is_intact(self, progress: Callable[[int], None] | None = None) -> bool | None:
        """Whether all tensors are what was written; None for a file without a digest. Reads the whole file."""
        written = self._mapped.metadata.get(DIGEST)
        return None if written is None else json.dumps(digest_of(self._mapped, progress)) == written

    def stored(self, name: str) -> NDArray[Any]:
        """A stored array, exactly as in the file: a read-only view, bfloat16 as uint16."""
        return self._tensors[name].array

    def tensor(self, name: str) -> Array:
        """An officially named tensor in float32, in the shape that `ModelConfig.tensor_shapes` lists."""
        parts = {
            part: self._tensors[part].array
            for part in (name, name + weight_layouts.SCALE)
            if part in self._tensors
        }
        tensor = weight_layouts.restore(name, self.config.tensor_shapes()[name], parts)
        for array in parts.values():
            release_pages(array)
        return tensor


def is_model_file(path: Path) -> bool:
    """Whether a file is, or was meant to be, one of ours (and not a published safetensors checkpoint)."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            return b'"__metadata__":{"rwkv":' in file.read(min(length, 64))
    except OSError:
        return False


def is_usable(path: Path) -> bool:
    """Whether this is a complete model file of the current version."""
    try:
        ModelFile(path)
    except ModelFileError:
        return False
    return True


@contextmanager
def writing(path: Path, info: ModelInfo) -> Iterator[SafetensorsWriter]:
    """A model file that is being written: it takes the arrays of its tensors, and is complete when this ends.

    Raises StorageError if the file cannot be written.
    """
    announced: dict[str, tuple[str, Shape]] = {}
    for name, shape in info.config.tensor_shapes().items():
        announced |= weight_layouts.stored_form(name, shape, info.type_of(name))
    vocabulary = np.frombuffer((info.tokenizer.data if info.tokenizer else None) or b"", np.uint8)
    if vocabulary.size:
        announced[TOKENIZER] = ("U8", vocabulary.shape)
    with SafetensorsWriter(path, announced, _metadata(info)) as writer:
        if vocabulary.size:
            writer.write(TOKENIZER, vocabulary)
        yield writer


def write_model(
    path: Path,
    source: WeightSource,
    info: ModelInfo,
    progress: WeightProgress | None = None,
    rounder: Rounder | None = None,
) -> None:
    """Quantize a checkpoint into a model file; all or nothing, see `SafetensorsWriter`.

    A few tensors are worked on at a time, together no more than the largest one. `rounder` rounds what is stored as
    int4; it is asked in the order of a pass, one tensor at a time.

    Raises StorageError if the file cannot be written, CheckpointError if the checkpoint cannot be read to its end.
    """
    done, total = 0, info.config.n_params
    rounding = (rounder,) if rounder else ()

    def stored(name: str) -> dict[str, NDArray[Any]]:
        tensor = source.tensor(name)
        parts = weight_layouts.store(name, tensor, info.type_of(name), *rounding)
        release_pages(tensor)  # if it is a view of a mapped file
        return parts

    sizes = {name: math.prod(shape) for name, shape in info.config.tensor_shapes().items()}
    at_once = 1 if rounder else AT_ONCE
    with writing(path, info) as writer:
        for name, parts in in_order(stored, sizes, at_once):
            for part, array in parts.items():
                writer.write(part, array)
            done += sizes[name]
            if progress:
                progress(done, total)


def _scheme(weight_type: WeightType) -> dict[str, object]:
    """What a file says of the numbers that its weights are stored as."""
    if weight_type in ("fp16", "fp32"):
        return {"type": weight_type}
    return {"type": weight_type, "symmetric": True, "group": weight_layouts.GROUP, "scale": "bf16"}


def _metadata(info: ModelInfo) -> dict[str, str]:
    fields = {
        "rwkv": VERSION,  # first: `is_model_file` looks for it
        "config": info.config.as_dict(),
        "quantization": _scheme(info.weight_type),
        "tokenizer": _tokenizer_fields(info.tokenizer),
        "template": templates.to_json(info.template),
        **({"template_from": info.template_from} if info.template_from else {}),
        "sampling": dict(info.sampling),
        "source": dict(info.source),
    }
    return {key: json.dumps(value) for key, value in fields.items()} | {DIGEST: NO_DIGEST}


def _read_info(metadata: Mapping[str, str], tensors: Mapping[str, MappedTensor]) -> ModelInfo:
    """The checked header: every tensor that the config requires has the form that the type requires.

    Raises ValueError with half a sentence about the file.
    """
    if "rwkv" not in metadata:
        raise ValueError("it is a safetensors file of another program")
    if (version := _json(metadata, "rwkv", int)) != VERSION:
        raise ValueError(
            f"it has version {version} of the format and this program supports {VERSION}; update rwkv-cli"
        )
    try:
        config = ModelConfig.from_dict(_json(metadata, "config", dict))
    except ValueError as error:
        raise ValueError(f"its config is invalid: {error}") from None
    weight_type = _read_weight_type(_json(metadata, "quantization", dict))
    if config.n_layer > len(tensors):  # before a loop over layers that do not exist
        raise ValueError("it has fewer tensors than layers")
    unknown = set(tensors) - {TOKENIZER}
    shapes, narrow = config.tensor_shapes(), frozenset[str]()
    if weight_type == "mixed":
        narrow = frozenset(name for name in shapes if _is_narrow(name, tensors.get(name)))
    for name, shape in shapes.items():
        kind = weight_layouts.type_in_mix(name, weight_type, narrow)
        for part, (dtype, stored_shape) in weight_layouts.stored_form(name, shape, kind).items():
            unknown.discard(part)
            found = tensors.get(part)
            if found is None or (found.dtype, found.shape) != (dtype, stored_shape):
                raise ValueError(f"the tensor {part} is missing or has the wrong type or shape")
    if unknown:
        raise ValueError(f"its config does not account for the tensor {min(unknown)[:80]}")
    return ModelInfo(
        config=config,
        weight_type=weight_type,
        tokenizer=_read_tokenizer(_json(metadata, "tokenizer", dict), tensors.get(TOKENIZER), config),
        template=templates.from_json(_value(metadata, "template")),
        template_from=_json(metadata, "template_from", str)[:200] if "template_from" in metadata else "",
        sampling=_read_sampling(_json(metadata, "sampling", dict)),
        source=_json(metadata, "source", dict),
        narrow=narrow,
    )


def _is_narrow(name: str, found: MappedTensor | None) -> bool:
    return weight_layouts.can_be_narrow(name) and found is not None and found.dtype == "U8"


def _read_weight_type(scheme: Mapping[str, object]) -> WeightType:
    for weight_type in (*weight_layouts.WEIGHT_TYPES, weight_layouts.MIXED):
        if scheme.get("type") == weight_type:
            break
    else:
        raise ValueError(f"its weights have the unknown type {repr(scheme.get('type'))[:40]}")
    known = _scheme(weight_type)
    for key in {**known, **scheme}:
        said, computed = scheme.get(key), known.get(key)
        if type(said) is not type(computed) or said != computed:
            raise ValueError(
                f"its quantization has {str(key)[:20]!r} {str(said)[:20]!r}, and this program computes "
                f"{weight_type} with {str(computed)!r} only"
            )
    return weight_type


def _tokenizer_fields(spec: TokenizerSpec | None) -> dict[str, object]:
    if spec is None:
        return {"kind": None}
    return {"kind": spec.kind} | ({"ends": list(spec.ends)} if spec.ends else {})


def _read_tokenizer(
    fields: Mapping[str, object], vocabulary: MappedTensor | None, config: ModelConfig
) -> TokenizerSpec | None:
    kind, ends = fields.get("kind"), fields.get("ends", [])
    if kind is None:
        return None
    if not isinstance(ends, list) or not all(
        type(end) is int and 0 <= end < config.vocab_size for end in ends
    ):
        raise ValueError("the tokens that end a document are not in its vocabulary")
    data = vocabulary.array.tobytes() if vocabulary else None
    if kind == "world":
        return TokenizerSpec("world", data, tuple(ends))
    if kind == "tokenizer.json" and data:
        return TokenizerSpec("tokenizer.json", data, tuple(ends))
    raise ValueError(f"its tokenizer is of an unknown kind, {kind!r}, or missing")


def _read_sampling(defaults: Mapping[str, object]) -> dict[str, float]:
    try:
        return parse_defaults(defaults)
    except UsageError as error:
        raise ValueError(f"its sampling defaults are invalid: {str(error)[:80]}") from None


def _json(metadata: Mapping[str, str], key: str, kind: type[_Kind]) -> _Kind:
    """A metadata entry, decoded. Raises ValueError if it is missing or of another kind."""
    value = _value(metadata, key)
    if type(value) is not kind:  # not isinstance: true is an int for Python
        raise ValueError(f"its metadata has no valid {key!r}")
    return value


def _value(metadata: Mapping[str, str], key: str) -> object:
    """A metadata entry, decoded; None if it is missing or damaged."""
    try:
        return json.loads(metadata[key])
    except (KeyError, ValueError, RecursionError):
        return None
