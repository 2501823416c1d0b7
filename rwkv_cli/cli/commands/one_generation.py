"""One generation of a command: from a prompt, a state or both, to text and perhaps another state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from rwkv_cli.cli.terminal import ui
from rwkv_cli.cli.terminal.interrupts import Interrupts, Termination
from rwkv_cli.cli.terminal.output import JsonOutput, Output, TextOutput, stream
from rwkv_cli.cli.terminal.progress import TerminalReporter, reading
from rwkv_cli.engine.generate import read_directly
from rwkv_cli.sessions import resume, state_store
from rwkv_cli.sessions.continuation import Continuation, TextRequest
from rwkv_cli.sessions.prompt_cache import reader_for
from rwkv_cli.sessions.state_file import SavedState


@dataclass
class Request(TextRequest):
    """What a command line asks for; what could be checked without a model was checked."""

    model: str | None = None
    device: str = "auto"
    threads: int | None = None
    draft: str | None = None
    state: str | None = None
    save_state: str | None = None
    compact: bool = False
    force: bool = False
    cache: bool = True
    echo: bool = False
    json: bool = False
    quiet: bool = False


def run(request: Request) -> int:
    """Generate, and save the state if that is asked for: the exit code."""
    with _opened(request) as (continuation, target, created):
        output = _output(request, continuation)
        if target is None:
            return stream(continuation.generation, output, request.quiet)
        try:
            return _stream_and_save(request, continuation, output, target, created)
        except KeyboardInterrupt:
            ui.note("interrupted: the state is not saved")
            return ui.INTERRUPTED


def _stream_and_save(
    request: Request, continuation: Continuation, output: Output, target: Path, created: str
) -> int:
    """Write the text, and save the state after it, also after a signal that ends the program: the exit code.

    Raises KeyboardInterrupt, and nothing is saved, where the prompt was still read.
    """
    generation, interrupts = continuation.generation, Interrupts()

    def stop() -> bool:
        interrupts.asked = True
        return generation.usage.generated_tokens > 0

    with Termination(stop):
        try:
            code = stream(generation, output, request.quiet, interrupts)
        except OSError as error:  # it cannot be written, as where the terminal is gone
            if isinstance(error, BrokenPipeError) or not stop():
                raise
            generation.rest()
            _save(request, continuation, target, generation.text, created)
            raise
        if code == ui.INTERRUPTED and not generation.usage.generated_tokens:
            raise KeyboardInterrupt  # the session is somewhere in the middle of the prompt
        _save(request, continuation, target, generation.text, created)
    return code


def read(request: Request) -> resume.Source:
    """Read the text and save the state, without a generation: what was saved."""
    with _opened(request) as (continuation, target, created):
        assert target
        return resume.Source(target, _save(request, continuation, target, "", created))


@contextmanager
def _opened(request: Request) -> Iterator[tuple[Continuation, Path | None, str]]:
    """The generation, and the file to save to, which stays locked and may be written; and when that was created."""
    with ExitStack() as stack:
        target, created = None, ""
        if request.save_state is not None:
            target = state_store.resolve(request.save_state)
            stack.enter_context(state_store.lock(target))
        source = resume.open_state(request.state) if request.state is not None else None
        if request.save_state is not None:
            resume.check_target(request.save_state, request.force, source.path if source else None)
        if source and source.path == target:
            created = source.saved.created
        yield _continuation(request, source.saved if source else None), target, created


def _continuation(request: Request, saved: SavedState | None) -> Continuation:
    with TerminalReporter(request.quiet) as reporter:
        model = resume.load_model(
            request.model,
            saved,
            request.device,
            request.threads,
            reporter,
            request.settings.model,
            request.draft,
        )
        reader = reader_for(model) if request.cache else read_directly
        continuation = Continuation(model, request, saved, reader)
        ui.detail(f"{model.path}: {model.backend.description}, template {continuation.layout.name}")
        if warning := resume.other_template(continuation.layout, saved, model.template):
            reporter.note(warning)
    return continuation


def _output(request: Request, continuation: Continuation) -> TextOutput | JsonOutput:
    if request.json:
        names = [tool.name for tool in request.tools]
        return JsonOutput(continuation.model.path, request.text if request.echo else None, names)
    continued = continuation.continued_text
    if request.echo and not continued:
        continued = f"{request.text}\n\n"
    return TextOutput(continued, request.quiet, request.echo)


def _save(
    request: Request, continuation: Continuation, target: Path, generated: str, created: str
) -> SavedState:
    # If nothing was generated, the prompt is read only now.
    with reading(continuation.generation, request.quiet):
        return continuation.save(target, generated, request.compact, created)
