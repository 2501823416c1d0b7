"""Where a conversation begins and where its end is saved: states in the store, which `rwkv state` knows too."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from rwkv_cli.engine.session import Snapshot
from rwkv_cli.errors import StateError, UsageError
from rwkv_cli.model import Model
from rwkv_cli.server.chat.request import Kept
from rwkv_cli.sessions import state_file, state_store
from rwkv_cli.sessions.conversation import Conversation
from rwkv_cli.sessions.state_file import SavedState
from rwkv_cli.sessions.transcript import Kind, Turn
from rwkv_cli.text.template import Template

_MARK = 8  # numbers in place of the tokens that a state has read


@dataclass(frozen=True)
class Place:
    """Where a conversation begins: with nothing, or in a state."""

    template: Template
    saved: SavedState | None = None
    conversation: Conversation | None = None  # that is in the state, or may follow it

    @property
    def after(self) -> Kind:
        """What was read before: "state" after turns of a conversation."""
        if self.saved is None or self.saved.snapshot.logits is None:
            return "nothing"
        return "document" if self.conversation and not self.conversation.turns else "state"

    @property
    def system(self) -> str | None:
        """The system prompt that was read."""
        return self.conversation.system if self.conversation and self.conversation.turns else None

    @property
    def snapshot(self) -> Snapshot | None:
        """Where the model stands; each answer has a random generator of its own."""
        if self.saved is None:
            return None
        snapshot = self.saved.snapshot
        memory = replace(snapshot.memory, generator=None) if snapshot.memory else None
        return replace(snapshot, memory=memory)

    @property
    def mark(self) -> list[int]:
        """What stands for the state where tokens are looked up: numbers that no token has."""
        if self.saved is None:
            return []
        state = self.saved.snapshot.state
        digest = hashlib.sha256(np.ascontiguousarray(state.wkv).tobytes())
        digest.update(state.shift_att.tobytes())
        numbers = np.frombuffer(digest.digest(), np.uint32) % 2**31
        return [-1 - int(number) for number in numbers[:_MARK]]


def open_place(model: Model, own: Template, name: str | None, template: Template | None) -> Place:
    """The place that a state names. Raises StateError for one of another model, UsageError for another template."""
    if name is None:
        return Place(template or own)
    saved = state_file.load(state_store.find(checked(name)))
    state_file.fit(saved, model)
    if saved.template and saved.snapshot.logits is not None:
        if template and template != saved.template:
            raise UsageError(
                f"{{state}} was read in the template {saved.template.name}, not in {template.name}: "
                "leave out {template}, or use another state"
            )
        if not saved.template.is_chat:
            raise UsageError(
                f"{{state}} was read in the template {saved.template.name}, which has no turns: "
                "continue it with /v1/completions"
            )
    conversation = Conversation.from_saved(model, saved, template)
    return Place(conversation.template, saved, conversation)


def checked(name: str) -> str:
    """The name of a state in the store. Raises UsageError for a path: clients reach no other files."""
    if state_store.is_path(name):
        raise UsageError(
            f"{name[:100]!r} is not the name of a state: names have letters, digits, spaces and . - _ only"
        )
    return name


def begins_with(kept: Kept, messages: int) -> str | None:
    """The state that a request continues; `messages` are those of the model among what the client sends.

    A session is continued by a message alone. A client that sends answers too sends the whole history, which is
    recognised by its tokens.
    """
    if kept.state:
        return kept.state
    if kept.session and not messages and exists(checked(kept.session)):
        return kept.session
    return None


def exists(name: str) -> bool:
    """Whether the store has a state of this name."""
    return name in state_store.names()


def ends_in(kept: Kept) -> str | None:
    """The state that a request is saved as. Raises UsageError for a name that cannot be, StateError for one in use."""
    if kept.chat:
        return "chat " + re.sub(r"[^A-Za-z0-9_-]", "_", kept.chat)[:80]
    name = kept.session or kept.save_as
    if name is None:
        return None
    path = state_store.resolve(checked(name))
    if kept.save_as and path.exists() and not kept.overwrites:
        raise StateError(
            f"a state named {state_store.name_of(path)} exists: choose another name, or set 'overwrite'"
        )
    return name


def save(
    name: str, place: Place, model: Model, system: str | None, turns: Sequence[Turn], snapshot: Snapshot
) -> None:
    """Save a conversation as a state. Raises StorageError, StateError, such as for one that is open elsewhere."""
    conversation = place.conversation
    conversation = conversation.fork() if conversation else Conversation(model, place.template, system)
    conversation.turns = [*conversation.turns, *turns]
    conversation.snapshots.put(len(conversation.turns), snapshot)
    path = state_store.resolve(name)
    state_store.prepare(path)
    with state_store.lock(path):
        state_store.save(path, conversation.to_saved())
