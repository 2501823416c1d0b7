"""An answer in a conversation: from a request to pieces of text as they come, and to what is kept at the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from rwkv_cli.engine.constraints.grammar import Grammar
from rwkv_cli.engine.generate import Finish
from rwkv_cli.engine.scheduler import Handle, Request
from rwkv_cli.engine.session import Snapshot
from rwkv_cli.errors import RwkvError
from rwkv_cli.generation import Generation
from rwkv_cli.sampling_settings import combined
from rwkv_cli.server.chat import place as places
from rwkv_cli.server.chat.messages import Dialogue, Writer, dialogue
from rwkv_cli.server.chat.place import Place
from rwkv_cli.server.chat.request import ChatRequest
from rwkv_cli.server.chat.tools import CallFilter, with_calls, written
from rwkv_cli.server.http import ApiError
from rwkv_cli.server.loaded import Known, Loaded
from rwkv_cli.server.settings import ServerSettings
from rwkv_cli.server.worker import Job, Options, Token, log
from rwkv_cli.sessions.transcript import Turn
from rwkv_cli.text.template import Template
from rwkv_cli.text.thinking import Part
from rwkv_cli.text.tool_calls.layout import ToolFormat
from rwkv_cli.text.tool_calls.tools import ToolCall

LONG = 512
"""Tokens of a prompt whose place is kept on disk before it is answered."""


@dataclass
class Counts:
    """Tokens and times of an answer."""

    prompt: int = 0
    cached: int = 0  # of the prompt, that were not read again
    generated: int = 0
    thought: int = 0  # of those generated, that were a thought
    first_after: float | None = None  # seconds
    seconds: float = 0.0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0

    def take(self, job: Job, known: int) -> None:
        """Set what a job has done so far; `known` tokens of the prompt were not given to it."""
        usage = job.generation.usage
        self.cached, self.generated = known + usage.cached_tokens, usage.generated_tokens
        self.first_after, self.seconds = job.first_after, job.seconds
        self.prefill_seconds, self.decode_seconds = usage.prefill_seconds, usage.decode_seconds


@dataclass(frozen=True)
class Piece:
    """What an answer grows by."""

    answer: str = ""
    thought: str = ""
    tokens: Sequence[Token] = ()
    calls: Sequence[ToolCall] = ()  # of tools, at the end


@dataclass(frozen=True)
class Prepared:
    """What the model is to read."""

    place: Place
    talk: Dialogue
    writer: Writer
    mode: str | None
    name: str | None  # of the state that the end is saved as
    before: Sequence[int]  # tokens of all turns but the last one
    tokens: Sequence[int]  # of everything, for the cache
    known: int  # how many of them were read before
    start: Snapshot | None  # where the model stands after these
    form: ToolFormat | None  # of calls of tools
    grammar: Grammar | None  # that the answer has to follow


def prepare(loaded: Loaded, known: Known, request: ChatRequest, template: Template | None) -> Prepared:
    """Find out what is to be read. Raises UsageError, StateError for what cannot be."""
    answers = sum(each.role == "assistant" for each in request.messages)
    begins = places.begins_with(request.kept, answers) or known.state
    place = places.open_place(loaded.model, loaded.template, begins, template)
    mode = request.mode(place.template)
    form = request.form.format(place.template, request.messages)
    grammar = request.form.grammar(form)
    if grammar:  # what it is made of is kept, so that the thread of the model has less to do
        loaded.model.constraint(grammar, place.template, mode)
    messages = written(request.messages, form, request.form.offered)
    messages = [each for each in messages if not (each.role == "system" and each.text == place.system)]
    talk = dialogue(messages, has_system=place.template.system is not None and place.after == "nothing")
    writer = Writer(loaded.model, place.template, mode, place.after)
    name = places.ends_in(request.kept)
    mark = place.mark
    before = mark + writer.past(talk)
    tokens = before + writer.prompt(talk)
    found = loaded.turns.longest(tokens)
    if name and request.kept.chat and not found and places.exists(name):
        name = None  # another request in the same chat, such as one for a title
    if found and found[0] >= len(mark):
        return Prepared(place, talk, writer, mode, name, before, tokens, *found, form, grammar)
    return Prepared(place, talk, writer, mode, name, before, tokens, len(mark), place.snapshot, form, grammar)


class Answer:
    """One answer on its way. Iterate over its pieces; then there are `finish` and `counts`. `close` it in any case."""

    def __init__(
        self, settings: ServerSettings, loaded: Loaded, prepared: Prepared, request: ChatRequest
    ) -> None:
        self._settings, self._loaded, self._request = settings, loaded, request
        self._prepared = prepared
        self._job: Job | None = None
        self._text = _Trimmed(trims_start=prepared.talk.begun is None)
        self._thought = _Trimmed()
        self._filter = CallFilter(request.form.offered)
        self._answered, self._is_kept = "", False
        self.calls: Sequence[ToolCall] = ()
        self.finish: Finish | None = None
        self._mark = len(prepared.place.mark)
        self.counts = Counts(len(prepared.tokens) - self._mark)

    async def start(self, index: int = 0) -> None:
        """Have it answered. Raises UsageError, ApiError before anything is read."""
        prepared, request, worker = self._prepared, self._request, self._loaded.worker
        read = prepared.tokens[prepared.known :]
        check_prompt(self._settings, len(read), "messages")
        sampling = combined(self._settings.sampling or {}, request.sampling)
        if index and sampling.get("seed") is not None:
            sampling["seed"] = (sampling["seed"] or 0) + index
        start = prepared.start

        def generate(submit: Callable[[Request], Handle]) -> Generation:
            return self._loaded.model.generate(
                read,
                max_tokens=request.max_tokens,
                template=prepared.place.template,
                think=prepared.mode,
                stop=request.stop,
                constraint=prepared.grammar,
                start=start,
                said=prepared.writer.said(prepared.talk),
                submit=submit,
                **sampling,
            )

        beginnings = None if start or request.top else self._loaded.prompts.beginnings(read)
        options = Options(keeps=True, keeps_prompt=True, top=request.top, beginnings=beginnings)
        self._job = await worker.submit(options, generate)

    async def pieces(self) -> AsyncIterator[Piece]:
        """The pieces, as they come. Raises RwkvError, ApiError where the model fails or takes too long."""
        assert self._job
        async for tokens in arriving(self._job, self._settings.timeout):
            parts = [part for token in tokens for part in token.parts]
            self.counts.thought += sum(any(part.thought for part in token.parts) for token in tokens)
            self._count()
            if piece := self._piece(parts, tokens):
                yield piece
        self._count()
        self.finish = self._job.finish
        if last := self._last():
            yield last
        await self._keep()

    def _piece(self, parts: Sequence[Part], tokens: Sequence[Token]) -> Piece | None:
        thought = self._thought.feed("".join(part.text for part in parts if part.thought))
        text = self._filter.feed("".join(part.text for part in parts if not part.thought))
        answer = self._text.feed(text)
        self._answered += answer
        if not (thought or answer or (tokens and self._request.logprobs)):
            return None
        return Piece(answer, thought, tokens)

    def _last(self) -> Piece | None:
        """What was held back because it might be a call, as text or as calls."""
        text, self.calls = self._filter.flush()
        answer = self._text.feed(text)
        self._answered += answer
        return Piece(answer, calls=self.calls) if answer or self.calls else None

    def _count(self) -> None:
        assert self._job
        self.counts.take(self._job, self._prepared.known - self._mark)

    async def close(self) -> None:
        """End it where it stands, and keep that; nothing if it has ended."""
        job = self._job
        if job is None or self._is_kept:
            return
        try:
            await job.cancel()
        except RwkvError as error:
            log.warning("an answer that was cancelled is lost: %s", error)
            return
        arrived = [part for token in job.taken() for part in token.parts]
        self._piece([*arrived, *job.rest], ())
        self._last()
        self._count()
        try:
            await self._keep(is_whole=False)
        except RwkvError as error:
            log.warning("an answer that was cancelled is lost: %s", error)

    async def _keep(self, *, is_whole: bool = True) -> None:
        """Keep where the conversation stands, in the cache and, if it has a name, as a state."""
        assert self._job
        self._is_kept = True
        await asyncio.to_thread(self._write, self._job, is_whole)

    def _write(self, job: Job, is_whole: bool) -> None:
        prepared, turns = self._prepared, self._loaded.turns
        if job.prompt_end:
            is_long = len(prepared.tokens) - prepared.known >= LONG
            turns.keep(prepared.tokens, job.prompt_end, on_disk=is_long)
        if job.end is None:
            return
        said = with_calls(self._answered, self.calls, prepared.form)
        turn = prepared.writer.turn(prepared.talk, said)
        turns.keep([*prepared.before, *turn], job.end)
        if prepared.name:
            self._save(prepared, job, job.end, is_whole)

    def _save(self, prepared: Prepared, job: Job, end: Snapshot, is_whole: bool) -> None:
        talk, writer, template = prepared.talk, prepared.writer, prepared.place.template
        plain = "off" if template.default_thinking and "off" in template.thinking else None
        turns = [
            Turn(each.user, writer.text_of(each.answer or ""), plain, "end") for each in talk.exchanges[:-1]
        ]
        text = (writer.said(talk) or "") + job.generation.text
        finish = (job.finish or "stopped") if is_whole else "stopped"
        turns.append(Turn(talk.exchanges[-1].user, text, prepared.mode, finish))
        places.save(prepared.name or "", prepared.place, self._loaded.model, talk.system, turns, end)


@dataclass
class _Trimmed:
    """Text that comes in pieces, without white space at its beginning and end."""

    trims_start: bool = True
    _held: str = field(default="", init=False)

    def feed(self, text: str) -> str:
        """What can be shown now: not the white space after which nothing else has come."""
        text = self._held + text
        if self.trims_start:
            text = text.lstrip()
        shown = text.rstrip()
        if not shown:
            self._held = text
            return ""
        self.trims_start, self._held = False, text[len(shown) :]
        return shown


async def arriving(job: Job, seconds: float) -> AsyncIterator[Sequence[Token]]:
    """The tokens of a job as they arrive. Raises ApiError if that takes too long in all."""
    error = ApiError(
        504, f"the answer took longer than {seconds:g} seconds, which is what this server allows"
    )
    timer = job.loop.call_later(max(seconds - job.seconds, 0), job.expire, error)  # one for all tokens
    try:
        async for tokens in job:
            yield tokens
    finally:
        timer.cancel()


def check_prompt(settings: ServerSettings, length: int, field: str) -> None:
    """Raise ApiError for a prompt with more tokens to read than the server takes."""
    if length > settings.max_prompt:
        raise ApiError(
            400,
            f"the prompt has {length:,} tokens to read; this server takes {settings.max_prompt:,}",
            "context_length_exceeded",
            param=field,
        )
