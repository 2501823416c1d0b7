"""`rwkv generate --batch`: a file of prompts, answered as JSON lines."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import chain

from rwkv_cli.cli.batch.lines import Lines
from rwkv_cli.cli.batch.results import Output, ResultFile, continued
from rwkv_cli.cli.options import as_flag
from rwkv_cli.cli.terminal import ui
from rwkv_cli.cli.terminal.progress import Answering, TerminalReporter, answering
from rwkv_cli.datasets.job import Answerer, Job
from rwkv_cli.datasets.lines import Line
from rwkv_cli.datasets.question import Question, parse_line
from rwkv_cli.errors import UsageError, literal
from rwkv_cli.reporting import pluralize
from rwkv_cli.sessions.batch import Answer, Prompt


def run(job: Job, file: str, *, unordered: bool = False, out: str | None = None, quiet: bool = False) -> int:
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
        batch = _Batch(job, lines, results, quiet)
        is_shown = isinstance(results, ResultFile) or not ui.is_terminal(sys.stdout)
        with answering(lines.size, quiet or not is_shown) as progress:
            return batch.run(chain([first], coming), unordered, progress)


class _Batch:
    """A file of prompts on its way to one of results."""

    def __init__(self, job: Job, lines: Lines, results: Output, quiet: bool) -> None:
        self._lines, self._results = lines, results
        self._asked = dict[int, tuple[Line, Question]]()  # what is not answered yet, in the order of asking
        self._n_asked = self._n_lines = self._n_failed = 0
        self._answerer = _loaded(job, quiet)
        run = self._answerer.digest() if isinstance(results, ResultFile) else ""
        self._seed = results.begin(run, job.sampling.get("seed"))
        if results.n_before and not quiet:
            ui.note(
                f"{pluralize(results.n_before, 'result')} of an earlier run: continuing with the other lines"
            )

    def run(self, lines: Iterable[Line], unordered: bool, progress: Answering | None) -> int:
        """Answer the lines that have no result yet: the exit code."""
        for answer in self._answerer.answers(self._prompts(lines, progress), in_order=not unordered):
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
            question = parse_line(line, self._lines.is_json)
            if self._results.has(line, question):
                if progress:
                    progress.skipped(line.n_bytes)
                continue
            self._asked[self._n_asked] = line, question
            self._n_asked += 1
            where = f"{self._lines.name}, line {line.number}"
            yield self._answerer.prompt(question, self._seed + line.index, where)


def _loaded(job: Job, quiet: bool) -> Answerer:
    """Open the model. Raises UsageError where the options fit neither it nor the state."""
    with TerminalReporter(quiet) as reporter:
        answerer = Answerer(job, reporter, as_flag)
    model = answerer.model
    ui.detail(f"{model.path}: {model.backend.description}, template {answerer.layout.name}")
    return answerer


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
