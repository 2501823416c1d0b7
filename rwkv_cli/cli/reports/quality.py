"""What `rwkv eval` and `rwkv quantize --compare` show: how good a model is, and what another one loses against it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import typer

from rwkv_cli import paths
from rwkv_cli.cli.prompt import checked_text, read_limited
from rwkv_cli.cli.terminal import ui
from rwkv_cli.errors import UsageError
from rwkv_cli.evaluation.comparison import Comparison
from rwkv_cli.evaluation.intervals import Interval
from rwkv_cli.evaluation.questions import Question, parse_questions
from rwkv_cli.evaluation.text import TextScore
from rwkv_cli.text.prompt_bytes import decoded

_MAX_TEXT = 1 << 24


def text_of(text: str, option: str) -> str:
    """A text that was given, or that of the file that it names. Raises UsageError."""
    path = _file_of(text)
    return checked_text(text, f"text of {option}") if path is None else _read(path, "text")


def questions_of(path: Path | None) -> list[Question]:
    """The questions in a file; none without a file. Raises UsageError."""
    return parse_questions(_read(path, "file of questions"), str(path)) if path else []


def _read(path: Path, what: str) -> str:
    try:
        data = read_limited(path, _MAX_TEXT)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from None
    if data is None:
        raise UsageError(f"{path} is too large: the {what} must have at most {_MAX_TEXT >> 20} MB")
    return decoded(data, f"{what} in {path}")


def _file_of(text: str) -> Path | None:
    """The file that a text names; None if it names none, or cannot even be a path."""
    try:
        path = paths.user_path(text)
        return path if path.is_file() else None
    except (UsageError, OSError):
        return None


# ------------------------------------------------------------------------------------------------------------- as JSON


def _interval(interval: Interval) -> dict[str, float | None]:
    """NaN, the ends of an interval that is not known, is no JSON."""
    return {
        name: (part if part == part else None)
        for name, part in zip(("value", "low", "high"), interval, strict=True)
    }


def score_facts(score: TextScore) -> dict[str, object]:
    """How well a text is predicted."""
    bits = score.bits_per_byte
    return {
        "tokens": score.tokens,
        "perplexity": _interval(score.perplexity),
        "bits_per_byte": _interval(bits) if bits else None,
    }


def answers_facts(answers: Mapping[str, Interval]) -> dict[str, object]:
    """Shares of exact answers by task."""
    return {task: _interval(share) for task, share in answers.items()}


def comparison_facts(found: Comparison) -> dict[str, object]:
    """Everything that was measured of two models."""
    perplexity = {
        "before": found.before.perplexity.value,
        "after": found.after.perplexity.value,
        "tokens": found.before.tokens,
        "change": _interval(found.change),
    }
    return {
        "perplexity": perplexity,
        "before": score_facts(found.before),
        "after": score_facts(found.after),
        "kl_divergence": {
            "mean": _interval(found.divergence),
            "percentile_99": _interval(found.divergence_99),
        },
        "same_first_choice": _interval(found.agreement),
        "greedy": {
            "common_tokens": _interval(found.parted),
            "texts": found.greedy_texts,
            "most_tokens": found.greedy_tokens,
        },
        "exact_answers": {
            task: {"before": _interval(before), "after": _interval(after)}
            for task, (before, after) in found.answers.items()
        },
    }


# ------------------------------------------------------------------------------------------------------------- as text


def _with_ends(interval: Interval, form: str) -> str:
    """A value and, in brackets, its interval."""
    value, low, high = (format(part, form) for part in interval)
    return value if interval.low != interval.low else f"{value} [{low} to {high}]"


def show_score(score: TextScore) -> None:
    """Print how well a text is predicted."""
    typer.echo(f"perplexity {_with_ends(score.perplexity, '.3f')}, {score.tokens:,} predictions")
    if score.bits_per_byte:
        typer.echo(f"bits per byte {_with_ends(score.bits_per_byte, '.4f')}")


def show_answers(answers: Mapping[str, Interval]) -> None:
    """Print exact answers by task."""
    ui.columns(
        ("task", "exact answers"), [(task, _with_ends(share, ".1%")) for task, share in answers.items()]
    )


def show_comparison(found: Comparison) -> None:
    """Print what was measured of two models; in brackets, 95 % intervals."""
    before, after = found.before, found.after
    typer.echo(
        f"perplexity {before.perplexity.value:.3f} -> {after.perplexity.value:.3f} "
        f"({_with_ends(found.change, '+.2%')}), {before.tokens:,} predictions"
    )
    if before.bits_per_byte and after.bits_per_byte:
        typer.echo(f"bits per byte {before.bits_per_byte.value:.4f} -> {after.bits_per_byte.value:.4f}")
    typer.echo(
        f"KL divergence of the next token: mean {_with_ends(found.divergence, '.5f')}, "
        f"99th percentile {_with_ends(found.divergence_99, '.4f')}"
    )
    typer.echo(f"same first choice: {_with_ends(found.agreement, '.2%')}")
    typer.echo(
        f"greedy texts have {_with_ends(found.parted, '.0f')} of {found.greedy_tokens} tokens in common "
        f"(median of {found.greedy_texts})"
    )
    if found.answers:
        rows = [
            (task, _with_ends(first, ".1%"), _with_ends(second, ".1%"))
            for task, (first, second) in found.answers.items()
        ]
        typer.echo()
        ui.columns(("task", "exact answers before", "after"), rows)
