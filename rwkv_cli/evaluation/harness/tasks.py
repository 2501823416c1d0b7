"""Runs tasks of lm-eval by name, and what came out."""

from __future__ import annotations

import contextlib
import difflib
import io
import logging
import os
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rwkv_cli import paths
from rwkv_cli.errors import RwkvError, UsageError, literal

if TYPE_CHECKING:
    from rwkv_cli.evaluation.harness.finished import Finished
    from rwkv_cli.evaluation.harness.language_model import Counting, LanguageModel, Subject

BOOTSTRAP = 1_000
"""Samples for the standard error of what has no formula, such as perplexity."""

_OURS = paths.DATA / "tasks"


class Measure(NamedTuple):
    """One number of a task, or of a group of tasks."""

    task: str
    version: str
    shots: int | None
    filter: str  # what was done to answers before they were judged, "none" for nothing
    metric: str
    value: float
    error: float | None  # standard error, None where it is not known


@dataclass(frozen=True)
class Outcome:
    """What came out of a run."""

    measures: Sequence[Measure]
    samples: Mapping[str, Mapping[str, int]]  # by task, how many there are, and how many were used
    harness: str  # the version of lm-eval
    raw: Mapping[str, Any] = field(repr=False)  # all results, as lm-eval gives them


@dataclass(frozen=True)
class Plan:
    """What to run."""

    names: Sequence[str]  # of tasks, groups and tags, or files of tasks
    folder: Path | None = None  # with files of tasks, beside those that lm-eval brings
    limit: int | None = None  # examples of each task
    shots: int | None = None  # examples that precede a question, None for what a task says
    chats: bool = False  # whether questions are turns of a conversation


def run(subject: Subject, plan: Plan, finished: Finished, counting: Counting) -> Outcome:
    """Run tasks. Raises UsageError for unknown ones, RwkvError where their data cannot be read."""
    check_installed()
    from lm_eval import __version__
    from lm_eval.tasks import TaskManager

    from rwkv_cli.evaluation.harness.language_model import LanguageModel

    model = LanguageModel(subject, finished, counting)
    manager = TaskManager(include_path=[each for each in (_OURS, plan.folder) if each])
    names = [_checked(name, manager.all_tasks) for name in plan.names]
    found = _told(lambda: _evaluated(model, manager, names, plan))
    return Outcome(measures_of(found), found["n-samples"], __version__, found)


def _evaluated(model: LanguageModel, manager: Any, names: Sequence[str], plan: Plan) -> Any:
    """What `lm_eval.simple_evaluate` does, without looking for Git, Torch and what else there may be."""
    from lm_eval import defaults, evaluate

    random.seed(defaults.DEFAULT_RANDOM_SEED)
    np.random.seed(defaults.DEFAULT_OTHER_SEED)
    loaded = manager.load(names)
    for task in loaded["tasks"].values():
        own = task.get_config("num_fewshot")
        if own is None or (own and plan.shots is not None):  # a task with 0 is not meant to have any
            task.set_config(key="num_fewshot", value=plan.shots or 0)
        task.set_fewshot_seed(seed=defaults.DEFAULT_OTHER_SEED)
    return evaluate(
        lm=model,
        task_dict=loaded,
        limit=plan.limit,
        bootstrap_iters=BOOTSTRAP,
        log_samples=False,
        apply_chat_template=plan.chats,
        fewshot_as_multiturn=plan.chats,
    )


def check_installed() -> None:
    """Raise UsageError unless lm-eval is installed."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # read when it is imported: bars of ours are shown
    try:
        import lm_eval
    except ImportError:
        raise UsageError(
            "tasks need a package: in the folder of rwkv's sources, pip install '.[eval]'"
        ) from None
    logging.getLogger(lm_eval.__name__).setLevel(logging.ERROR)


def _checked(name: str, known: Sequence[str]) -> str:
    """What lm-eval knows a task by. Raises UsageError for an unknown name."""
    if name in known:
        return name
    path = paths.user_path(name)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return str(path)
    close = difflib.get_close_matches(name, known, 3)
    hint = f"did you mean {' or '.join(close)}?" if close else "lm-eval ls tasks lists those that there are"
    raise UsageError(f"there is no task named {name!r}: {hint}")


def _told(evaluate: Callable[[], Any]) -> Mapping[str, Any]:
    """What a call of lm-eval gives; all that goes wrong in it becomes one sentence."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it is doing, among what may be JSON
            found: Mapping[str, Any] = evaluate()
    except (RwkvError, MemoryError):
        raise
    except Exception as error:  # of whatever library loads the data of a task, or judges its answers
        said = str(error).strip().splitlines()
        what = literal(said[0] if said else type(error).__name__)
        raise RwkvError(f"the tasks could not be run: {what}") from error
    return found


def measures_of(found: Mapping[str, Any]) -> list[Measure]:
    """The numbers of results of lm-eval: of each task, and of groups of tasks."""
    measures = []
    for task, results in found["results"].items():
        version, shots = found["versions"].get(task), found["n-shot"].get(task)
        for name, value in results.items():
            metric, comma, filter_ = name.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = results.get(f"{metric}_stderr,{filter_}")
            measures.append(
                Measure(
                    task,
                    "" if version is None else str(version),
                    shots,
                    filter_,
                    metric,
                    float(value),
                    float(error) if isinstance(error, int | float) else None,
                )
            )
    return measures
