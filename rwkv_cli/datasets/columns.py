"""What columns of a dataset mean: fields of a question, columns that are carried along, columns of the answer."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rwkv_cli.datasets import question
from rwkv_cli.errors import UsageError, literal
from rwkv_cli.reporting import did_you_mean

ANSWER = ("index", "text", "thought", "finish", "prompt_tokens", "generated_tokens", "error")
"""Columns of an answer. The error is the last one: `jsonl.tally` relies on that."""

NUMBERS = frozenset({"index", "prompt_tokens", "generated_tokens"})
"""Those of them that are whole numbers; the others are texts."""

_AS_JSON = frozenset({"json_schema", "response_format", "logit_bias", "stop", "choice", "ban"})
"""Fields with a structure, which a column of texts has as JSON."""

_WHOLE = frozenset({"max_tokens", "seed", "top_k"})


@dataclass(frozen=True)
class Columns:
    """How the columns of a dataset are used."""

    mapped: Mapping[str, str] = field(default_factory=dict)
    """The column of a field of `question.NAMES`; "" for a field that no column gives. Others have their own name."""

    kept: Sequence[str] | None = None  # columns of the input that the output has too; None for all
    prefix: str = ""  # of the columns of the answer

    def __post_init__(self) -> None:
        """Raises UsageError for a field that does not exist, and where there is no prompt."""
        for name in self.mapped:
            if name not in question.NAMES:
                hint = did_you_mean(name[:80], question.NAMES) or "; see docs/datasets.md for the fields"
                raise UsageError(f"{{column}} names {literal(name[:80])!r}, which is not a field{hint}")
        if not self.column("prompt"):
            raise UsageError("{column} has to name a column for the prompt")

    @property
    def answer(self) -> Sequence[str]:
        """The names of the columns of an answer."""
        return [self.prefix + name for name in ANSWER]

    def column(self, name: str) -> str:
        """The column of a field; "" if none has it."""
        return self.mapped.get(name, name)

    def fields(self, row: Mapping[str, Any], *, typed: bool) -> dict[str, Any]:
        """The fields of a question in a row, without those that are null.

        In a `typed` row, whose columns have one type each, structures may be JSON, and whole numbers may be floats, as
        pandas has them beside nulls. Raises UsageError for JSON that is none.
        """
        found = {name: row.get(self.column(name)) for name in question.NAMES if self.column(name)}
        found = {name: value for name, value in found.items() if value is not None}
        if typed:
            found = {name: _typed(name, value) for name, value in found.items()}
        return {name: value for name, value in found.items() if value is not None}

    def question(self, row: Mapping[str, Any]) -> question.Question:
        """The question in a typed row; one with an error if it is wrong."""
        try:
            return question.parse(self.fields(row, typed=True))
        except UsageError as error:
            return question.Question(error=error.worded(lambda name, _: f'"{name}"'))

    def carried(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The columns of a row that the output has too."""
        return dict(row) if self.kept is None else {name: row[name] for name in self.kept if name in row}

    def check(self, names: Collection[str], where: str, *, has_prompts: bool = False) -> None:
        """Raise UsageError where a column that is carried along has the name of one of the answer.

        With `has_prompts`, also where there is none for the prompts.
        """
        prompts = self.column("prompt")
        if has_prompts and prompts not in names:
            raise UsageError(
                f"{literal(where)} has no column {literal(prompts)!r}: name that of the prompts with "
                f"{{column=prompt=NAME}}; it has {literal(', '.join([*names][:20]))}"
            )
        both = {*self.answer}.intersection(names if self.kept is None else {*self.kept} & {*names})
        if both:
            raise UsageError(
                f"{literal(where)} has a column {literal(min(both))!r}, which is also one of the answer: choose other "
                "names with {prefix=answer_}, or carry other columns with {keep_columns}"
            )


def _typed(name: str, value: Any) -> Any:
    if isinstance(value, float):
        if value != value:  # NaN: pandas has it in place of null
            return None
        return int(value) if name in _WHOLE and value.is_integer() else value
    if isinstance(value, str) and name in _AS_JSON and value.lstrip()[:1] in ("{", "["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            raise UsageError(f"{{{name}}} begins like JSON, and is not valid") from None
    return value
