"""One generation of a command: from a prompt, a state or both, to text and perhaps another state."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rwkv_cli.cli.terminal import ui
from rwkv_cli.cli.terminal.output import JsonOutput, Recorder, TextOutput, stream
from rwkv_cli.cli.terminal.progress import TerminalReporter, reading
from rwkv_cli.engine.generate import Generation
from rwkv_cli.engine.sampling import SamplerMemory
from rwkv_cli.model import Model
from rwkv_cli.sessions import resume, state_file, state_store
from rwkv_cli.sessions.prompt_cache import with_cache
from rwkv_cli.sessions.state_file import SavedState
from rwkv_cli.text.template import TEMPLATES, Template


@dataclass
class Request:
    """What a command line asks for; what could be checked without a model was checked."""

    text: str  # empty to go on from the state
    model: str | None = None
    device: str = "auto"
    threads: int | None = None
    max_tokens: int = 256
    stops: Sequence[str] = ()
    template: str | None = None
    system: str | None = None
    state: str | None = None
    save_state: str | None = None
    keep_text: bool = True
    compact: bool = False
    force: bool = False
    cache: bool = True
    json: bool = False
    quiet: bool = False
    sampling: dict[str, Any] = field(default_factory=dict)  # what was chosen


def run(request: Request) -> int:
    """Generate, and save the state if that is asked for; gives the exit code."""
    with _ends(request) as (saved, target):
        return _Run(request, saved).to(target)


def read(request: Request) -> str:
    """Read the text and save the state, without a generation; gives a line about it."""
    with _ends(request) as (saved, target):
        assert target
        return _Run(request, saved, reads_only=True).read(target)


@contextmanager
def _ends(request: Request) -> Iterator[tuple[SavedState | None, Path | None]]:
    """The state to go on from, and the file to save to, which is locked meanwhile and may be written."""
    with ExitStack() as stack:
        target = None
        if request.save_state is not None:
            target = state_store.resolve(request.save_state)
            stack.enter_context(state_store.lock(target))
        source = resume.open_state(request.state) if request.state is not None else None
        if request.save_state is not None:
            resume.check_target(request.save_state, request.force, source.path if source else None)
        yield (source.saved if source else None), target


class _Run:
    """A request, with the model loaded and the generation ready."""

    def __init__(self, request: Request, saved: SavedState | None, reads_only: bool = False) -> None:
        self.request = request
        self.saved = saved
        with TerminalReporter(request.quiet) as reporter:
            self.model: Model = resume.load_model(
                request.model, saved, request.device, request.threads, reporter
            )
        if request.cache:
            self.model.backend = with_cache(self.model)
        self.reads_only = reads_only
        self.is_document = reads_only and request.template is None
        self.layout = self._layout()
        self.chosen = {**(saved.settings if saved else {}), **request.sampling}
        self.generation = self._generation()

    def _layout(self) -> Template:
        own = self.model.template
        if self.is_document:
            return own if resume.is_plain(own) else TEMPLATES["raw"]
        return resume.layout_for(self.request.template, self.saved, own)

    def _generation(self) -> Generation:
        request, saved = self.request, self.saved
        generation = self.model.generate(
            request.text,
            max_tokens=request.max_tokens,
            template=self.layout,
            system=request.system,
            stop=request.stops,
            start=saved.position if saved else None,
            **{"seed": secrets.randbits(32)} | self.chosen,
        )
        if saved and saved.memory:
            # Without a new seed, the sampler goes on as the state's would have; with one, only the penalties stay.
            has_seed = "seed" in request.sampling
            generator = generation.sampler.memory.generator if has_seed else saved.memory.generator
            generation.sampler.memory = SamplerMemory(saved.memory.counts, generator)
        return generation

    def to(self, target: Path | None) -> int:
        """Write the text, and the state if there is a file for it; gives the exit code."""
        output = Recorder(self._output())
        try:
            code = stream(self.generation, output, self.request.quiet)
            if target is None:
                return code
            if output.finish == "interrupted" and not self.generation.usage.generated_tokens:
                raise KeyboardInterrupt  # while the prompt was read: the model is somewhere in the middle of it
            self._save(target, output.text)
        except KeyboardInterrupt:
            if target:
                ui.note("interrupted: the state is not saved")
            return ui.INTERRUPTED
        return code

    def read(self, target: Path) -> str:
        """Read the text, and write the state; gives a line about it."""
        saved = self._save(target, "")
        return resume.described(target, saved)

    @property
    def _before(self) -> str:
        return (self.saved.text if self.saved else "") or ""

    def _output(self) -> TextOutput | JsonOutput:
        if self.request.json:
            return JsonOutput(self.model.path)
        echo = ""  # where the text goes on from something that is text itself
        if not self.request.text:
            echo = self._before
        elif resume.is_plain(self.layout):
            echo = self.request.text
        return TextOutput(echo, self.request.quiet)

    def _save(self, target: Path, generated: str) -> SavedState:
        request, before = self.request, self.saved
        with reading(self.generation, request.quiet):  # if nothing was generated, the prompt is read only now
            position = self.generation.settle()
        text = None
        if request.keep_text and (before is None or before.text is not None):
            read = resume.text_of(self.layout, request.text, request.system, before)
            text = self._before + read + generated
        saved = SavedState(
            position=position,
            model=state_file.identify(self.model),
            template=self._template(),
            text=text,
        )
        if before and request.state and state_store.resolve(request.state) == target:
            saved.created = before.created
        if not self.reads_only:
            saved.memory = self.generation.sampler.memory
            saved.settings = {**self.chosen, "seed": self.generation.sampler.settings.seed}
        elif before:
            saved.memory, saved.settings = before.memory, before.settings
        resume.keep(target, saved, request.compact)
        return saved

    def _template(self) -> str | None:
        """The name of the template that the state is to go on with."""
        if self.is_document or (self.saved and not self.request.text):
            return self.saved.template if self.saved else None
        return self.layout.name
