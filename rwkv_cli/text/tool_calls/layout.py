"""How tools are put before a model, in the form that its generation was trained on, and how it then calls them.

- `short`, up to G1g: one line per tool in the system prompt; a call is a fenced block of JSON
- `tag`, G1h and later: the schemas in the system prompt; a call is JSON between `<tool_call>` tags
- `headings`, chat templates of Hugging Face folders: Markdown headings; a call is a fenced block
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rwkv_cli.errors import UsageError
from rwkv_cli.text.chat_template import JinjaTemplate
from rwkv_cli.text.template import Template
from rwkv_cli.text.tool_calls.tools import Tool

_UNNAMED = "any"
_OPEN = {"additionalProperties", "patternProperties", "$ref", "allOf", "anyOf", "oneOf"}


@dataclass(frozen=True)
class ToolFormat:
    """One form."""

    name: str
    offer: Callable[[Sequence[Tool]], str]  # what the system prompt says of the tools
    before: str  # a call
    after: str  # it
    result: str  # around {output}: what the user's side says when a tool was called

    def system(self, tools: Sequence[Tool], system: str | None = None) -> str:
        """The system prompt with the tools in it, after what it says otherwise."""
        return f"{system}\n{self.offer(tools)}" if system else self.offer(tools)

    def answer(self, output: str) -> str:
        """The user's text that gives a tool's output back to the model."""
        return self.result.replace("{output}", output)

    def grammar(self, tools: Sequence[Tool], schema_of: Callable[[dict[str, Any]], object]) -> str:
        """The grammar, in Lark's notation, of an answer that is a call of one of the tools.

        `schema_of` prepares a schema for the library that follows it.
        """
        calls = [call_schema(tool) for tool in tools]
        schema = json.dumps(schema_of({"anyOf": calls} if len(calls) > 1 else calls[0]))
        return f"start: {json.dumps(self.before)} call {json.dumps(self.after)}\ncall: %json {schema}\n"


def call_schema(tool: Tool) -> dict[str, Any]:
    """The schema of a call of a tool: {"name": ..., "arguments": {...}}, without arguments that it does not name."""
    parameters = dict(tool.parameters)
    if not parameters.keys() & _OPEN:
        parameters["additionalProperties"] = False
    definitions: dict[str, Any] = {
        key: parameters.pop(key) for key in ("$defs", "definitions") if key in parameters
    }
    return {
        "type": "object",
        "properties": {"name": {"const": tool.name}, "arguments": parameters},
        "required": ["name", "arguments"],
        "additionalProperties": False,
        **definitions,
    }


def chosen(tools: Sequence[Tool], choice: str) -> tuple[Tool, ...]:
    """The tools of which one has to be called: all if the choice is "required", or the one that it names.

    Empty for "auto" and "none". Raises UsageError for an unknown name.
    """
    if choice in ("auto", "none"):
        return ()
    found = tuple(tool for tool in tools if choice in ("required", tool.name))
    if not found:
        names = ", ".join(tool.name for tool in tools)
        raise UsageError(f"{{tool_choice}} is {choice!r}: it must be auto, none, required or one of {names}")
    return found


def format_for(template: Template) -> ToolFormat:
    """The form that models of this template were trained on. Raises UsageError where it has no system prompt."""
    if template.system is None:
        raise UsageError(
            f"the template {template.name} has no place for tools: choose one with a system prompt, such as g1 or g1h"
        )
    if isinstance(template, JinjaTemplate):
        return FORMATS["headings"]
    return FORMATS["tag"] if "✿" in template.system else FORMATS["short"]


# ------------------------------------------------------------------------------------------------------ the forms


def _short(tools: Sequence[Tool]) -> str:
    lines = [f"- {tool.name}({_signature(tool.parameters)}){_described(tool)}" for tool in tools]
    return "\n".join(["Tools:", *lines, "Return only a JSON function call."])


def _described(tool: Tool) -> str:
    return f": {' '.join(tool.description.split())}" if tool.description else ""


def _signature(parameters: Mapping[str, Any]) -> str:
    """Arguments as `name: type`, those that may be left out as `name?: type`."""
    properties, required = parameters.get("properties"), parameters.get("required")
    named = properties if isinstance(properties, dict) else {}
    needed = required if isinstance(required, list) else []
    return ", ".join(f"{name}{'' if name in needed else '?'}: {_kind(each)}" for name, each in named.items())


def _kind(schema: object) -> str:
    if not isinstance(schema, dict):
        return _UNNAMED
    if isinstance(schema.get("enum"), list):
        return " | ".join(json.dumps(value, ensure_ascii=False) for value in schema["enum"])
    kind = schema.get("type", _UNNAMED)
    if kind == "array":
        return f"{_kind(schema.get('items'))}[]"
    return " | ".join(map(str, kind)) if isinstance(kind, list) else str(kind)


def _tag(tools: Sequence[Tool]) -> str:
    described = [
        json.dumps(
            {"name": tool.name, "description": tool.description, "parameters": tool.parameters},
            ensure_ascii=False,
        )
        for tool in tools
    ]
    form = '<tool_call>\n{"name": ..., "arguments": {...}}\n</tool_call>'
    return "\n".join(["Tools:", *described, f"To call one, answer with:\n{form}"])


def _headings(tools: Sequence[Tool]) -> str:
    parts = ["You can call these tools."]
    for tool in tools:
        schema = json.dumps(tool.parameters, ensure_ascii=False, indent=2)
        parts.append(
            f"### `{tool.name}`\n**Description:** {tool.description}\n**Parameters:**\n```json\n{schema}\n```"
        )
    form = '**Tool Call:**\n```json\n{"name": ..., "arguments": {...}}\n```'
    return "\n".join([*parts, f"To call one, answer with:\n{form}"])


FORMATS: Mapping[str, ToolFormat] = {
    each.name: each
    for each in (
        ToolFormat("short", _short, "```json\n", "\n```", "Function output:\n{output}"),
        ToolFormat("tag", _tag, "<tool_call>\n", "\n</tool_call>", "<tool_response>\n{output}\n</tool_response>"),
        ToolFormat("headings", _headings, "**Tool Call:**\n```json\n", "\n```",
                   "### Tool Output\n```json\n{output}\n```"),
    )
}  # fmt: skip
