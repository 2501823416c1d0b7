"""One text that continues a prompt, a saved state or both, and the state that it leaves; no terminal is known here."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rwkv_cli.engine.constraints.grammar import Grammar
from rwkv_cli.engine.generate import PromptReader
from rwkv_cli.engine.session import Snapshot
from rwkv_cli.generation import Generation
from rwkv_cli.model import Model
from rwkv_cli.sampling_settings import MAX_TOKENS, SamplingOverrides, combined
from rwkv_cli.sessions import resume, state_file, state_store
from rwkv_cli.sessions.state_file import SavedState
from rwkv_cli.settings import Settings
from rwkv_cli.text.template import Template
from rwkv_cli.text.templates import get_template
from rwkv_cli.text.tool_calls import layout as tool_layout
from rwkv_cli.text.tool_calls.tools import Tool


@dataclass
class TextRequest:
    """What to generate, or only to read."""

    text: str  # the prompt; empty to continue from the state
    max_tokens: int = MAX_TOKENS
    stops: Sequence[str] = ()
    template: Template | None = None  # None for the state's own, or the model's
    system: str | None = None
    think: str | None = None  # a mode of the template
    sampling: SamplingOverrides = field(default_factory=SamplingOverrides)  # what was chosen
    constraint: Grammar | None = None  # what the text has to look like
    tools: Sequence[Tool] = ()  # that are offered
    tool_choice: str = "auto"  # or "none", "required", the name of one
    keep_text: bool = True  # in a state that is saved
    settings: Settings = field(default_factory=Settings)  # the user's, which come after those of a state
    reads_only: bool = False  # nothing is generated: without a template, the text is a document


_WITH_TOOLS: SamplingOverrides = {"presence_penalty": 0.0, "frequency_penalty": 0.0}
"""Penalties would keep a model from writing what it read in a schema."""


class Continuation:
    """A request, with its generation ready to run."""

    def __init__(
        self, model: Model, request: TextRequest, saved: SavedState | None, reader: PromptReader
    ) -> None:
        """Raises UsageError for a request that does not fit the model or the state."""
        self.model, self.request, self.saved = model, request, saved
        self.is_document = request.reads_only and request.template is None
        self.layout = self._layout()
        self.system = self._system()
        of_tools = _WITH_TOOLS if request.tools else {}
        of_state = saved.settings if saved else {}
        self.chosen = combined(of_tools, request.settings.sampling, of_state, request.sampling)
        self.generation = self._generation(reader)

    def _layout(self) -> Template:
        own = self.model.template
        if self.is_document:
            return own if own.is_plain else get_template("raw")
        return resume.layout_for(self.request.template, self.saved, own)

    def _system(self) -> str | None:
        """The system prompt, with the tools that are offered."""
        if not self.request.tools or self.request.tool_choice == "none":
            return self.request.system
        return tool_layout.format_for(self.layout).system(self.request.tools, self.request.system)

    def _generation(self, reader: PromptReader) -> Generation:
        sampling: SamplingOverrides = {"seed": secrets.randbits(32), **self.chosen}  # a seed that can be told
        return self.model.generate(
            self.request.text,
            max_tokens=self.request.max_tokens,
            template=self.layout,
            system=self.system,
            think=self.request.think,
            stop=self.request.stops,
            constraint=self._constraint(),
            start=self._start(),
            after_document=self.saved is not None and self.saved.template is None,
            said=None if self.request.text else self.before,
            unfinished=self.saved.unfinished if self.saved and not self.request.text else b"",
            reader=reader,
            **sampling,
        )

    def _constraint(self) -> Grammar | None:
        """The one of the request; None also where the state is in the middle of a text of the same one."""
        wanted = self.request.constraint
        if tools := tool_layout.chosen(self.request.tools, self.request.tool_choice):
            return Grammar.tool_call(tool_layout.format_for(self.layout), tools)
        memory = self.saved.snapshot.memory if self.saved and not self.request.text else None
        if wanted and memory and (begun := memory.constraint):
            return None if (begun.kind, begun.source) == (wanted.kind, wanted.source) else wanted
        return wanted

    def _start(self) -> Snapshot | None:
        """The saved snapshot. With a new seed, only the counts of its sampler remain."""
        if self.saved is None:
            return None
        start = self.saved.snapshot
        if start.memory and "seed" in self.request.sampling:
            return replace(start, memory=replace(start.memory, generator=None))
        return start

    @property
    def before(self) -> str:
        """The text that the state has read; empty where it is unknown."""
        return (self.saved.text if self.saved else "") or ""

    @property
    def continued_text(self) -> str:
        """The text that the generation continues, where both read as one."""
        if not self.request.text:
            return self.before
        return self.request.text if self.layout.is_plain else ""

    def save(self, target: Path, generated: str, compact: bool = False, created: str = "") -> SavedState:
        """Save where the generation stands. Raises StorageError, StateError."""
        before, snapshot = self.saved, self.generation.commit()
        text = None
        if self.request.keep_text and (before is None or before.text is not None):
            read = resume.text_of(self.layout, self.request.text, self.system, self.request.think, before)
            if before and before.unfinished and read:
                read = "\ufffd" + read  # it stays unfinished
            text = self.before + read + generated
        elif snapshot.memory:  # it would tell what was generated
            snapshot = replace(snapshot, memory=replace(snapshot.memory, constraint=None))
        if self.request.reads_only:
            snapshot = replace(snapshot, memory=before.snapshot.memory if before else None)
            settings = before.settings if before else {}
        else:
            settings = {**self.chosen, "seed": self.generation.sampler.settings.seed}
        saved = SavedState(
            snapshot=snapshot,
            model=state_file.identify(self.model),
            created=created,
            template=self._template(),
            settings=settings,
            text=text,
            unfinished=self.generation.unfinished,
        )
        state_store.save(target, saved, compact)
        return saved

    def _template(self) -> Template | None:
        """The template that the state continues with."""
        if self.is_document or (self.saved and not self.request.text):
            return self.saved.template if self.saved else None
        return self.layout
