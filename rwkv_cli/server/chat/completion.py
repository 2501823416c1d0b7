"""The continuation of a text, without turns: for OpenAI's older API, evaluation harnesses and ollama's raw prompts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from rwkv_cli.engine.constraints.grammar import Grammar
from rwkv_cli.engine.generate import Finish
from rwkv_cli.engine.scheduler import Handle, Request
from rwkv_cli.engine.session import Snapshot
from rwkv_cli.engine.state import State
from rwkv_cli.engine.token_ids import check_tokens
from rwkv_cli.errors import UsageError
from rwkv_cli.generation import Generation
from rwkv_cli.sampling_settings import SamplingOverrides, combined
from rwkv_cli.server.chat import place as places
from rwkv_cli.server.chat.answer import Counts, Piece, arriving, check_prompt
from rwkv_cli.server.chat.request import Kept
from rwkv_cli.server.chat.tools import Form
from rwkv_cli.server.loaded import Loaded
from rwkv_cli.server.settings import ServerSettings
from rwkv_cli.server.worker import Job, Options, Token, log_softmax, most_likely
from rwkv_cli.sessions import state_file, state_store
from rwkv_cli.sessions.state_file import SavedState
from rwkv_cli.text.template import Template
from rwkv_cli.text.templates import get_template
from rwkv_cli.text.thinking import Part
from rwkv_cli.text.tool_calls.tools import ToolCall

Array = NDArray[np.float32]

_SCORED = 128
"""Tokens whose logits are computed at the same time: 4 bytes for each entry of the vocabulary."""


@dataclass(frozen=True)
class CompletionRequest:
    """Texts to continue."""

    model: str | None
    prompts: Sequence[str | Sequence[int]]
    max_tokens: int
    stop: Sequence[str] = ()
    sampling: SamplingOverrides = field(default_factory=SamplingOverrides)
    top: int | None = (
        None  # most likely tokens that are wanted with each token; None: no probabilities at all
    )
    echo: bool = False
    kept: Kept = field(default_factory=Kept)
    form: Form = field(default_factory=Form)


@dataclass(frozen=True)
class Source:
    """What a text continues."""

    tokens: Sequence[int]  # to read
    text: str
    saved: SavedState | None = None
    grammar: Grammar | None = None  # that the continuation has to follow


def prepare(loaded: Loaded, request: CompletionRequest) -> list[Source]:
    """The tokens of all prompts. Raises UsageError for tokens outside the vocabulary, StateError for another state."""
    saved, session = None, request.kept.session
    name = request.kept.state or (session if session and places.exists(places.checked(session)) else None)
    if name:
        saved = state_file.load(state_store.find(places.checked(name)))
        state_file.fit(saved, loaded.model)
    if grammar := request.form.grammar(None):
        loaded.model.constraint(grammar, plain_template(loaded.model.template))
    return [replace(_source(loaded, prompt, saved), grammar=grammar) for prompt in request.prompts]


def _source(loaded: Loaded, prompt: str | Sequence[int], saved: SavedState | None) -> Source:
    model = loaded.model
    has_read = saved is not None and saved.snapshot.logits is not None
    if isinstance(prompt, str):
        tokenizer = model.check_prompt(get_template("raw"), None, None, continued=has_read)
        tokens = tokenizer.encode(prompt)
        if not has_read and (plain_template(model.template).begin or not tokens):
            tokens = [tokenizer.end_of_document, *tokens]
        return Source(tokens, prompt, saved)
    if len(prompt):
        check_tokens(np.asarray(prompt), model.config.vocab_size)
    text = model.tokenizer.decode(prompt) if model.tokenizer else ""
    return Source(prompt, text, saved)


def plain_template(own: Template) -> Template:
    """The format of a text that is continued: the model's own, if that adds no turns."""
    return own if own.is_plain else get_template("raw")


class Completion:
    """One continuation on its way: see `Answer`."""

    def __init__(
        self, settings: ServerSettings, loaded: Loaded, source: Source, request: CompletionRequest
    ) -> None:
        self._settings, self._loaded, self._source, self._request = settings, loaded, source, request
        self._job: Job | None = None
        self._start: Snapshot | None = None
        self._known, self._is_kept = 0, False
        self._text = ""
        self.echoed: list[Token] = []  # the tokens of the prompt with their probabilities
        self.finish: Finish | None = None
        self.calls: Sequence[ToolCall] = ()  # none: a text has no tools
        self.counts = Counts(len(source.tokens))

    @property
    def prompt_text(self) -> str:
        """The text of the prompt."""
        return self._source.text

    async def start(self, index: int = 0) -> None:
        """See `Answer.start`."""
        source, request, turns = self._source, self._request, self._loaded.turns
        check_prompt(self._settings, len(source.tokens), "prompt")
        if saved := source.saved:
            memory = replace(saved.snapshot.memory, generator=None) if saved.snapshot.memory else None
            self._start = replace(saved.snapshot, memory=memory)
        if request.echo and request.top is not None and source.tokens:
            await self._score()
        elif not saved and (found := await asyncio.to_thread(turns.longest, source.tokens)):
            self._known, self._start = found
        read = source.tokens[self._known :]
        sampling = combined(self._settings.sampling or {}, request.sampling)
        if index and sampling.get("seed") is not None:
            sampling["seed"] = (sampling["seed"] or 0) + index

        def generate(submit: Callable[[Request], Handle]) -> Generation:
            return self._loaded.model.generate(
                read,
                max_tokens=request.max_tokens,
                template=plain_template(self._loaded.model.template),
                stop=request.stop,
                constraint=source.grammar,
                start=self._start,
                submit=submit,
                **sampling,
            )

        keeps = request.max_tokens != 1 or self._name is not None
        beginnings = None if self._start or request.top else self._loaded.prompts.beginnings(read)
        options = Options(keeps=keeps, top=request.top or 0, beginnings=beginnings)
        self._job = await self._loaded.worker.submit(options, generate)

    @property
    def _name(self) -> str | None:
        return self._request.kept.save_as or self._request.kept.session

    async def _score(self) -> None:
        """Read the prompt and note how likely each of its tokens was; then nothing is left to read."""
        backend, tokens = self._loaded.model.backend, self._source.tokens
        start = self._start or Snapshot(State.zeros(backend.config))
        state, logits = start.state.copy(), start.logits
        for begin in range(0, len(tokens), _SCORED):
            part = tokens[begin : begin + _SCORED]
            found = await asyncio.wrap_future(
                self._loaded.worker.call(lambda part=part: backend.forward_all(part, state))  # type: ignore[misc]
            )
            rows = [*([] if logits is None else [logits]), *found[:-1]]
            scored = await asyncio.to_thread(
                _scored, part, np.stack(rows) if rows else None, self._request.top or 0
            )
            self.echoed += scored
            logits = found[-1].copy()
        self._start, self._known = (
            Snapshot(state, logits, start.n_tokens + len(tokens), start.memory),
            len(tokens),
        )

    async def pieces(self) -> AsyncIterator[Piece]:
        """See `Answer.pieces`."""
        assert self._job
        async for tokens in arriving(self._job, self._settings.timeout):
            text = "".join(part.text for token in tokens for part in token.parts)
            self._text += text
            self._count()
            yield Piece(text, "", tokens)
        self._count()
        self.finish = self._job.finish
        await self._keep()

    def _count(self) -> None:
        assert self._job
        self.counts.take(self._job, 0 if self.echoed else self._known)

    async def close(self) -> None:
        """See `Answer.close`."""
        if self._job and not self._is_kept:
            await self._job.cancel()
            arrived = [part for token in self._job.taken() for part in token.parts]
            self._text += "".join(part.text for part in (*arrived, *self._job.rest))
            self._count()
            await self._keep()

    async def _keep(self) -> None:
        self._is_kept = True
        await asyncio.to_thread(self._write)

    def _write(self) -> None:
        assert self._job
        end, source, model = self._job.end, self._source, self._loaded.model
        if end is None or model.tokenizer is None:
            return
        if not source.saved:
            said = model.tokenizer.encode(self._text)
            self._loaded.turns.keep(
                [*source.tokens, *said], end, on_disk=len(source.tokens) + len(said) >= _SCORED
            )
        if self._name:
            self._save(self._name, end)

    def _save(self, name: str, end: Snapshot) -> None:
        source, model = self._source, self._loaded.model
        before = source.saved.text if source.saved else ""
        path = state_store.resolve(places.checked(name))
        if source.saved and source.saved.conversation is not None:
            raise UsageError("{state} is a conversation: continue it with /v1/chat/completions to save it")
        saved = SavedState(
            end,
            state_file.identify(model),
            template=plain_template(model.template),
            text=None if before is None else before + source.text + self._text,
        )
        state_store.prepare(path)
        with state_store.lock(path):
            state_store.save(path, saved)


def _scored(tokens: Sequence[int], logits: Array | None, top: int) -> list[Token]:
    """Tokens with their probabilities, from the logits before each; the first one of all may have none."""
    if logits is None:
        return [Token(token, float("nan"), (Part(""),)) for token in tokens]
    logprobs = log_softmax(logits)
    first = len(tokens) - len(logprobs)
    scored = [Token(token, float("nan"), ()) for token in tokens[:first]]
    for token, row in zip(tokens[first:], logprobs, strict=True):
        scored.append(Token(token, float(row[token]), (), most_likely(row, top) if top else ()))
    return scored
