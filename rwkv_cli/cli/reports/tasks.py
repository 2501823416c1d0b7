"""What `rwkv eval --tasks` shows: a number a line."""

from __future__ import annotations

from rwkv_cli.cli.terminal import ui
from rwkv_cli.evaluation.harness.tasks import Measure, Outcome


def facts(outcome: Outcome) -> dict[str, object]:
    """All numbers, and of how many examples they are."""
    return {
        "lm_eval": outcome.harness,
        "measures": [
            {**each._asdict(), "value": _number(each.value), "error": _number(each.error)}
            for each in outcome.measures
        ],
        "samples": {task: dict(counts) for task, counts in outcome.samples.items()},
    }


def show(outcome: Outcome) -> None:
    """Print a table of all numbers."""
    rows = [
        (each.task, _metric(each), "" if each.shots is None else str(each.shots), *_value(each))
        for each in outcome.measures
    ]
    ui.columns(("task", "measure", "shots", "value", "standard error"), rows, right={2, 3, 4})


def _metric(measure: Measure) -> str:
    return measure.metric if measure.filter == "none" else f"{measure.metric} ({measure.filter})"


def _value(measure: Measure) -> tuple[str, str]:
    error = measure.error
    return f"{measure.value:.4f}", "" if error is None or error != error else f"{error:.4f}"


def _number(value: float | None) -> float | None:
    """NaN is no JSON."""
    return value if value == value else None
