"""What the routes of all APIs call: models, answers, and the record of what was done."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from starlette.requests import Request

from rwkv_cli.errors import UsageError
from rwkv_cli.reporting import Reporter
from rwkv_cli.server.chat import completion
from rwkv_cli.server.chat.answer import Answer, Counts, Piece, prepare
from rwkv_cli.server.chat.completion import Completion, CompletionRequest
from rwkv_cli.server.chat.request import ChatRequest
from rwkv_cli.server.loaded import Known, Loaded, Log, Models
from rwkv_cli.server.metrics import Gauges, Metrics
from rwkv_cli.server.response_store import ResponseStore
from rwkv_cli.server.settings import ServerSettings
from rwkv_cli.server.worker import Token
from rwkv_cli.text.template import Template
from rwkv_cli.text.templates import get_template
from rwkv_cli.text.tool_calls.tools import ToolCall


class Service:
    """One server: its settings, models and metrics."""

    def __init__(self, settings: ServerSettings, reporter: Reporter, log: Log) -> None:
        """Raises what locating the default model raises."""
        self.settings, self.log = settings, log
        self.models = Models(settings, reporter, log)
        self.metrics = Metrics()
        self.responses = ResponseStore(on_disk=settings.disk_bytes > 0)

    async def answers(
        self, request: Request, asked: ChatRequest, n: int = 1, template: str | None = None
    ) -> Answers:
        """Begin `n` answers. Raises UsageError, StateError, ApiError before anything is read."""
        if n > 1 and (asked.kept.session or asked.kept.save_as):
            raise UsageError("{n} must be 1 where the end is saved as a state")
        layout: Template | None = get_template(template) if template else None
        self._log_prompt(asked.messages[-1].text if asked.messages else "")
        known, loaded = await self.models.acquire(asked.model, queues=True)
        answers = Answers(self, request, known, loaded, n)
        try:
            prepared = await asyncio.to_thread(prepare, loaded, known, asked, layout)
            for index in range(n):
                answer = Answer(self.settings, loaded, prepared, asked)
                await answer.start(index)
                answers.all.append(answer)
        except BaseException:
            await asyncio.shield(answers.close())
            raise
        return answers

    async def completions(self, request: Request, asked: CompletionRequest, n: int = 1) -> Answers:
        """Begin `n` continuations of each prompt. Raises like `answers`."""
        if n * len(asked.prompts) > 1 and (asked.kept.session or asked.kept.save_as):
            raise UsageError("one text can be saved as a state, not several: {n} must be 1, with one prompt")
        for prompt in asked.prompts:
            self._log_prompt(prompt if isinstance(prompt, str) else f"{len(prompt)} tokens")
        known, loaded = await self.models.acquire(asked.model, queues=True)
        answers = Answers(self, request, known, loaded, n)
        try:
            for source in await asyncio.to_thread(completion.prepare, loaded, asked):
                for index in range(n):
                    each = Completion(self.settings, loaded, source, asked)
                    answers.all.append(each)
                    await each.start(index)
        except BaseException:
            await asyncio.shield(answers.close())
            raise
        return answers

    def _log_prompt(self, text: str) -> None:
        if self.settings.log_prompts:
            self.log(f"asked: {text!r}")

    def note(self, counts: Counts) -> None:
        """Count an answer in the metrics."""
        self.metrics.note_answer(
            counts.prompt, counts.cached, counts.generated, counts.first_after, counts.seconds
        )

    def gauges(self) -> list[Gauges]:
        """How things stand with each model that is loaded."""
        return [
            Gauges(each.name, each.worker.running, each.worker.waiting, each.turns.nbytes)
            for each in self.models.loaded
        ]


class Answers:
    """Answers to the same request. `close` them in any case."""

    def __init__(self, service: Service, request: Request, known: Known, loaded: Loaded, n: int) -> None:
        """`n` answers belong to each prompt."""
        self._service, self._request, self.known, self.loaded, self._n = service, request, known, loaded, n
        self.all = list[Answer | Completion]()
        self._is_closed = False

    async def pieces(self) -> AsyncIterator[tuple[int, Piece | None]]:
        """The pieces of all answers as they come, each with the index of its answer; None at the end of one."""
        if len(self.all) == 1:
            async for each in self.all[0].pieces():
                yield 0, each
            yield 0, None
            return
        queue = asyncio.Queue[tuple[int, Piece | None]]()

        async def take(index: int, answer: Answer | Completion) -> None:
            try:
                async for piece in answer.pieces():
                    queue.put_nowait((index, piece))
            finally:
                queue.put_nowait((index, None))

        tasks = [asyncio.create_task(take(index, answer)) for index, answer in enumerate(self.all)]
        try:
            left = len(tasks)
            while left:
                index, piece = await queue.get()
                if piece is None:
                    left -= 1
                    await tasks[index]
                yield index, piece
        finally:
            for task in tasks:
                task.cancel()

    async def collect(self) -> list[Collected]:
        """All answers, once they are complete."""
        found = [Collected() for _ in self.all]
        async for index, piece in self.pieces():
            if piece:
                found[index].add(piece)
        return found

    @property
    def counts(self) -> Counts:
        """Tokens of all answers together."""
        first, prompts = self.all[0].counts, [each.counts for each in self.all[:: self._n]]
        return Counts(
            sum(each.prompt for each in prompts),
            sum(each.cached for each in prompts),
            sum(each.counts.generated for each in self.all),
            sum(each.counts.thought for each in self.all),
            first.first_after,
            first.seconds,
            first.prefill_seconds,
            first.decode_seconds,
        )

    async def close(self) -> None:
        """End all answers where they stand, and count them."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            for answer in self.all:
                await answer.close()
        finally:
            self.loaded.release()
            for answer in self.all:
                self._service.note(answer.counts)
            if self.all:
                finish = ",".join(each.finish or "cancelled" for each in self.all)
                record = {"model": self.known.name, "counts": self.counts, "finish": finish}
                self._request.scope["rwkv"] = record  # for the log


@dataclass
class Collected:
    """A whole answer."""

    answer: str = ""
    thought: str = ""
    tokens: tuple[Token, ...] = ()
    calls: tuple[ToolCall, ...] = ()

    def add(self, piece: Piece) -> None:
        """Append a piece."""
        self.answer += piece.answer
        self.thought += piece.thought
        self.tokens += tuple(piece.tokens)
        self.calls += tuple(piece.calls)


def service_of(request: Request) -> Service:
    """The service of a request."""
    service: Service = request.app.state.service
    return service
