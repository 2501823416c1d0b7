"""What a row of a dataset asks: a prompt, and options that take the place of those of the whole batch."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from rwkv_cli.datasets.lines import Line
from rwkv_cli.engine.constraints import requests
from rwkv_cli.engine.constraints.grammar import Grammar
from rwkv_cli.engine.generate import check_limit
from rwkv_cli.errors import UsageError
from rwkv_cli.sampling_settings import NUMERIC_FIELDS, SamplingOverrides, check_overrides
from rwkv_cli.text.stop_strings import parse_stops

Fields = Mapping[str, Any]


@dataclass(frozen=True)
class Question:
    """What a row asks. None stands for what the whole batch has."""

    prompt: str = ""
    system: str | None = None
    think: str | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()  # beside those of the batch
    state: str | None = None  # a name or a file
    sampling: SamplingOverrides = field(default_factory=SamplingOverrides)
    constraint: Grammar | None = None
    carried: Fields = field(default_factory=dict)  # {"id": ...}, for the result
    error: str = ""  # why it cannot be answered


NAMES = frozenset(
    {"prompt", "system", "think", "max_tokens", "stop", "state", "seed", "logit_bias", "ban"}
    | {*NUMERIC_FIELDS, *requests.FIELDS}
)
"""Fields of a row that mean something."""


def parse(fields: Fields, carried: Fields | None = None) -> Question:
    """The question in the fields of a row; one with an error if it is wrong. `carried` goes into it as it is."""
    try:
        return _question(fields, carried or {})
    except UsageError as error:
        return Question(carried=carried or {}, error=error.worded(lambda name, _: f'"{name}"'))


def parse_line(line: Line, is_json: bool) -> Question:
    """The question in a line; one with an error if it is wrong."""
    if line.error:
        return Question(error=line.error)
    if not is_json:
        return Question(line.text)
    try:
        fields = parse_object(line.text)
        carried = _carried(fields)
    except UsageError as error:
        return Question(error=error.worded(lambda name, _: f'"{name}"'))
    return parse(fields, carried)


def parse_object(text: str) -> Fields:
    """The fields of a JSON object. Raises UsageError for anything else."""
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise UsageError('it must be a JSON object, such as {"prompt": "Once upon a time"}')
    return fields


def _carried(fields: Fields) -> Fields:
    """What the result has from its line. Raises UsageError for what JSON cannot have, although Python reads it."""
    if "id" not in fields:
        return {}
    try:
        json.dumps(fields["id"], ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        raise UsageError('"id" cannot be written to the result: use a text or a number') from None
    return {"id": fields["id"]}


def _question(fields: Fields, carried: Fields) -> Question:
    prompt, max_tokens, stop = (fields.get(key) for key in ("prompt", "max_tokens", "stop"))
    if not isinstance(prompt, str) or not prompt:
        raise UsageError('"prompt" must be a non-empty text')
    for key in ("system", "think", "state"):
        if not isinstance(fields.get(key), str | None):
            raise UsageError(f'"{key}" must be a text')
    if fields.get("state") == "":
        raise UsageError('"state" must be the name or the file of a saved state')
    if max_tokens is not None:
        check_limit(_whole("max_tokens", max_tokens))
    stops = [stop] if isinstance(stop, str) else [] if stop is None else stop
    if not isinstance(stops, list) or not all(isinstance(each, str) for each in stops):
        raise UsageError('"stop" must be a text, or a list of texts')
    texts = (prompt, *(fields.get(key) or "" for key in ("system", "think", "state")), *stops)
    if any("\ud800" <= character <= "\udfff" for text in texts for character in text):
        raise UsageError("it contains half of a surrogate pair, which is not text")
    return Question(
        prompt,
        fields.get("system"),
        fields.get("think"),
        max_tokens,
        parse_stops(stops),
        fields.get("state"),
        _sampling(fields),
        _constraint(fields),
        carried,
    )


def _constraint(fields: Fields) -> Grammar | None:
    """What the answer of a row has to look like; rows that demand the same share it. Raises UsageError."""
    chosen = {name: fields[name] for name in requests.FIELDS if fields.get(name) is not None}
    return _grammar(json.dumps(chosen)) if chosen else None


@functools.lru_cache(maxsize=256)
def _grammar(fields: str) -> Grammar | None:
    return requests.grammar_of(json.loads(fields))


def _sampling(fields: Fields) -> SamplingOverrides:
    """The options of sampling, by the names that the command line has for them. Raises UsageError."""
    chosen = dict[str, Any]()
    for name in NUMERIC_FIELDS:
        value = fields.get(name)
        if value is not None:
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise UsageError(f'"{name}" must be a number')
            chosen[name] = value
    for name in ("seed", "top_k"):
        if fields.get(name) is not None:
            chosen[name] = _whole(name, fields[name])
    if (biases := fields.get("logit_bias")) is not None:
        chosen["logit_bias"] = _biases(biases)
    if (ban := fields.get("ban")) is not None:
        if not isinstance(ban, list):
            raise UsageError('"ban" must be a list of token ids')
        chosen["banned"] = frozenset(_whole("ban", token) for token in ban)
    sampling = cast("SamplingOverrides", chosen)
    check_overrides(sampling)
    return sampling


def _whole(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise UsageError(f'"{name}" must be a whole number')
    return value


def _biases(value: object) -> dict[int, float]:
    wrong = UsageError('"logit_bias" must be an object of token ids and numbers, such as {"42": -1.5}')
    if not isinstance(value, dict):
        raise wrong
    try:
        biases = {int(token): bias for token, bias in value.items()}
    except ValueError:
        raise wrong from None
    if any(isinstance(bias, bool) or not isinstance(bias, int | float) for bias in biases.values()):
        raise wrong
    return biases
