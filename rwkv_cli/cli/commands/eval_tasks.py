"""`rwkv eval --tasks`: tasks of lm-evaluation-harness on this program's own engine."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rwkv_cli.cli.terminal import ui
from rwkv_cli.errors import UsageError

if TYPE_CHECKING:
    from rwkv_cli.evaluation.harness.language_model import Subject
    from rwkv_cli.evaluation.harness.tasks import Plan
    from rwkv_cli.model import Model


@dataclass(frozen=True)
class Asked:
    """The options of a run."""

    model: str
    device: str
    threads: int | None
    plan: Plan
    template: str | None  # of a conversation; None for the model's own
    think: str | None
    leading: bool
    max_tokens: int | None
    batch_size: int | None
    anew: bool
    json: bool
    quiet: bool


def run(asked: Asked) -> None:
    """Run the tasks, and print what came out."""
    from rwkv_cli.cli.reports import tasks as report
    from rwkv_cli.cli.terminal.progress import TerminalReporter, counting
    from rwkv_cli.evaluation.harness import tasks
    from rwkv_cli.evaluation.harness.finished import Finished
    from rwkv_cli.model import load

    tasks.check_installed()
    with TerminalReporter(asked.quiet or asked.json) as reporter:
        model = load(asked.model, asked.device, threads=asked.threads, reporter=reporter)
    subject = _subject(model, asked)
    with Finished(_results_of(model), anew=asked.anew) as finished:
        outcome = tasks.run(subject, asked.plan, finished, lambda task, n: counting(task, n, asked.quiet))
    if asked.json:
        about = {"model": str(model.path), "weights": model.info.weight_type, "device": model.backend.name}
        ui.write_json(about | report.facts(outcome))
    else:
        report.show(outcome)


def _subject(model: Model, asked: Asked) -> Subject:
    """The model, and how it is asked."""
    from rwkv_cli.evaluation.harness.language_model import Subject
    from rwkv_cli.text.templates import get_template

    if model.tokenizer is None:
        raise UsageError(f"{model.path} has no tokenizer, so it cannot be asked anything")
    layout = get_template("raw")
    if asked.plan.chats:
        layout = get_template(asked.template) if asked.template else model.template
        layout = get_template(layout.chat) if layout.chat else layout
        layout.check(None, asked.think)
    elif asked.think:
        raise UsageError("{think} is a mode of a conversation: add {chat} or {template}")
    return Subject(
        model.backend,
        model.tokenizer,
        layout,
        asked.think,
        asked.leading or (asked.plan.chats and layout.begin),
        model.stop_tokens(layout),
        asked.max_tokens,
        asked.batch_size,
    )


def _results_of(model: Model) -> Path:
    """Where results of a model are kept, as this version of the program computes them on this device."""
    from rwkv_cli import __version__, paths
    from rwkv_cli.sessions.model_identity import identify

    identity = identify(model)
    parts = identity.weights, identity.weight_type, identity.tokenizer, model.backend.name, __version__
    return (
        paths.cache_folder()
        / paths.TASK_RESULTS
        / f"{hashlib.sha256(repr(parts).encode()).hexdigest()[:32]}.jsonl"
    )
