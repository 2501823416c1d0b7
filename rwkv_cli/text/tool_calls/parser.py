"""The tool calls in an answer: one tolerant parser for every form that models of any generation write.

Taken as calls: what is between `<tool_call>` or `<tool_calls>` tags; blocks fenced by ``` that hold a call; what
follows `**Tool Call:**`; calls, or a list of them, that an answer begins with. A call is an object with a name, or with
a function that has one, and arguments, which may be called parameters, and may be a text of JSON. A tag or block that
the answer ends in the middle of counts if what is in it is whole. All else is text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from rwkv_cli.text.tool_calls.tools import ToolCall

_DECODER = json.JSONDecoder(strict=False)  # a newline within a string is forgiven
_TAG = re.compile(r"<(tool_calls?|function_calls?)>(.*?)(?:</\1>|\Z)", re.DOTALL)
_MARKED = re.compile(r"\*\*Tool Calls?:\*\*\s*(?=```|[\[{])")
_BLOCK = re.compile(r"```[ \t]*(?:json|tool_calls?|JSON)?[ \t]*\n?(.*?)(?:```|\Z)", re.DOTALL)
_CLOSING = re.compile(r"\s*```(?!\w)")
_BETWEEN = " \t\r\n,;"  # calls
_ARGUMENTS = ("arguments", "parameters", "args", "input")


@dataclass(frozen=True)
class Parsed:
    """An answer, taken apart."""

    text: str  # without the calls, and without white space around it
    calls: tuple[ToolCall, ...]


def parse(answer: str, names: Collection[str] | None = None) -> Parsed:
    """The calls in an answer, without its thought. `names` are those of the tools; calls of others are text.

    None takes calls of any name.
    """
    calls: list[ToolCall] = []
    text, end = "", 0
    for start, stop, inner in _candidates(answer):
        if start < end:
            continue
        found = _calls_in(inner, names)
        if found:
            calls += found
            text += answer[end:start]
            end = stop
    return Parsed((text + answer[end:]).strip(), tuple(calls))


def _candidates(answer: str) -> Iterator[tuple[int, int, str]]:
    """Where calls may be, in their order: the place of each, with what marks it, and what is inside."""
    places = [(found.start(), found.end(), found[2]) for found in _TAG.finditer(answer)]
    places += [(found.start(), found.end(), found[1]) for found in _BLOCK.finditer(answer)]
    for mark in _MARKED.finditer(answer):
        if block := _BLOCK.match(answer, mark.end()):
            places.append((mark.start(), block.end(), block[1]))
        else:
            length = _length(answer[mark.end() :])
            places.append((mark.start(), mark.end() + length, answer[mark.end() : mark.end() + length]))
    if answer.lstrip()[:1] in ("{", "["):
        begin = len(answer) - len(answer.lstrip())
        end = begin + _length(answer[begin:])
        closing = _CLOSING.match(answer, end)  # of a block that the prompt began
        places.append((begin, closing.end() if closing else end, answer[begin:end]))
    return iter(sorted(places))


def _length(text: str) -> int:
    """The number of characters of the JSON values that a text begins with; 0 if there is none."""
    length, start = 0, 0
    while start < len(text):
        try:
            length = _DECODER.raw_decode(text, start)[1]
        except (ValueError, RecursionError):
            break
        start = length + len(text[length:]) - len(text[length:].lstrip(_BETWEEN))
    return length


def _calls_in(text: str, names: Collection[str] | None) -> list[ToolCall]:
    """The calls in a text of one JSON value or several; none if anything in it is something else."""
    calls: list[ToolCall] = []
    rest = text.strip()
    while rest:
        block = _BLOCK.fullmatch(rest)
        rest = block[1].strip() if block else rest
        try:
            value, length = _DECODER.raw_decode(rest)
        except (ValueError, RecursionError):
            break
        found = [_call(each) for each in _listed(value)]
        if not found or not all(call and (names is None or call.name in names) for call in found):
            return []
        calls += [call for call in found if call]
        rest = rest[length:].lstrip(_BETWEEN)
    return calls


def _listed(value: Any) -> list[Any]:
    """What may be calls in a value: itself, the items of a list, or those under `tool_calls`."""
    if isinstance(value, dict) and isinstance(value.get("tool_calls"), list):
        value = value["tool_calls"]
    return value if isinstance(value, list) else [value]


def _call(value: Any) -> ToolCall | None:
    if not isinstance(value, dict):
        return None
    inner = value.get("function", value)
    if isinstance(inner, str):  # {"function": "name", "arguments": ...}
        inner = {**value, "name": inner}
    name = inner.get("name") if isinstance(inner, dict) else None
    if not isinstance(name, str) or not name:
        return None
    arguments = next((inner[key] for key in _ARGUMENTS if key in inner), None)
    if isinstance(arguments, str):
        try:
            arguments = _DECODER.decode(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError):
            return None
    if arguments is None:
        arguments = {}
    return ToolCall(name, arguments) if isinstance(arguments, dict) else None
