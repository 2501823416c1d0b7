"""A batch as data, and a model that is loaded for it, which makes a prompt of each row."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b, file_digest

from rwkv_cli.datasets.question import Question
from rwkv_cli.engine.constraints.grammar import Grammar
from rwkv_cli.engine.session import Snapshot
from rwkv_cli.errors import FieldSpelling, RwkvError
from rwkv_cli.reporting import Reporter
from rwkv_cli.sampling_settings import MAX_TOKENS, SamplingOverrides, SamplingSettings, combined
from rwkv_cli.sessions import resume, state_file
from rwkv_cli.sessions.batch import Answer, Prompt, answers
from rwkv_cli.sessions.prompt_cache import PromptCache
from rwkv_cli.sessions.state_file import SavedState
from rwkv_cli.text.template import Template
from rwkv_cli.text.templates import get_template, to_json

_MOST_STATES = 16
"""States that rows name and that are kept in memory, for other rows that name them."""


@dataclass(frozen=True)
class Job:
    """What all rows of a batch have in common. It can be pickled: other processes load the model themselves."""

    model: str | None = None  # a name or a path; None for that of the state, or the default
    default_model: str | None = None  # the user's
    device: str = "auto"
    threads: int | None = None
    template: Template | None = None  # None for that of the state, or the model's own
    system: str | None = None
    think: str | None = None  # a mode of the template
    stops: Sequence[str] = ()
    max_tokens: int = MAX_TOKENS  # of an answer
    sampling: SamplingOverrides = field(default_factory=SamplingOverrides)  # that was chosen
    default_sampling: SamplingOverrides = field(default_factory=SamplingOverrides)  # the user's
    constraint: Grammar | None = None  # what answers have to look like
    state: str | None = None  # a name or a file: where all rows continue from
    document: str | None = None  # a text that all rows continue in place of a state; it is read once
    cache: bool = True  # whether what prompts begin with is kept on disk for the next run
    batch_size: int | None = None  # rows that are answered together; None for the backend's number


class Answerer:
    """A model that is loaded for a job."""

    def __init__(self, job: Job, reporter: Reporter, spelled: FieldSpelling) -> None:
        """`spelled` spells the fields in errors of rows. Raises an RwkvError where the job cannot be done at all."""
        self.job = job
        self._reporter, self._spelled = reporter, spelled
        self._source = resume.open_state(job.state) if job.state is not None else None
        self._saved = self._source.saved if self._source else None
        self._states = OrderedDict[str, SavedState]()  # that rows name, the most recently used last
        self.model = resume.load_model(
            job.model, self._saved, job.device, job.threads, reporter, job.default_model
        )
        self.layout = resume.layout_for(job.template, self._saved, self.model.template)
        if warning := resume.other_template(self.layout, self._saved, self.model.template):
            reporter.note(warning)
        self._start, self._after_document = self._begun()
        is_continued = self._start is not None and self._start.logits is not None
        self.model.check_prompt(self.layout, job.system, job.think, continued=is_continued)

    def _begun(self) -> tuple[Snapshot | None, bool]:
        """Where all rows start, and whether that is a document. Raises UsageError where there is no tokenizer."""
        if self._saved:
            return self._saved.snapshot, self._saved.template is None
        if self.job.document is None:
            return None, False
        own = self.model.template
        session = self.model.session(SamplingSettings())
        session.feed(
            self.model.encode_prompt(self.job.document, own if own.is_plain else get_template("raw"))
        )
        return session.freeze(), True

    @property
    def slots(self) -> int:
        """Rows that are answered together."""
        return self.job.batch_size or self.model.backend.batch_size

    def answers(self, prompts: Iterable[Prompt | None], *, in_order: bool) -> Iterator[Answer]:
        """The answers to prompts that `prompt` made: see `sessions.batch.answers`."""
        job = self.job
        return answers(
            self.model,
            prompts,
            batch_size=job.batch_size,
            max_tokens=job.max_tokens,
            template=self.layout,
            stop=job.stops,
            start=self._start,
            after_document=self._after_document,
            cache=PromptCache(self.model) if job.cache else None,
            lenient=True,
            in_order=in_order,
            **combined(job.default_sampling, job.sampling),
        )

    def prompt(self, question: Question, seed: int, where: str) -> Prompt:
        """What is to be answered, with a seed unless the question has its own; with an error, if it cannot be.

        `where` says where the question comes from, such as a line of a file.
        """
        if question.error:
            return Prompt("", where=where, error=question.error)
        job, saved, own = self.job, self._saved, None
        if question.state is not None:
            try:
                saved = own = self._state(question.state)
            except RwkvError as error:
                return Prompt("", where=where, error=error.worded(self._spelled))
        return Prompt(
            question.prompt,
            job.system if question.system is None else question.system,
            where,
            job.think if question.think is None else question.think,
            question.max_tokens,
            question.stop,
            combined(saved.settings if saved else {}, job.sampling, {"seed": seed}, question.sampling),
            constraint=question.constraint or job.constraint,
            start=own.snapshot if own else None,
            after_document=own is not None and own.template is None,
            template=resume.layout_for(job.template, own, self.model.template) if own else None,
        )

    def _state(self, name: str) -> SavedState:
        """The state that a row names, read once as long as rows name it. Raises StateError, UsageError."""
        saved = self._states.pop(name, None)
        if saved is None:
            saved = resume.open_state(name).saved
            if warning := state_file.fit(saved, self.model):
                self._reporter.note(warning)
        self._states[name] = saved
        if len(self._states) > _MOST_STATES:
            self._states.popitem(last=False)
        return saved

    def digest(self) -> str:
        """A digest of all that answers depend on, beside the rows and the seed."""
        job, identity = self.job, state_file.identify(self.model)
        state = None
        if self._source:
            with self._source.path.open("rb") as file:
                state = file_digest(file, "sha256").hexdigest()
        sampling = combined(job.default_sampling, job.sampling, {"seed": None})
        form = job.constraint and (job.constraint.kind, job.constraint.source)
        about: tuple[object, ...] = (
            (identity.weights, identity.weight_type, identity.tokenizer, state, to_json(self.layout)),
            (job.max_tokens, job.stops, job.system, job.think, sampling, form),
        )
        if job.document is not None:
            about += ((job.document,),)
        text = json.dumps(about, sort_keys=True, default=sorted)
        return blake2b(text.encode(), digest_size=4).hexdigest()
