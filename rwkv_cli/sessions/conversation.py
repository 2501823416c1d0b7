"""A conversation: turns of a user and a model, whose whole memory is one small state.

The state after an answer has read the conversation as it stands, to the last character that was shown; what separates
turns is read with the next one. Snapshots of earlier turns make going back instant; where one was dropped, the turns
after the nearest earlier one are read again.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Unpack

from rwkv_cli.engine.constraint import Constraint
from rwkv_cli.engine.constraints.grammar import Grammar
from rwkv_cli.engine.generate import TokenLoop, check_limit
from rwkv_cli.engine.sampling import GeneratorState, SamplerMemory
from rwkv_cli.engine.session import Session, Snapshot
from rwkv_cli.errors import UsageError
from rwkv_cli.generation import Generation
from rwkv_cli.model import Model
from rwkv_cli.reporting import Progress, log, pluralize
from rwkv_cli.sampling_settings import MAX_ANSWER_TOKENS, SamplingOverrides, combined
from rwkv_cli.sessions import state_file
from rwkv_cli.sessions.answer_stream import AnswerStream
from rwkv_cli.sessions.model_identity import identify
from rwkv_cli.sessions.snapshots import BUDGET, Snapshots
from rwkv_cli.sessions.state_file import SavedState
from rwkv_cli.sessions.transcript import Record, Start, Turn
from rwkv_cli.text.template import Template
from rwkv_cli.text.templates import for_chat, get_template
from rwkv_cli.text.thinking import ThoughtSplitter, split

MOST_CHARACTERS = 4_000_000
"""Of one message: a few books."""


class Conversation:
    """What was said, where the model stands, and the settings of the next answer.

    `template` is a prompt format, by default the one for conversations with this model. `system` is the system prompt,
    `think` a thinking mode of the template. `start` is where the conversation begins, if something was read before;
    `sampling` are fields of `SamplingSettings`. Raises UsageError for invalid settings.
    """

    def __init__(
        self,
        model: Model,
        template: Template | None = None,
        system: str | None = None,
        think: str | None = None,
        *,
        start: Start | None = None,
        max_tokens: int = MAX_ANSWER_TOKENS,
        budget: int = BUDGET,
        **sampling: Unpack[SamplingOverrides],
    ) -> None:
        self.model = model
        self.template = template or for_chat(model.template)
        self.system = system
        self.think = think
        self.max_tokens = max_tokens
        self.constraint: Grammar | None = None  # what answers have to look like
        self.chosen = combined(sampling)
        self.turns: list[Turn] = []
        self.start = start or Start()
        self.snapshots = Snapshots(budget)
        if self.start.snapshot:
            self.snapshots.put(0, self.start.snapshot)
        # The random generator continues through the whole conversation: another answer to a message is another one.
        self._generator: GeneratorState | None = None
        self.settings = model.sampling_settings(self.template, think, **self.chosen)  # of the next answer
        self._check(system, think)

    def __repr__(self) -> str:
        model, turns = self.model.path.stem, pluralize(len(self.turns), "turn")
        return f"<Conversation with {model!r}: {turns}, template {self.template.name}>"

    # ------------------------------------------------------------------------------------------- talking

    def ask(self, text: str, progress: Progress | None = None) -> AnswerStream:
        """What the model answers to a message. `progress` receives the tokens read.

        Raises UsageError for a blank message, and for one that is far too long.
        """
        return self._answer(text, len(self.turns), progress)

    def retry(self, progress: Progress | None = None) -> AnswerStream:
        """Another answer to the last message, which replaces the last one once it is complete."""
        return self._answer(self._last().user, len(self.turns) - 1, progress)

    def edit(self, text: str, progress: Progress | None = None) -> AnswerStream:
        """The answer to another message, which replaces the last turn once it is complete."""
        self._last()
        return self._answer(text, len(self.turns) - 1, progress)

    def _answer(self, text: str, after: int, progress: Progress | None) -> AnswerStream:
        if not text.strip():
            raise UsageError("the message is blank")
        if len(text) > MOST_CHARACTERS:
            raise UsageError(f"the message has {len(text):,} characters; {MOST_CHARACTERS:,} are allowed")
        turn = Turn(text, "", self.think)
        constraint = None
        if self.constraint:
            constraint = self.model.constraint(self.constraint, self.template, self.think)
        session = self._session(self._at(after, progress), constraint)
        prompt = self._tokens_of_turn(turn, is_first=not after)
        ending = self.model.ending(self.template, self.max_tokens)
        generation = Generation(
            TokenLoop(session, prompt, ending),
            self.model.tokenizer,
            () if constraint else self.template.stop,
            splitter=ThoughtSplitter(self.template, self.think, trims=constraint is not None),
        )
        if progress:
            generation.report_to(progress)
        return AnswerStream(generation, lambda answer: self._record(turn, after, answer))

    def _session(self, start: Snapshot | None, constraint: Constraint | None = None) -> Session:
        """A session that continues from a snapshot."""
        start = self._with_generator(start or Snapshot.empty(self.model.config))
        return self.model.session(self.settings, start, constraint)

    def _with_generator(self, snapshot: Snapshot) -> Snapshot:
        """A snapshot with its own counts and the generator of the conversation."""
        counts = snapshot.memory.counts if snapshot.memory else {}
        return replace(snapshot, memory=SamplerMemory(counts, self._generator))

    def _record(self, turn: Turn, after: int, answer: AnswerStream) -> None:
        snapshot = answer.generation.commit(whole_characters=True)  # what follows is not the rest of one
        self._generator = snapshot.memory.generator if snapshot.memory else None
        self.turns[after:] = [Turn(turn.user, answer.text, turn.think, answer.finish)]
        self.snapshots.forget_after(after)
        self.snapshots.put(after + 1, snapshot)

    def _last(self) -> Turn:
        if not self.turns:
            raise UsageError("nothing was said yet")
        return self.turns[-1]

    # --------------------------------------------------------------------------------------- going back

    def undo(self, turns: int = 1, progress: Progress | None = None) -> None:
        """Forget the last turns. Raises UsageError if there are fewer turns or the earlier state is lost."""
        self._last()
        if not 1 <= turns <= len(self.turns):
            raise UsageError(
                f"the conversation has {pluralize(len(self.turns), 'turn')}: undo 1 to {len(self.turns)}"
            )
        remaining = len(self.turns) - turns
        self._at(remaining, progress)
        del self.turns[remaining:]
        self.snapshots.forget_after(remaining)

    def reset(self, system: str | None = None) -> None:
        """Begin again, with another system prompt or none. Raises UsageError if the template has no place for it."""
        self._check(system, self.think)
        self._at(0, None)
        self.system = system
        self.turns = []
        self.snapshots.forget_after(0)

    def change_template(self, template: Template) -> None:
        """Use another prompt format. Raises UsageError once something was said."""
        if self.turns:
            raise UsageError("the template cannot change in the middle of a conversation")
        before = self.template
        self.template = template
        try:
            self._check(self.system, self.think)
        except UsageError:
            self.template = before
            raise
        self.settings = self.model.sampling_settings(template, self.think, **self.chosen)

    def fork(self) -> Conversation:
        """An independent copy: a branch."""
        other = Conversation(
            self.model,
            self.template,
            self.system,
            self.think,
            start=self.start,
            max_tokens=self.max_tokens,
            **self.chosen,
        )
        other.constraint = self.constraint
        other.turns, other.snapshots = self.turns.copy(), self.snapshots.copy()
        other._generator = self._generator
        return other

    def moved_to(self, model: Model, progress: Progress | None = None) -> Conversation:
        """This conversation with another model, which reads it again; this one is unchanged.

        A template that was not chosen becomes the other model's own, in which earlier answers have no thoughts. Raises
        UsageError where it began with something else than turns, whose text another model cannot read, and for a system
        prompt that the template does not support.
        """
        if self.start.kind != "nothing":
            raise UsageError(
                "this conversation began with a saved state, which only its own model can continue"
            )
        is_own = self.template == for_chat(self.model.template)
        template = for_chat(model.template) if is_own else self.template
        other = Conversation(model, template, self.system, max_tokens=self.max_tokens, **self.chosen)
        if template == self.template:
            other.turns = self.turns.copy()
        else:
            gap = " " if template.answer and not template.answer[-1].isspace() else ""
            answers = [gap + self.parts_of(each)[1] for each in self.turns]
            turns = zip(self.turns, answers, strict=True)
            other.turns = [Turn(each.user, answer, None, each.finish) for each, answer in turns]
        other.constraint = self.constraint
        if self.think in template.thinking:
            other.set_think(self.think)
        other._at(len(other.turns), progress)
        return other

    def _at(self, turns: int, progress: Progress | None) -> Snapshot | None:
        """The snapshot after `turns` turns, recomputed if it was dropped; None at the very beginning."""
        done, snapshot = self.snapshots.last(turns) or (0, self._beginning(progress))
        for turn in range(done, turns):
            snapshot = self._read(self.turns[turn], snapshot, is_first=not turn, progress=progress)
            self.snapshots.put(turn + 1, snapshot)
        return snapshot

    def _beginning(self, progress: Progress | None) -> Snapshot | None:
        """Where the first turn begins, recomputed."""
        if self.start.kind == "nothing":
            return None
        if self.start.text is None or self.model.tokenizer is None:
            raise UsageError("cannot go back: what was read before is not in the file that this began with")
        begin = [self.model.tokenizer.end_of_document] if self.start.begin else []
        session = self._session(None)
        session.feed(begin + self.model.tokenizer.encode(self.start.text), progress)
        snapshot = session.freeze()
        self.snapshots.put(0, snapshot)
        return snapshot

    def _read(
        self, turn: Turn, before: Snapshot | None, is_first: bool, progress: Progress | None
    ) -> Snapshot:
        """The snapshot after a turn that was said before."""
        said = self.model.tokenizer.encode(turn.text) if self.model.tokenizer else []
        session = self._session(before)
        session.feed(self._tokens_of_turn(turn, is_first) + said, progress)
        for token in said:
            session.sampler.accept(token)
        return session.freeze()

    # ----------------------------------------------------------------------------------------- settings

    def choose(self, **sampling: Unpack[SamplingOverrides]) -> None:
        """Change fields of `SamplingSettings`; None is the default again. Raises UsageError for an invalid value."""
        chosen = combined({**self.chosen, **sampling})
        self.settings = self.model.sampling_settings(self.template, self.think, **chosen)
        self.chosen = chosen
        if "seed" in sampling:
            self._generator = None

    def set_think(self, mode: str | None) -> None:
        """Change the thinking mode, and with it the sampling defaults; None is the default again.

        Raises UsageError for a mode that the template does not have.
        """
        self._check(self.system, mode)
        self.settings = self.model.sampling_settings(self.template, mode, **self.chosen)
        self.think = mode

    def set_max_tokens(self, limit: int | None) -> None:
        """Change the most tokens of an answer; None is the default again. Raises UsageError for a negative limit."""
        limit = MAX_ANSWER_TOKENS if limit is None else limit
        check_limit(limit)
        self.max_tokens = limit

    # -------------------------------------------------------------------------------- what it looks like

    @property
    def snapshot(self) -> Snapshot:
        """Where the model stands."""
        return self._at(len(self.turns), None) or Snapshot.empty(self.model.config)

    @property
    def text(self) -> str | None:
        """All that the model has read and said, as the template formats it; None where a part is not known."""
        if self.start.text is None and self.start.kind == "document":
            return None
        pieces = [self.start.text or ""]
        for number, turn in enumerate(self.turns):
            pieces += [self._layout(turn, not number), turn.text]
        return "".join(pieces)

    def parts_of(self, turn: Turn) -> tuple[str, str]:
        """The thought and the answer of a turn, tidied."""
        return split(turn.text, self.template, turn.think)

    def _layout(self, turn: Turn, is_first: bool) -> str:
        if is_first and self.start.kind != "document":
            return self.template.render(turn.user, self.system, turn.think)
        after_document = is_first and self.start.kind == "document"
        return self.template.continuation(turn.user, turn.think, after_document=after_document)

    def _tokens_of_turn(self, turn: Turn, is_first: bool) -> list[int]:
        """What the model reads of a turn before it answers."""
        after_document = is_first and self.start.kind == "document"
        return self.model.encode_prompt(
            turn.user,
            self.template,
            self.system if is_first else None,
            turn.think,
            continued=not is_first or after_document,
            after_document=after_document,
        )

    def _check(self, system: str | None, think: str | None) -> None:
        """Raise UsageError where the template has no place for them, or where it is too late for a system prompt."""
        self.model.check_prompt(self.template, system, think, continued=self.start.kind == "document")

    # ------------------------------------------------------------------------------------------- keeping

    def save(self, path: str | Path) -> None:
        """Write a state file, all or nothing. Raises StorageError, StateError: see `state_file.save`."""
        state_file.save(Path(path), self.to_saved())

    @classmethod
    def load(cls, path: str | Path, model: Model) -> Conversation:
        """The conversation in a state file, or one about the document in it; it continues as if it had never ended.

        Raises StateError for a damaged file, and for the state of another model.
        """
        saved = state_file.load(Path(path))
        if warning := state_file.fit(saved, model):
            log.warning(warning)
        return cls.from_saved(model, saved)

    def record(self) -> Record:
        """All but the state."""
        return Record(
            self.system,
            self.think,
            self.max_tokens,
            self.template,
            self.start,
            tuple(self.turns),
            self.constraint,
        )

    def to_saved(self, name: str = "", *, with_text: bool = True) -> SavedState:
        """All that it takes to continue in another process, with the same words.

        Without the text, what was said becomes a document that the model has read and whose text is unknown.
        """
        record = self.record()
        if not with_text:
            forgotten = Start("document" if self.turns else self.start.kind, begin=self.start.begin)
            record = replace(record, start=forgotten, turns=(), system=None, constraint=None)
        return SavedState(
            snapshot=self._with_generator(self.snapshot),
            model=identify(self.model),
            name=name,
            template=self.template,
            settings=self.chosen,
            text=self.text if with_text else None,
            conversation=record.to_json(),
        )

    @classmethod
    def from_saved(
        cls, model: Model, saved: SavedState, template: Template | None = None, budget: int = BUDGET
    ) -> Conversation:
        """The conversation in a state, or one that begins after the document in it.

        `template` is for a state without a conversation. That the state fits the model is for `state_file.fit` to say.
        Raises StateError for a damaged one, UsageError for settings that this model does not have.
        """
        snapshot = saved.snapshot
        if saved.conversation is None:
            start = Start(
                "document" if snapshot.logits is not None else "state",
                snapshot,
                saved.text,
                _own_template(saved, model).begin,
            )
            template = template or _template_after(saved, model)
            conversation = cls(model, template, start=start, budget=budget, **saved.settings)
        else:
            record = Record.from_json(saved.conversation, saved.text)
            start = record.start
            if not record.turns and start.kind != "nothing":
                start = replace(start, snapshot=snapshot)
            conversation = cls(
                model,
                record.template,
                record.system,
                record.think,
                start=start,
                max_tokens=record.max_tokens,
                budget=budget,
                **saved.settings,
            )
            conversation.turns, conversation.constraint = list(record.turns), record.constraint
            if record.turns:
                conversation.snapshots.put(len(record.turns), snapshot)
        conversation._generator = snapshot.memory.generator if snapshot.memory else None
        return conversation


def _own_template(saved: SavedState, model: Model) -> Template:
    """The template that the text of a state was formatted by; without one, it was read as a document."""
    if saved.template:
        return saved.template
    return get_template("raw") if model.template.is_chat else model.template


def _template_after(saved: SavedState, model: Model) -> Template:
    """The template of a conversation after a document: the document's own, if it is one for conversations."""
    own = _own_template(saved, model)
    return own if own.is_chat else for_chat(model.template)
