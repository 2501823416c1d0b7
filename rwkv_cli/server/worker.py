"""The thread that runs a model: it steps the scheduler, and hands the tokens to the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from rwkv_cli.engine.generate import Finish
from rwkv_cli.engine.scheduler import Handle, Request, Scheduler
from rwkv_cli.engine.scheduler.request import Beginnings
from rwkv_cli.engine.session import Snapshot
from rwkv_cli.errors import DeviceError, RwkvError
from rwkv_cli.generation import Generation, Shown, Step
from rwkv_cli.model import Model
from rwkv_cli.text.thinking import Part

Array = NDArray[np.float32]
T = TypeVar("T")
log = logging.getLogger("rwkv_cli.server")


class Token(NamedTuple):
    """A generated token, as it arrives."""

    id: int
    logprob: float
    parts: Sequence[Part]  # of the text that can be shown now
    top: Sequence[tuple[int, float]] = ()  # the most likely tokens in its place, where they were asked for


@dataclass(frozen=True)
class Options:
    """How a job is to be run, beside what `Model.generate` takes."""

    keeps: bool = False  # whether its end is wanted: `Job.end`
    keeps_prompt: bool = False  # whether the place after the prompt is wanted: `Job.prompt_end`
    top: int = 0  # most likely tokens that are wanted with each token
    beginnings: Beginnings | None = None
    submitter: object = None


_UNLOADED = "the model was unloaded"
PATIENCE = 0.02
"""Seconds that tokens may wait for others to be handed over with them, except for the first and the last one: fifty
times a second is more often than an eye can tell."""

_NO_ERROR: BaseException | None = None


class Job(AsyncIterator[Sequence[Token]]):
    """A generation on its way. Iterating over it gives its tokens, as many at once as have arrived.

    All but the iteration belongs to the worker's thread until the iteration is over.
    """

    def __init__(self, worker: Worker, options: Options) -> None:
        self._worker, self.options = worker, options
        self.loop = asyncio.get_running_loop()
        self._arrived, self._news = deque[Token](), asyncio.Event()
        self._is_over, self._error, self._expiry = False, _NO_ERROR, _NO_ERROR
        self._since = time.perf_counter()
        self.generation: Generation = None  # type: ignore[assignment]  # set by `Worker.submit`, at once
        self.handle: Handle = None  # type: ignore[assignment]
        self.prompt_end: Snapshot | None = None
        self.end: Snapshot | None = None
        self.rest: Sequence[Part] = ()  # of a job that was cancelled: text that was held back
        self.is_begun = False  # whether there was a token
        self.first_after: float | None = None  # seconds from submission to the first token

    @property
    def finish(self) -> Finish | None:
        """Why it ended."""
        return self.generation.finish or self.handle.finish

    @property
    def seconds(self) -> float:
        """Since it was submitted."""
        return time.perf_counter() - self._since

    async def __anext__(self) -> Sequence[Token]:
        while not self._arrived or self._expiry:
            if error := self._expiry or self._error:
                raise error
            if self._is_over:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        return self.taken()

    def taken(self) -> Sequence[Token]:
        """The tokens that have arrived and were not iterated over."""
        tokens = [*self._arrived]
        self._arrived.clear()
        return tokens

    def deliver(self, tokens: Sequence[Token], is_over: bool, error: BaseException | None) -> None:
        """Take what the worker has; on the event loop."""
        if tokens and self.first_after is None:
            self.first_after = self.seconds
        self._arrived += tokens
        self._is_over, self._error = self._is_over or is_over, self._error or error
        self._news.set()

    def expire(self, error: Exception) -> None:
        """Have the iteration raise an error, whatever has arrived; the job goes on."""
        self._expiry = error
        self._news.set()

    async def cancel(self) -> None:
        """End it where it stands; `end` is then the place after what was shown. Nothing if it has ended."""
        if not self._is_over:
            await asyncio.wrap_future(self._worker.call(lambda: self._worker.cancel(self)))

    # --- on the thread of the worker --------------------------------------------------------------------------------

    def advance(self) -> tuple[list[Token], bool]:
        """Take the tokens that have come, and whether they were the last ones. Raises what ends the job."""
        tokens: list[Token] = []
        while self.handle.has_tokens and (step := next(self.generation, None)):
            tokens.append(self._token(step))
            if self.prompt_end is None and self.options.keeps_prompt:
                self.prompt_end = self.handle.snapshot()
        if not self.finish:
            return tokens, False
        if self.options.keeps:
            self.end = self.generation.commit(whole_characters=True)
        return tokens, True

    def stop(self) -> None:
        """Cancel it, and keep where it stands."""
        if self.options.keeps and self.generation.usage.generated_tokens and not self.handle.error:
            rest: Shown = self.generation.rest()
            self.rest = rest.parts
            self.end = self.generation.commit(whole_characters=True)
        else:
            self.handle.close()

    def _token(self, step: Step) -> Token:
        if not self.options.top or (logits := self.handle.logits()) is None:
            return Token(step.token, step.logprob, step.parts)
        logprobs = log_softmax(logits)
        top = most_likely(logprobs, self.options.top)
        return Token(step.token, float(logprobs[step.token]), step.parts, top)


News = tuple[Job, list[Token], bool, BaseException | None]
"""Tokens of a job, whether they were the last ones, and what ended it."""


class Worker:
    """One thread for one model. Everything that touches its backend happens there."""

    def __init__(self, model: Model, slots: int | None = None) -> None:
        """Raises like `Scheduler`."""
        self.model = model
        self.slots = slots or model.backend.batch_size
        self._scheduler = Scheduler(model.backend, self.slots)
        self._jobs = dict[Handle, Job]()
        self._calls = deque[tuple[Callable[[], Any], Future[Any]]]()
        self._news = list[News]()  # that the event loop has not been told of
        self._posted = 0.0  # when it was told last
        self._wake = threading.Event()
        self._is_stopped = False
        self._thread = threading.Thread(target=self._run, name=f"model {model.path.stem}", daemon=True)
        self._thread.start()

    @property
    def running(self) -> int:
        """Sequences that are being read or answered."""
        return self._scheduler.running

    @property
    def waiting(self) -> int:
        """Requests for which there was no room yet."""
        return self._scheduler.waiting

    async def submit(
        self, options: Options, generate: Callable[[Callable[[Request], Handle]], Generation]
    ) -> Job:
        """Start a job; `generate` calls `Model.generate` with the `submit` that it is given.

        Raises what `generate` raises, before anything is read.
        """
        job = Job(self, options)
        future = self.call(lambda: self._start(job, generate))
        try:
            await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            future.add_done_callback(lambda _: self.call(lambda: self.cancel(job)))
            raise
        return job

    def _start(self, job: Job, generate: Callable[[Callable[[Request], Handle]], Generation]) -> None:
        options = job.options

        def submit(request: Request) -> Handle:
            request = replace(
                request,
                keeps=options.keeps or options.keeps_prompt or options.top > 0,
                submitter=options.submitter,
                beginnings=options.beginnings if request.start is None else None,
            )
            job.handle = self._scheduler.submit(request)
            self._jobs[job.handle] = job
            return job.handle

        job.generation = generate(submit)

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Have a function called between two steps, on the thread of the model."""
        future = Future[T]()
        if self._is_stopped:
            future.set_exception(DeviceError(_UNLOADED))
            return future
        self._calls.append((function, future))
        self._wake.set()
        return future

    def cancel(self, job: Job) -> None:
        """End a job; on the thread of the model."""
        self._post()
        if any(each is job for each in self._jobs.values()):
            del self._jobs[job.handle]
            job.stop()

    def stop(self) -> None:
        """End the thread, and every job with an error; waits for the step that is being taken."""
        self._is_stopped = True
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._is_stopped:
            self._do_calls()
            try:
                moved = self._scheduler.step()
            except Exception as error:  # a defect: nobody is to wait for ever
                log.exception("a step of the scheduler failed")
                self._fail_all(error)
                continue
            self._hand_over(moved)
            if not moved and not self._scheduler.running and not self._scheduler.waiting:
                self._wake.wait()
                self._wake.clear()
        self._fail_all(DeviceError(_UNLOADED))
        self._do_calls()

    def _do_calls(self) -> None:
        while self._calls:
            function, future = self._calls.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

    def _hand_over(self, moved: Sequence[Handle]) -> None:
        is_urgent = False
        for handle in moved:
            if not (job := self._jobs.get(handle)):
                continue
            error = _NO_ERROR
            try:
                tokens, is_over = job.advance()
            except Exception as failure:
                if not isinstance(failure, RwkvError):
                    log.exception("a request failed")
                tokens, is_over, error = [], True, failure
            if is_over:
                self._jobs.pop(handle, None)
            is_urgent |= is_over or not job.is_begun
            job.is_begun = True
            self._news.append((job, tokens, is_over, error))
        if is_urgent or time.perf_counter() - self._posted > PATIENCE:
            self._post()

    def _post(self) -> None:
        """Hand the news of all jobs to the event loop; nothing if that has ended."""
        self._posted = time.perf_counter()
        if not self._news:
            return
        news, self._news = self._news, []

        def deliver() -> None:
            for job, tokens, is_over, error in news:
                job.deliver(tokens, is_over, error)

        with contextlib.suppress(RuntimeError):
            news[0][0].loop.call_soon_threadsafe(deliver)

    def _fail_all(self, error: BaseException) -> None:
        jobs, self._jobs = self._jobs, {}
        self._news += [(job, [], True, error) for job in jobs.values()]
        self._post()
        if not self._is_stopped:
            self._scheduler = Scheduler(self.model.backend, self.slots)


def log_softmax(logits: Array) -> Array:
    """The natural logarithms of the probabilities [..., V]."""
    peak = logits.max(axis=-1, keepdims=True)
    shifted = logits - peak
    total = np.exp(shifted).sum(axis=-1, keepdims=True, dtype=np.float64)
    logprobs: Array = (shifted - np.log(total)).astype(np.float32)
    return logprobs


def most_likely(logprobs: Array, n: int) -> list[tuple[int, float]]:
    """The `n` most likely tokens, the likeliest first, of equals the lower id."""
    if n == 1:
        token = int(logprobs.argmax())
        return [(token, float(logprobs[token]))]
    n = min(n, logprobs.size)
    found = np.argpartition(-logprobs, n - 1)[:n] if n < logprobs.size else np.arange(logprobs.size)
    order = np.lexsort((found, -logprobs[found]))
    return [(int(found[i]), float(logprobs[found[i]])) for i in order]
