"""A conversation and the file that it is saved to after every answer; nothing here knows a terminal."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from rwkv_cli.errors import StorageError, UsageError
from rwkv_cli.model import Model
from rwkv_cli.sampling_settings import SamplingOverrides, combined
from rwkv_cli.sessions import resume, state_file, state_store
from rwkv_cli.sessions.conversation import Conversation
from rwkv_cli.sessions.kept_chats import KeptChat
from rwkv_cli.sessions.state_file import SavedState
from rwkv_cli.settings import Settings
from rwkv_cli.text.template import Template


@dataclass
class Choices:
    """The choices of a user for a conversation; None where there is none."""

    template: Template | None = None
    system: str | None = None
    think: str | None = None
    max_tokens: int | None = None
    sampling: SamplingOverrides = field(default_factory=SamplingOverrides)
    settings: Settings = field(
        default_factory=Settings
    )  # the user's, which come after those of a conversation

    def begin(self, model: Model) -> Conversation:
        """A new conversation. Raises UsageError for what the template does not support."""
        sampling = combined(self.settings.sampling, self.sampling)
        conversation = Conversation(model, self.template, self.system, self.think, **sampling)
        limit = self.settings.max_tokens if self.max_tokens is None else self.max_tokens
        conversation.set_max_tokens(limit)
        return conversation

    def resume(self, model: Model, saved: SavedState) -> Conversation:
        """The conversation in a state, continued with these choices. Raises UsageError for those that come too late."""
        conversation = Conversation.from_saved(model, saved, self.template)
        has_begun = bool(conversation.turns)
        if self.template and self.template != conversation.template:
            if has_begun:
                raise UsageError(
                    f"the conversation uses the template {conversation.template.name}: leave out {{template}}"
                )
            conversation.change_template(self.template)
        if self.system is not None and self.system != conversation.system:
            if has_begun:
                raise UsageError("the conversation began with another system prompt: leave out {system}")
            conversation.reset(self.system)
        if self.think is not None:
            conversation.set_think(self.think)
        if self.max_tokens is not None:
            conversation.set_max_tokens(self.max_tokens)
        of_the_user = cast(
            "SamplingOverrides",
            {
                name: value
                for name, value in self.settings.sampling.items()
                if name not in conversation.chosen
            },
        )
        conversation.choose(**combined(of_the_user, self.sampling))
        return conversation


class AutosavedConversation:
    """The current conversation, and where it is saved after every answer: under its name, or among the last chats.

    It holds a lock on its file until `close`.
    """

    def __init__(
        self, conversation: Conversation, keep_text: bool = True, kept: KeptChat | None = None
    ) -> None:
        """`kept` is where it is kept while it has no name; without one, it is not."""
        self.conversation = conversation
        self.keep_text = keep_text
        self.kept = kept
        self.path: Path | None = None
        self.is_kept = True  # the last attempt to save it succeeded
        self.before: Conversation | None = None  # what `reset` put away
        self._lock = ExitStack()
        self._written: set[Path] = set()  # files that this session made, and may replace

    @property
    def model(self) -> Model:
        """The model that answers."""
        return self.conversation.model

    @property
    def name(self) -> str | None:
        """The name of the conversation, if it is saved after every answer."""
        return state_store.name_of(self.path) if self.path else None

    @property
    def is_saved(self) -> bool:
        """Whether there is a file to come back to."""
        path = self.path or (self.kept.path if self.kept else None)
        return path is not None and path.exists()

    def adopt(self, path: Path, lock: ExitStack) -> None:
        """From now on, save to this file, which is locked."""
        if self.kept:
            self.kept.leave()
        self._lock.close()
        self.path, self._lock = path, lock

    def keep(self) -> None:
        """Save the conversation. Raises StorageError, StateError; one without a name is then not kept any more."""
        if self.path:
            self.is_kept = False
            self._write(self.path)
            self.is_kept = True
        elif self.kept:
            try:
                self.kept.write(self.conversation)
            except StorageError:
                self.kept.leave()
                self.kept = None
                raise

    def save(self, target: str | None) -> Path:
        """Save under a name or in a file: its path. A conversation without a name takes the name from then on.

        Raises UsageError without a name, and for the name of another state.
        """
        if target is None:
            if self.path is None:
                raise UsageError("the conversation has no name yet")
            self._write(self.path)
            return self.path
        path = state_store.resolve(target)
        if self.path and _is_same(path, self.path):
            self._write(path)
            return path
        lock = self._free(path, target)
        if self.path is None and path.parent == state_store.folder():
            self._write(path, lock)
            if self.kept:
                self.kept.remove()
            self.adopt(path, lock)
        else:
            with lock:
                self._write(path)
        return path

    def fork(self, name: str) -> Path:
        """Save under a new name and continue there; what was saved before is unchanged."""
        path = state_store.resolve(name)
        lock = self._free(path, name)
        self._write(path, lock)
        self.adopt(path, lock)
        return path

    def load(self, target: str, choices: Choices | None = None) -> str | None:
        """Continue from a state. A named conversation is saved from then on; any other state is unchanged.

        Returns a warning, if there is one. Raises StateError, UsageError.
        """
        path = state_store.find(target)
        if self.path and _is_same(path, self.path):
            raise UsageError(f"{self.name} is the current conversation")
        lock = locked(path)
        try:
            saved = state_file.load(path)
            warning = state_file.fit(saved, self.model)
            self.conversation = (choices or Choices()).resume(self.model, saved)
        except BaseException:
            lock.close()
            raise
        self.before = None
        if saved.conversation is not None and path.parent == state_store.folder():
            self.adopt(path, lock)
        else:
            lock.close()
            self.adopt_nothing()
        return warning

    def adopt_nothing(self) -> None:
        """From now on, the conversation has no name."""
        if self.kept:
            self.kept.leave()
        self._lock.close()
        self.path, self._lock = None, ExitStack()

    def reset(self, system: str | None) -> None:
        """Start over; `restore` brings the previous conversation back."""
        before = self.conversation.fork()
        self.conversation.reset(system)
        if before.turns:
            self.before = before

    def restore(self) -> bool:
        """Bring back the conversation before `reset`; False if there is none."""
        if self.before is None or self.conversation.turns:
            return False
        self.conversation, self.before = self.before, None
        return True

    def close(self) -> None:
        """Give up the locks."""
        if self.kept:
            self.kept.leave()
        self._lock.close()

    def _free(self, path: Path, target: str) -> ExitStack:
        """A lock on a file that may be written."""
        if path.exists() and path not in self._written:
            raise UsageError(
                f"a conversation or state named {target} exists; choose another name, or delete it with: "
                f"rwkv state rm {target}"
            )
        return locked(path)

    def _write(self, path: Path, lock: ExitStack | None = None) -> None:
        try:
            state_store.prepare(path)
            saved = self.conversation.to_saved(state_store.name_of(path), with_text=self.keep_text)
            state_file.save(path, saved)
        except BaseException:
            if lock:
                lock.close()
            raise
        self._written.add(path)


def locked(path: Path) -> ExitStack:
    """A lock on a state's file; close it. Raises StateError at once where another program has it."""
    stack = ExitStack()
    stack.enter_context(state_store.lock(path))
    return stack


def open_conversation(
    load: Callable[[SavedState | None], Model],
    choices: Choices,
    name: str | None = None,
    state: str | None = None,
    keep_text: bool = True,
    *,
    kept: KeptChat | None = None,
    last: bool = False,
) -> AutosavedConversation:
    """The session of a command line: a named conversation, one from a state, the last one without a name, or a new one.

    `load` gives the model for a state. `kept` is where one without a name is kept, if it is; `last` is for the one that
    was left last. Raises StateError where the name is in use, UsageError where there is no last one.
    """
    if last:
        return _open_last(load, choices, kept)
    path = state_store.resolve(name) if name is not None else None
    if path:
        resume.check_folder(path)
    lock = locked(path) if path else ExitStack()
    try:
        has_begun = path is not None and path.exists()
        if has_begun and state is not None:
            raise UsageError(f"{name} exists already: leave out {{state}}, or choose another name")
        source = str(path) if has_begun else state
        saved = resume.open_state(source).saved if source is not None else None
        model = load(saved)
        session = AutosavedConversation(
            choices.resume(model, saved) if saved else choices.begin(model), keep_text, kept
        )
    except BaseException:
        lock.close()
        raise
    if path:
        session.adopt(path, lock)
    return session


def _open_last(
    load: Callable[[SavedState | None], Model], choices: Choices, kept: KeptChat | None
) -> AutosavedConversation:
    """The session of the last chat without a name, which stays as it is unless this one is `kept`, too."""
    slot = kept or KeptChat()
    try:
        saved = state_file.load(slot.open_last())
        session = AutosavedConversation(choices.resume(load(saved), saved), kept=kept)
    except BaseException:
        slot.release()
        raise
    if not kept:
        slot.release()
    return session


def _is_same(one: Path, other: Path) -> bool:
    return one == other or (one.exists() and other.exists() and one.samefile(other))
