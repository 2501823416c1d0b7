"""The state file: a saved position in a text, from which a model continues without reading anything again.

It is a safetensors file, described in docs/state-file.md. `save` and `load` are exact; the compact form, in float16,
is not. Nothing in a file is trusted: every size, type and number is checked before it is used.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from rwkv_cli.engine.session import Snapshot
from rwkv_cli.engine.state import State
from rwkv_cli.errors import StateError
from rwkv_cli.files.safetensors import Mapped, SafetensorsWriter, map_safetensors
from rwkv_cli.sampling_settings import SamplingOverrides
from rwkv_cli.sessions.model_identity import ModelIdentity, identify
from rwkv_cli.sessions.state_file.fields import (
    Array,
    Metadata,
    Stored,
    Tensors,
    check_checksum,
    checksum,
    plain_generator,
    plain_settings,
    read_constraint,
    read_conversation,
    read_identity,
    read_json,
    read_memory,
    read_settings,
    read_string,
    read_template,
    read_text,
    read_tokens,
    read_unfinished,
    read_values,
    store_constraint,
    store_penalties,
    store_text,
    store_values,
)
from rwkv_cli.text import templates
from rwkv_cli.text.template import Template

if TYPE_CHECKING:
    from rwkv_cli.model import Model

VERSION = 1
KEY = "rwkv_state"  # the first key of the metadata: the file is recognised by it
SUFFIX = ".safetensors"
T = TypeVar("T")

_BEGINNING = f'{{"__metadata__":{{"{KEY}":'.encode()
_MODEL_BEGINNING = b'{"__metadata__":{"rwkv":'


@dataclass
class SavedState:
    """A place in a text, and what it takes to continue from there exactly as if the process had never ended."""

    snapshot: Snapshot  # the state, the logits of the next token, the number of tokens read, the sampler
    model: ModelIdentity
    name: str = ""  # in the store, or of the conversation
    created: str = ""  # ISO 8601, UTC; `save` fills it in
    template: Template | None = None  # that was used; None after a document, which has none
    settings: SamplingOverrides = field(default_factory=SamplingOverrides)  # those that were chosen
    text: str | None = None  # all text since the start; None where it is not kept
    unfinished: bytes = (
        b""  # the first bytes of a character that the tokens end in the middle of, after the text
    )
    conversation: Mapping[str, object] | None = None  # JSON of `rwkv_cli.sessions.conversation`

    def __repr__(self) -> str:
        return f"<SavedState {self.name!r}: {self.snapshot.n_tokens:,} tokens of {self.model.name!r}>"


@dataclass(frozen=True)
class Summary:
    """What can be said of a state file without reading its tensors."""

    model: ModelIdentity
    name: str
    created: str
    template: str | None  # its name
    tokens: int
    compact: bool
    has_text: bool
    has_conversation: bool
    n_layer: int
    n_head: int
    head_size: int


# ------------------------------------------------------------------------------------------------------------
# Which model fits
# ------------------------------------------------------------------------------------------------------------


def fit(saved: SavedState, model: Model) -> str | None:
    """Whether a model can continue a state: None if it can, a warning if its results will differ.

    Raises StateError, which names both models, for the state of another one.
    """
    own, wanted = identify(model), saved.model
    if own.weights != wanted.weights:
        same = own.name == wanted.name
        theirs, ours = (f"{each.name} ({each.weights[:8]})" if same else each.name for each in (wanted, own))
        raise StateError(f"this state belongs to {theirs}, not to {ours}: pass its own model with {{model}}")
    if own.tokenizer != wanted.tokenizer:
        raise StateError(
            f"the state was made with {own.name} and another tokenizer than it has here: its tokens mean something else"
        )
    if not saved.snapshot.fits(model.config):
        raise StateError(f"the state has another shape than those of {own.name}: its file is damaged")
    if wanted.weight_type and own.weight_type != wanted.weight_type:
        return (
            f"the state was made with {wanted.weight_type} weights, and continues with {own.weight_type}: "
            "the text may differ from what it would have been"
        )
    return None


# ------------------------------------------------------------------------------------------------------------
# Writing
# ------------------------------------------------------------------------------------------------------------


def save(path: Path, saved: SavedState, *, compact: bool = False, durable: bool = True) -> None:
    """Write a state file; all or nothing: until the new one is complete, an old one stays as it is.

    `compact` halves the size and rounds to float16; `durable` waits for the disk. Raises
    StorageError when the file cannot be written, StateError for a state with NaN or infinity, or more
    text than a file may have.
    """
    saved.created = saved.created or datetime.now(UTC).isoformat(timespec="seconds")
    tensors = _tensors(saved, compact)
    announced = {name: (dtype, array.shape) for name, (dtype, array) in tensors.items()}
    metadata = _metadata(saved)
    metadata["checksum"] = json.dumps(checksum(metadata, tensors))
    with SafetensorsWriter(path, announced, metadata, durable, private=True) as writer:
        for name, (_, array) in tensors.items():
            writer.write(name, array)


def _tensors(saved: SavedState, compact: bool) -> Stored:
    """Everything that is stored as a tensor."""
    tensors: Stored = {}
    for name, array, axes in _parts(saved.snapshot):
        tensors |= store_values(name, array, axes, compact)
    tensors |= store_penalties(saved.snapshot.memory)
    tensors |= store_constraint(saved.snapshot.memory)
    tensors |= store_text("text", saved.text or "")
    if saved.conversation is not None:
        encoded = json.dumps(saved.conversation, separators=(",", ":"), allow_nan=False)
        tensors |= store_text("conversation", encoded)
    return tensors


def _parts(snapshot: Snapshot) -> list[tuple[str, Array, tuple[int, ...]]]:
    """Name, values, and the axes over which the values of the compact form share a scale."""
    state = snapshot.state
    parts: list[tuple[str, Array, tuple[int, ...]]] = [
        ("shift_att", state.shift_att, (1,)),
        ("wkv", state.wkv, (2, 3)),
        ("shift_ffn", state.shift_ffn, (1,)),
    ]
    return parts if snapshot.logits is None else [*parts, ("logits", snapshot.logits, (0,))]


def _metadata(saved: SavedState) -> dict[str, str]:
    model = saved.model
    fields: dict[str, object] = {
        KEY: VERSION,  # first: `is_state_file` looks for it
        "model": {
            "name": model.name,
            "weights": model.weights,
            "weight_type": model.weight_type,
            "tokenizer": model.tokenizer,
            "location": model.location,
        },
        "tokens": saved.snapshot.n_tokens,
        "name": saved.name,
        "created": saved.created,
        "template": saved.template and templates.to_json(saved.template),
        "settings": plain_settings(saved.settings),
        "generator": plain_generator(saved.snapshot.memory),
        "text": saved.text is not None,
    }
    if saved.unfinished:
        fields["unfinished"] = saved.unfinished.hex()
    return {key: json.dumps(value, allow_nan=False) for key, value in fields.items()}


# ------------------------------------------------------------------------------------------------------------
# Reading
# ------------------------------------------------------------------------------------------------------------


def is_state_file(path: Path) -> bool:
    """Whether a file is, or was meant to be, a state file."""
    return _head(path, 64)[8:].startswith(_BEGINNING)


def load(path: Path) -> SavedState:
    """Read a state file; nothing of it stays mapped. Raises StateError, in one sentence, for anything wrong with it."""
    return _read(path, _saved)


def peek(path: Path) -> Summary:
    """What a state file says of itself; its tensors are not read. Raises StateError like `load`."""
    return _read(path, _summary)


def _read(path: Path, make: Callable[[Mapped], T]) -> T:
    try:
        mapped = map_safetensors(path)
        _check_kind(mapped.metadata)
        return make(mapped)
    except FileNotFoundError:
        raise StateError(f"there is no state file {path}") from None
    except OSError as error:
        raise StateError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from None
    except ValueError as error:
        raise StateError(f"{path} is not a state that can be used: {_other_kind(path) or error}") from None


def _check_kind(metadata: Metadata) -> None:
    if KEY not in metadata:
        raise ValueError("it is a safetensors file of another program")
    if (version := read_json(metadata, KEY, int)) != VERSION:
        raise ValueError(
            f"it has version {version} of the format and this program knows {VERSION}; update rwkv-cli"
        )


def _other_kind(path: Path) -> str | None:
    """Half a sentence about a file that people may take for a state."""
    if _head(path, 64)[8:].startswith(_MODEL_BEGINNING):
        return "it is a model file: pass it with {model}"
    magic = _head(path, 4)
    if magic == b"GGUF":
        return "it is a published model: pass it with {model}"
    if magic == b"PK\x03\x04":
        return "it is a PyTorch file; if it is a state that was trained, use rwkv state import"
    return None


def _head(path: Path, size: int) -> bytes:
    if not path.is_file():  # opening a pipe would wait for its other end
        return b""
    try:
        with path.open("rb") as file:
            return file.read(size)
    except OSError:
        return b""


def _saved(mapped: Mapped) -> SavedState:
    metadata, tensors = mapped.metadata, mapped.tensors
    check_checksum(metadata, tensors)
    text = read_text(tensors.get("text"), "text") if read_json(metadata, "text", bool) else None
    return SavedState(
        snapshot=_snapshot(metadata, tensors),
        model=read_identity(metadata),
        name=read_string(metadata, "name"),
        created=read_string(metadata, "created"),
        template=read_template(metadata),
        settings=read_settings(metadata),
        text=text,
        unfinished=read_unfinished(metadata),
        conversation=read_conversation(tensors.get("conversation")),
    )


def _summary(mapped: Mapped) -> Summary:
    metadata, tensors = mapped.metadata, mapped.tensors
    L, H, N = _shape(tensors)
    template = read_template(metadata)
    return Summary(
        model=read_identity(metadata),
        name=read_string(metadata, "name"),
        created=read_string(metadata, "created"),
        template=template.name if template else None,
        tokens=read_tokens(metadata),
        compact=tensors["wkv"].dtype == "F16",
        has_text=read_json(metadata, "text", bool),
        has_conversation="conversation" in tensors,
        n_layer=L,
        n_head=H,
        head_size=N,
    )


def _shape(tensors: Tensors) -> tuple[int, int, int]:
    """L, H and N, from the shape of the largest tensor."""
    shape = tensors["wkv"].shape if "wkv" in tensors else ()
    if len(shape) != 4 or 0 in shape or shape[2] != shape[3]:
        raise ValueError("the tensor wkv is missing or has an invalid shape")
    return shape[0], shape[1], shape[2]


def _snapshot(metadata: Metadata, tensors: Tensors) -> Snapshot:
    L, H, N = _shape(tensors)
    C = H * N
    logits = None
    if "logits" in tensors:
        logits = read_values(tensors, "logits", (math.prod(tensors["logits"].shape),), (1,))
    state = State(
        shift_att=read_values(tensors, "shift_att", (L, C), (L,)),
        wkv=read_values(tensors, "wkv", (L, H, N, N), (L, H)),
        shift_ffn=read_values(tensors, "shift_ffn", (L, C), (L,)),
    )
    vocab_size = None if logits is None else logits.size
    memory = read_memory(metadata, tensors, vocab_size)
    if memory:
        memory = replace(memory, constraint=read_constraint(tensors.get("constraint")))
    return Snapshot(state, logits, read_tokens(metadata), memory)
