"""`rwkv eval`: how well a model predicts a text and answers questions, and what another one loses against it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from rwkv_cli.cli import completion, options, task_options
from rwkv_cli.cli.terminal import ui
from rwkv_cli.errors import UsageError

if TYPE_CHECKING:
    from rwkv_cli.evaluation.text import Windows
    from rwkv_cli.model import Model
    from rwkv_cli.text.tokenizer import Tokenizer

WINDOW = 1024
"""Predictions of each piece of a text, which is read from an empty state."""


def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A model file, a checkpoint or a name.",
            autocompletion=completion.models,
        ),
    ],
    text: Annotated[
        str | None, typer.Argument(metavar="TEXT|FILE", help="What to predict; needed for --against.")
    ] = None,
    *,
    tasks: task_options.Tasks = None,
    task_folder: task_options.TaskFolder = None,
    shots: task_options.Shots = None,
    leading_token: task_options.LeadingToken = False,
    chat: task_options.Chat = False,
    anew: task_options.Anew = False,
    batch_size: options.BatchSize = None,
    template: options.Template = None,
    think: options.Think = None,
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            metavar="OTHER",
            help="Measure what this model loses against MODEL.",
            autocompletion=completion.models,
            rich_help_panel=options.CHECK,
        ),
    ] = None,
    questions: options.Questions = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            min=1,
            metavar="N",
            help="Predict about N tokens, from pieces spread over the text; of a task, the first N examples.",
            show_default="all",
            rich_help_panel=options.CHECK,
        ),
    ] = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    max_tokens: options.MaxTokens = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure how good a model is, or what another one loses.

    A text is read in pieces of 1,024 predictions, each from an empty state. Brackets hold 95 % intervals. A checkpoint
    is measured as it is used, in int8: quantize it first for another type.

    Examples:
        # Perplexity and bits per byte
        rwkv eval gosling text.txt
        # What does int4 lose?
        rwkv eval fp16.safetensors text.txt --against int4.safetensors
        # Exact answers
        rwkv eval int8.safetensors --questions questions.jsonl
        # Tasks of lm-eval
        rwkv eval MODEL --tasks lambada_openai,mmlu --limit 100
    """
    if tasks is not None:
        if text is not None or against is not None or questions is not None:
            raise UsageError(
                "{tasks} stands alone: measure the text, the other model and the questions in another run"
            )
        from rwkv_cli.cli.commands import eval_tasks
        from rwkv_cli.evaluation.harness.tasks import Plan

        names = [name.strip() for name in tasks.split(",") if name.strip()]
        chats = chat or template is not None
        eval_tasks.run(
            eval_tasks.Asked(
                model,
                device,
                threads,
                Plan(names, task_folder, limit, shots, chats),
                template,
                think,
                leading_token,
                max_tokens,
                batch_size,
                anew,
                json,
                quiet,
            )
        )
        return
    from rwkv_cli.cli.reports import quality
    from rwkv_cli.cli.terminal.progress import TerminalReporter
    from rwkv_cli.evaluation import comparison
    from rwkv_cli.evaluation import text as texts
    from rwkv_cli.evaluation.questions import answer_all
    from rwkv_cli.model import load

    if text is None and (questions is None or against is not None):
        raise UsageError("there is nothing to measure: give a text, {questions} or {tasks}")
    asked = quality.questions_of(questions)
    content = quality.text_of(text, "eval") if text is not None else None
    with TerminalReporter(quiet or json) as reporter:
        first = load(model, device, threads=threads, reporter=reporter)
        tokenizer = _tokenizer(first)
        windows = _windows(tokenizer, content, limit) if content is not None else []
        if against is not None:
            second = load(against, device, threads=threads, reporter=reporter)
            _check_same_tokens(tokenizer, _tokenizer(second), against)
            found = comparison.compare_models(first.backend, second.backend, tokenizer, windows, asked)
            facts = {"model": str(first.path), "against": str(second.path)}
            if json:
                ui.write_json(facts | quality.comparison_facts(found))
            else:
                quality.show_comparison(found)
            return
        answers = answer_all(first.backend, tokenizer, asked) if asked else {}
        score = None
        if windows:
            n_bytes = texts.byte_counts(windows, tokenizer.token_bytes)
            score = texts.score(texts.losses(first.backend, windows), n_bytes)
    if json:
        predicted = quality.score_facts(score) if score else {}
        ui.write_json(
            {"model": str(first.path)} | predicted | {"exact_answers": quality.answers_facts(answers)}
        )
        return
    if score:
        quality.show_score(score)
    if answers:
        quality.show_answers(answers)


def _tokenizer(model: Model) -> Tokenizer:
    if model.tokenizer is None:
        raise UsageError(f"{model.path} has no tokenizer, so no text can be measured with it")
    return model.tokenizer


def _windows(tokenizer: Tokenizer, text: str, limit: int | None) -> Windows:
    """The pieces of a text that are measured. Raises UsageError for too short a text."""
    from rwkv_cli.evaluation.text import windows_of

    tokens = tokenizer.encode(text)
    if len(tokens) < 2:
        raise UsageError("the text is too short: it must have at least two tokens")
    length = min(WINDOW, limit or WINDOW)
    most = None if limit is None else -(-limit // length)
    return windows_of(tokens, length, most)


def _check_same_tokens(tokenizer: Tokenizer, other: Tokenizer, name: str) -> None:
    """Distributions can be compared only over the same tokens."""
    if (tokenizer.spec.kind, tokenizer.spec.data) != (other.spec.kind, other.spec.data):
        raise UsageError(f"{name} has another vocabulary, so its predictions cannot be compared")
