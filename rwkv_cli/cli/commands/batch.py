"""`rwkv generate --batch`: a file of prompts, answered as JSON lines."""

from __future__ import annotations

import json
import sys
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from hashlib import blake2b, file_digest
from itertools import chain

from rwkv_cli.cli.batch.lines import Line, Lines
from rwkv_cli.cli.batch.question import Question, parse
from rwkv_cli.cli.batch.results import Output, ResultFile, continued
from rwkv_cli.cli.commands.one_generation import Request
from rwkv_cli.cli.options import as_flag
from rwkv_cli.cli.terminal import ui
from rwkv_cli.cli.terminal.progress import Answering, TerminalReporter, answering
from rwkv_cli.errors import RwkvError, UsageError, literal
from rwkv_cli.reporting import pluralize
from rwkv_cli.sampling_settings import combined
from rwkv_cli.sessions import resume, state_file
from rwkv_cli.sessions.batch import Answer, Prompt, answers
from rwkv_cli.sessions.prompt_cache import PromptCache
from rwkv_cli.sessions.state_file import SavedState
from rwkv_cli.text.templates import to_json

_MOST_STATES = 16
"""States that lines name and that are kept in memory, for other lines that name them."""


def run(
    request: Request,
    file: str,
    batch_size: int | None = None,
    *,
    unordered: bool = False,
    out: str | None = None,
) -> int:
    """Answer the prompts of a file: the exit code, 1 if a line failed.

    The results are in the order of the lines, unless they may be `unordered`; they go to standard output, or to the
    file `out`, which keeps those that it has. Raises UsageError, before anything is answered, for options and files
    that are wrong as a whole.
    """
    with ExitStack() as stack:
        lines = stack.enter_context(Lines(file))
        coming = iter(lines)
        if (first := next(coming, None)) is None:
            raise UsageError(f"there are no prompts in {lines.name}")
        results = Output()
        if out is not None:
            results = stack.enter_context(continued(out))
            if lines.path and lines.path.samefile(results.path):
                raise UsageError(
                    f"{literal(out)} is the file of the prompts: give another file for the results"
                )
        batch = _Batch(request, lines, results)
        is_shown = isinstance(results, ResultFile) or not ui.is_terminal(sys.stdout)
        with answering(lines.size, request.quiet or not is_shown) as progress:
            return batch.run(chain([first], coming), batch_size, unordered, progress)


class _Batch:
    """A file of prompts on its way to one of results."""

    def __init__(self, request: Request, lines: Lines, results: Output) -> None:
        self._request, self._lines, self._results = request, lines, results
        self._source = resume.open_state(request.state) if request.state is not None else None
        self._saved = self._source.saved if self._source else None
        self._states = OrderedDict[str, SavedState]()  # that lines name, the most recently used last
        self._asked = dict[int, tuple[Line, Question]]()  # what is not answered yet, in the order of asking
        self._n_asked = self._n_lines = self._n_failed = 0
        self._load()
        run = self._digest() if isinstance(results, ResultFile) else ""
        self._seed = results.begin(run, request.sampling.get("seed"))
        if results.n_before and not request.quiet:
            ui.note(
                f"{pluralize(results.n_before, 'result')} of an earlier run: continuing with the other lines"
            )

    def _load(self) -> None:
        """Open the model. Raises UsageError where the options fit neither it nor the state."""
        request, saved = self._request, self._saved
        with TerminalReporter(request.quiet) as reporter:
            self._model = resume.load_model(
                request.model, saved, request.device, request.threads, reporter, request.settings.model
            )
            self._layout = resume.layout_for(request.template, saved, self._model.template)
            ui.detail(f"{self._model.path}: {self._model.backend.description}, template {self._layout.name}")
            if warning := resume.other_template(self._layout, saved, self._model.template):
                reporter.note(warning)
        is_continued = saved is not None and saved.snapshot.logits is not None
        self._model.check_prompt(self._layout, request.system, request.think, continued=is_continued)

    def run(
        self, lines: Iterable[Line], batch_size: int | None, unordered: bool, progress: Answering | None
    ) -> int:
        """Answer the lines that have no result yet: the exit code."""
        request = self._request
        found = answers(
            self._model,
            self._prompts(lines, progress),
            batch_size=batch_size,
            max_tokens=request.max_tokens,
            template=self._layout,
            stop=request.stops,
            start=self._saved.snapshot if self._saved else None,
            after_document=self._saved is not None and self._saved.template is None,
            cache=PromptCache(self._model) if request.cache else None,
            lenient=True,
            in_order=not unordered,
            **combined(request.settings.sampling, request.sampling),
        )
        for answer in found:
            line, question = self._asked.pop(answer.index)
            seed = None if answer.error or "seed" in question.sampling else self._seed + line.index
            self._results.write(_fields(answer, line, question), line, seed)
            self._n_failed += bool(answer.error)
            if progress:
                progress.answered(answer.generated_tokens, line.n_bytes)
        failed = self._n_failed + self._results.n_failed
        if failed:
            ui.error(f"{failed:,} of {pluralize(self._n_lines, 'line')} failed: their results say why")
        return 1 if failed else 0

    def _prompts(self, lines: Iterable[Line], progress: Answering | None) -> Iterator[Prompt]:
        """The prompts of lines that have no result yet."""
        for line in lines:
            self._n_lines += 1
            question = parse(line, self._lines.is_json)
            if self._results.has(line, question):
                if progress:
                    progress.skipped(line.n_bytes)
                continue
            self._asked[self._n_asked] = line, question
            self._n_asked += 1
            yield self._prompt(line, question)

    def _prompt(self, line: Line, question: Question) -> Prompt:
        """What is to be answered; with an error, if it cannot be."""
        where = f"{self._lines.name}, line {line.number}"
        if question.error:
            return Prompt("", where=where, error=question.error)
        request, saved, own = self._request, self._saved, None
        if question.state is not None:
            try:
                saved = own = self._state(question.state)
            except RwkvError as error:
                return Prompt("", where=where, error=error.worded(as_flag))
        return Prompt(
            question.prompt,
            request.system if question.system is None else question.system,
            where,
            request.think if question.think is None else question.think,
            question.max_tokens,
            question.stop,
            combined(
                saved.settings if saved else {},
                request.sampling,
                {"seed": self._seed + line.index},
                question.sampling,
            ),
            constraint=question.constraint or request.constraint,
            start=own.snapshot if own else None,
            after_document=own is not None and own.template is None,
            template=resume.layout_for(request.template, own, self._model.template) if own else None,
        )

    def _state(self, name: str) -> SavedState:
        """The state that a line names, read once as long as lines name it. Raises StateError, UsageError."""
        saved = self._states.pop(name, None)
        if saved is None:
            saved = resume.open_state(name).saved
            if (warning := state_file.fit(saved, self._model)) and not self._request.quiet:
                ui.note(warning)
        self._states[name] = saved
        if len(self._states) > _MOST_STATES:
            self._states.popitem(last=False)
        return saved

    def _digest(self) -> str:
        """A digest of all that the answers depend on, beside the lines and the seed."""
        request, identity = self._request, state_file.identify(self._model)
        state = None
        if self._source:
            with self._source.path.open("rb") as file:
                state = file_digest(file, "sha256").hexdigest()
        sampling = combined(request.settings.sampling, request.sampling, {"seed": None})
        form = request.constraint and (request.constraint.kind, request.constraint.source)
        about = (
            (identity.weights, identity.weight_type, identity.tokenizer, state, to_json(self._layout)),
            (request.max_tokens, request.stops, request.system, request.think, sampling, form),
        )
        text = json.dumps(about, sort_keys=True, default=sorted)
        return blake2b(text.encode(), digest_size=4).hexdigest()


def _fields(answer: Answer, line: Line, question: Question) -> dict[str, object]:
    """The result of a line."""
    begin: dict[str, object] = {"index": line.index, **question.carried}
    if answer.error:
        return {**begin, "error": answer.error}
    return {
        **begin,
        "prompt": question.prompt,
        "text": answer.text,
        **({"thought": answer.thought} if answer.thought else {}),
        "finish": answer.finish,
        "prompt_tokens": answer.prompt_tokens,
        "generated_tokens": answer.generated_tokens,
    }
