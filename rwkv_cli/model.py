"""The Python API: `load` a model, then `forward` tokens or `generate` text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import numpy as np
from numpy.typing import NDArray

from rwkv_cli.catalog import model_store, registry
from rwkv_cli.config import ModelConfig
from rwkv_cli.convert.cache import cached_draft, cached_model_file
from rwkv_cli.convert.conversion import describe
from rwkv_cli.engine.backends import registry as backends
from rwkv_cli.engine.backends.base import Backend
from rwkv_cli.engine.constraint import Constraint, ConstraintMemory
from rwkv_cli.engine.drafting import Drafter, LookupDrafter, ModelDrafter, SelfDrafter
from rwkv_cli.engine.generate import (
    UNLIMITED,
    Ending,
    PromptReader,
    TokenLoop,
    TokenSource,
    read_directly,
)
from rwkv_cli.engine.perplexity import negative_log_likelihoods
from rwkv_cli.engine.sampling import Sampler, SamplerMemory, exempt_tokens
from rwkv_cli.engine.scheduler import Request
from rwkv_cli.engine.session import NOTHING_READ, Session, Snapshot
from rwkv_cli.engine.state import State
from rwkv_cli.engine.token_ids import check_tokens
from rwkv_cli.errors import MissingModelError, UsageError
from rwkv_cli.files.checkpoints import Checkpoint, open_checkpoint
from rwkv_cli.files.model_file import ModelFile, ModelInfo, is_model_file
from rwkv_cli.generation import Generation
from rwkv_cli.lazy import lazy_property
from rwkv_cli.reporting import Progress, Reporter, default_reporter, format_count
from rwkv_cli.sampling_settings import MAX_TOKENS, SamplingOverrides, SamplingSettings, check_names, combined
from rwkv_cli.text.template import Template
from rwkv_cli.text.templates import get_template
from rwkv_cli.text.thinking import ThoughtSplitter
from rwkv_cli.text.tokenizer import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from rwkv_cli.engine.constraints.grammar import Grammar
    from rwkv_cli.engine.constraints.vocabulary import Vocabulary

__all__ = ["UNLIMITED", "Model", "load", "perplexity"]

Array = NDArray[np.float32]

MOST_THREADS = 256


@dataclass(repr=False)
class Model:
    """A model, ready to run."""

    info: ModelInfo  # what its file says of itself
    path: Path  # of the file that it was loaded from
    tokenizer: Tokenizer | None  # None if the checkpoint has none
    backend: Backend
    new_drafter: Callable[[], Drafter] | None = None  # for each text, to make it faster

    def __repr__(self) -> str:
        info, size = self.info, format_count(self.config.n_params)
        return (
            f"<Model {self.path.stem!r}: {size} parameters in {info.weight_type}, {self.config.n_layer} layers, "
            f"template {info.template.name}, on {self.backend.name}>"
        )

    @property
    def config(self) -> ModelConfig:
        """The sizes of the model."""
        return self.info.config

    @property
    def template(self) -> Template:
        """The prompt template that the model was trained on."""
        return self.info.template

    @lazy_property
    def _exempt(self) -> Callable[[int], bool] | frozenset[int]:
        """The tokens that are never penalised."""
        return exempt_tokens(self.tokenizer) if self.tokenizer else frozenset()

    def forward(self, tokens: Sequence[int], state: State | None = None) -> tuple[Array, State]:
        """Read tokens: the logits after the last one, float32 [V], and the new state.

        `state` is where to continue from, None for the beginning; it is left as it is. Raises UsageError for no
        tokens, for a token outside the vocabulary, and for the state of a model of another shape.
        """
        state = self._own(tokens, state)
        return self.backend.forward(tokens, state), state

    def forward_all(self, tokens: Sequence[int], state: State | None = None) -> tuple[Array, State]:
        """Like `forward`, with the logits after each token, float32 [T, V]."""
        state = self._own(tokens, state)
        return self.backend.forward_all(tokens, state), state

    def _own(self, tokens: Sequence[int], state: State | None) -> State:
        """A state that may be changed; checks that both fit the model."""
        check_tokens(np.asarray(tokens), self.config.vocab_size)
        if state is None:
            return State.zeros(self.config)
        state.check_fits(self.config)
        return state.copy()

    def sampler(
        self,
        settings: SamplingSettings,
        memory: SamplerMemory | None = None,
        constraint: Constraint | None = None,
    ) -> Sampler:
        """A sampler for this model's vocabulary, which continues from what another one remembers."""
        return Sampler(settings, self._exempt, memory, constraint)

    def session(
        self,
        settings: SamplingSettings,
        start: Snapshot | None = None,
        constraint: Constraint | None = None,
    ) -> Session:
        """A session of this model, whose sampler continues from what `start` remembers.

        Its constraint goes on, unless there is another one. Raises UsageError for the snapshot of a model of another
        shape, StateError for a damaged one.
        """
        return self._session(self._continued(settings, start, constraint), start)

    def _continued(
        self, settings: SamplingSettings, start: Snapshot | None, constraint: Constraint | None
    ) -> Sampler:
        memory = start.memory if start else None
        if constraint is None and memory and memory.constraint:
            constraint = self._restored(memory.constraint)
        return self.sampler(settings, memory, constraint)

    def _session(self, sampler: Sampler, start: Snapshot | None) -> Session:
        return Session(self.backend, sampler, start, self.new_drafter() if self.new_drafter else None)

    def constraint(
        self, grammar: Grammar, template: Template, think: str | None = None, *, said: str | None = None
    ) -> Constraint:
        """What makes an answer in a template follow a grammar, after the thought if the mode has one.

        `said` is for an answer that is continued: the text up to there. Raises UsageError for a grammar that allows
        nothing, and where the model has no tokenizer.
        """
        from rwkv_cli.engine.constraints.guided import following

        begun = said if said is not None else template.answer_prefix(think)
        ends = (self._end_of_document, *sorted(self.stop_tokens(template) - {self._end_of_document}))
        return following(grammar, self._vocabulary(ends), begun if template.is_chat else None)

    def _restored(self, memory: ConstraintMemory) -> Constraint:
        from rwkv_cli.engine.constraints.guided import GrammarConstraint

        return GrammarConstraint.restored(memory, self._vocabulary(memory.ends))

    def _vocabulary(self, ends: tuple[int, ...]) -> Vocabulary:
        from rwkv_cli.engine.constraints.vocabulary import vocabulary

        if self.tokenizer is None:
            raise UsageError("a constraint needs a tokenizer, which this model does not have")
        return vocabulary(self.tokenizer, self.config.vocab_size, ends)  # type: ignore[arg-type]  # by identity

    @property
    def _end_of_document(self) -> int:
        return self.tokenizer.end_of_document if self.tokenizer else 0

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int = MAX_TOKENS,
        template: str | Template | None = "raw",
        system: str | None = None,
        think: str | None = None,
        stop: Sequence[str] = (),
        constraint: Grammar | None = None,
        start: Snapshot | None = None,
        after_document: bool = False,
        said: str | None = None,
        unfinished: bytes = b"",
        reader: PromptReader = read_directly,
        submit: Callable[[Request], TokenSource] | None = None,
        progress: Progress | None = None,
        **sampling: Unpack[SamplingOverrides],
    ) -> Generation:
        """Iterate over the tokens that follow a prompt, a `Step` each.

        `prompt` is a text, formatted by `template` (None for the model's own), or tokens; `think` is one of the
        template's thinking modes. `max_tokens` of -1 sets no limit. The defaults of `sampling` are those of the
        template and, if it is the model's own, those of the model file. The generation also ends at the end of the
        document and before a stop string, which is not part of the text. `constraint` is what the answer has to look
        like: it ends as soon as nothing may follow, and the stop strings of the template have no meaning. `start` is
        where to continue from, with its sampler: no prompt is needed there, and one in a template of conversations is
        the next turn, or the first one `after_document`. It is left as it is. `said` is the text up to there, where an
        answer is continued: it tells whether that is in the middle of a thought; `unfinished` are the bytes of a
        character that `start` has read half of. `reader` reads the prompt, perhaps from a cache; `submit`, such as
        `Scheduler.submit`, has the tokens computed beside those of others. `progress` receives the tokens read. Raises
        UsageError for invalid settings.
        """
        layout = get_template(template) if isinstance(template, str) else template or self.template
        has_read = start is not None and start.logits is not None
        if isinstance(prompt, str):
            prompt = self.encode_prompt(
                prompt, layout, system, think, continued=has_read, after_document=after_document
            )
        if len(prompt) or not has_read:
            check_tokens(np.asarray(prompt), self.config.vocab_size)
        settings = self.sampling_settings(layout, think, **sampling)
        if start and start.memory and start.memory.constraint and len(prompt):  # what that followed is over
            start = replace(start, memory=replace(start.memory, constraint=None))
        followed = self.constraint(constraint, layout, think, said=said) if constraint else None
        sampler = self._continued(settings, start, followed)
        is_constrained = sampler.constraint is not None
        request = Request(
            prompt,
            sampler,
            self.ending(layout, max_tokens),
            start,
        )
        generation = Generation(
            submit(request) if submit else self._run_alone(request, reader),
            self.tokenizer,
            stop if is_constrained else (*layout.stop, *stop),
            splitter=ThoughtSplitter(layout, think, said=said, trims=is_constrained and said is None),
            unfinished=unfinished,
        )
        if progress:
            generation.report_to(progress)
        return generation

    def _run_alone(self, request: Request, reader: PromptReader) -> TokenLoop:
        """The tokens of a request, as they are asked for."""
        session = self._session(request.sampler, request.start)
        return TokenLoop(session, request.tokens, request.ending, reader)

    def ending(self, template: Template, max_tokens: int) -> Ending:
        """What ends an answer in a template. Raises UsageError for an invalid limit."""
        end = self.tokenizer.end_of_document if self.tokenizer else 0
        return Ending(end, self.stop_tokens(template), max_tokens)

    def stop_tokens(self, template: Template) -> frozenset[int]:
        """The tokens that end an answer beside the end of the document: those of the template, and the model's own."""
        tokenizer = self.tokenizer
        found = [tokenizer.encode(text) for text in template.stop_tokens] if tokenizer else []
        others = tokenizer.spec.ends[1:] if tokenizer else ()
        return frozenset([*(tokens[0] for tokens in found if len(tokens) == 1), *others])

    def sampling_settings(
        self, template: Template, think: str | None = None, **overrides: Unpack[SamplingOverrides]
    ) -> SamplingSettings:
        """What to sample with: `overrides` that are not None, over the defaults of the model and of the template.

        The template may have others for each mode of thinking.
        """
        check_names(overrides)
        own = self.info.sampling if template == self.template else {}
        defaults = {**template.sampling_for(think), **own, **combined(overrides)}
        settings = SamplingSettings(**defaults)  # type: ignore[arg-type]
        named = max({*settings.logit_bias, *settings.banned}, default=0)
        if named >= self.config.vocab_size:
            raise UsageError(f"there is no token {named}: the model has {self.config.vocab_size:,}")
        return settings

    def encode_prompt(
        self,
        prompt: str,
        template: Template,
        system: str | None = None,
        think: str | None = None,
        *,
        continued: bool = False,
        after_document: bool = False,
    ) -> list[int]:
        """The tokens of a prompt in a template: the first turn of a conversation or, if it is `continued`, another.

        `after_document` means that what was read before is a document, and not a conversation in this template. Empty
        for an empty prompt that nothing is put around. Raises UsageError where the template has no place for something,
        or the model has no tokenizer.
        """
        tokenizer = self.check_prompt(template, system, think, continued=continued)
        if not prompt and not continued:
            raise UsageError(NOTHING_READ)
        if not continued:
            begin = [tokenizer.end_of_document] if template.begin else []
            return begin + tokenizer.encode(template.render(prompt, system, think))
        if not prompt:
            return []
        return tokenizer.encode(template.continuation(prompt, think, after_document=after_document))

    def check_prompt(
        self, template: Template, system: str | None, think: str | None, *, continued: bool
    ) -> Tokenizer:
        """What encodes a prompt in a template. Raises UsageError like `encode_prompt`, whatever the prompt."""
        if self.tokenizer is None:
            raise UsageError(
                f"{self.path} has no tokenizer: put its tokenizer.json beside the published checkpoint and use that"
            )
        if continued and system is not None:
            raise UsageError("a system prompt comes first, and this continues from a state")
        template.check(system, think)
        return self.tokenizer


def load(
    path_or_name: str | Path | None = None,
    device: str = backends.AUTO,
    *,
    threads: int | None = None,
    draft: str | Path | None = None,
    reporter: Reporter | None = None,
) -> Model:
    """Open a model: the embedded one, a model file, or a published checkpoint of any format.

    `device` is one of `engine.backends.registry.DEVICES`; "auto" takes the GPU where it can. On "reference" a
    checkpoint is read as it is, in float32; on the others it is quantized to int8 once, into the user's cache.
    `threads` is for the CPU; None takes one per core. With a `draft`, single texts are generated by speculation: it
    proposes, with "lookup", what came before, with "self" what the same weights say in int4, or what another model with
    the same vocabulary says; the text stays the same. Raises an RwkvError, in one sentence, if that fails.
    """
    reporter = reporter or default_reporter()
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise UsageError(f"{{threads}} is {threads}: it must be between 1 and {MOST_THREADS}")
    backends.check(device)
    try:
        path = registry.locate(path_or_name)
    except MissingModelError as error:
        path = reporter.missing(error)
    model_store.note_use(path)
    source, info = _opened(path, device, reporter)
    tokenizer = load_tokenizer(info.tokenizer, info.config.vocab_size) if info.tokenizer else None
    backend, _, failure = backends.open_backend(device, source, threads, reporter.compiling)
    if failure:
        reporter.note(f"computing on the CPU: {failure}")
    model = Model(info, path, tokenizer, backend)
    if draft is not None:
        if not isinstance(source, ModelFile):
            raise UsageError("{draft} needs a model file: not {device=reference} on a checkpoint")
        model.new_drafter = _drafters(model, source.path, draft, device, threads, reporter)
    return model


def _drafters(
    model: Model, file: Path, draft: str | Path, device: str, threads: int | None, reporter: Reporter
) -> Callable[[], Drafter]:
    """What makes drafters for a model. Raises UsageError for a draft that cannot propose its tokens."""
    if draft == "lookup":
        return LookupDrafter
    if draft == "self":
        if model.info.weight_type == "int4":
            raise UsageError("{draft} is self, which is int4, and the model is int4 itself: use lookup")
        backend = load(cached_draft(file, reporter), device, threads=threads, reporter=reporter).backend
        return lambda: SelfDrafter(backend)
    other = load(draft, device, threads=threads, reporter=reporter)
    if (other.info.tokenizer, other.config.vocab_size) != (model.info.tokenizer, model.config.vocab_size):
        raise UsageError(
            f"{draft} has another vocabulary than {model.path}: a draft must have the same tokens"
        )
    return lambda: ModelDrafter(other.backend)


def _opened(path: Path, device: str, reporter: Reporter) -> tuple[ModelFile | Checkpoint, ModelInfo]:
    """What the backend reads the weights from; a checkpoint is quantized first, but for the reference backend."""
    if not is_model_file(path):
        checkpoint = open_checkpoint(path)
        if device == "reference":
            return checkpoint, describe(checkpoint, "fp32")
        path = cached_model_file(checkpoint, reporter)
    model = ModelFile(path)
    return model, model.info


def perplexity(model: Model, text: str | Sequence[int]) -> float:
    """How badly a model predicts a text, or tokens: exp of the mean of -ln p over all tokens but the first.

    The text is read as it is, from an empty state. Raises UsageError for fewer than two tokens, and for a token outside
    the vocabulary.
    """
    if isinstance(text, str):
        tokenizer = model.check_prompt(model.template, None, None, continued=False)
        text = tokenizer.encode(text)
    if len(text) < 2:
        raise UsageError("the text is too short: it must have at least two tokens")
    check_tokens(np.asarray(text), model.config.vocab_size)
    return float(np.exp(negative_log_likelihoods(model.backend, text).mean()))
