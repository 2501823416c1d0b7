"""Descriptions of tools in OpenAI's form, and calls of them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rwkv_cli.errors import UsageError

MOST_TOOLS = 128
_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")


@dataclass(frozen=True)
class Tool:
    """A function that a model may call."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}})
    """A JSON Schema of an object."""


@dataclass(frozen=True)
class ToolCall:
    """What a model wants to be called, with which arguments."""

    name: str
    arguments: Mapping[str, Any]

    def to_json(self) -> dict[str, object]:
        """In OpenAI's form, without an id."""
        arguments = json.dumps(self.arguments, ensure_ascii=False)
        return {"type": "function", "function": {"name": self.name, "arguments": arguments}}


def parse_tools(text: str) -> tuple[Tool, ...]:
    """The tools in a JSON text. Raises UsageError like `tools_of`."""
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        raise UsageError("{tools} must be JSON: a list of tools in OpenAI's form") from None
    return tools_of(fields)


def tools_of(fields: object) -> tuple[Tool, ...]:
    """The tools in a list, or in an object with one in `tools`. Raises UsageError for anything that is not one."""
    if isinstance(fields, dict):
        fields = fields.get("tools", [fields])
    if not isinstance(fields, list) or not fields:
        raise UsageError("{tools} must be a list of tools in OpenAI's form")
    if len(fields) > MOST_TOOLS:
        raise UsageError(f"{{tools}} has {len(fields):,} tools; {MOST_TOOLS} are allowed")
    tools = tuple(_tool(each, f"tool {number}") for number, each in enumerate(fields, 1))
    names = [tool.name for tool in tools]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"{{tools}} has two tools named {twice[0]}")
    return tools


def _tool(fields: object, where: str) -> Tool:
    """A tool: {"type": "function", "function": {...}}, or what is in the inner object alone."""
    inner = fields.get("function", fields) if isinstance(fields, dict) else None
    if not isinstance(inner, dict):
        raise UsageError(f"{{tools}}: {where} must be an object with a function in it")
    name, description = inner.get("name"), inner.get("description") or ""
    parameters = inner.get("parameters") or {"type": "object", "properties": {}}
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UsageError(f"{{tools}}: {where} has no valid name (letters, digits and _ - . : /)")
    if not isinstance(description, str) or not isinstance(parameters, dict):
        raise UsageError(f"{{tools}}: {name} needs a text as description and a JSON Schema as parameters")
    return Tool(name, description, parameters)
