"""JSON Schemas before a grammar is made of them: checked, and with what llguidance is to do with them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from rwkv_cli.engine.constraints.keywords import followed
from rwkv_cli.engine.constraints.logic import rewritten
from rwkv_cli.engine.constraints.schema_sets import listed, resolved
from rwkv_cli.errors import UsageError, literal

_FORM = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "lenient": False,
    "json_allowed_escapes": 'nrtbf\\"',
}
"""White space as json.dumps has it, and none where it could go on for ever: weak models would write nothing else. No
escapes of characters that need none, or the name of a property could be written in another way."""

_MOST_STEPS = 200_000  # of the search for recursion


def normalized(source: str | bool | Mapping[str, Any]) -> str:
    """A schema as JSON. Raises UsageError for what is not one, or demands a text without an end."""
    try:
        schema = json.loads(source) if isinstance(source, str) else source
        text = json.dumps(schema, ensure_ascii=False, allow_nan=False)
        schema = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise UsageError(f"{{json_schema}} is not JSON: {literal(reason)}") from None
    if not isinstance(schema, dict | bool):
        raise UsageError("{json_schema} must be a JSON object, such as " + literal('{"type": "object"}'))
    if schema is False:
        raise UsageError("{json_schema} cannot be used: nothing satisfies it")
    if isinstance(schema, dict) and _Ends(schema).is_endless():
        raise UsageError(
            "{json_schema} cannot be used: it requires itself, so every text would be endless; make a property optional"
        )
    return text


def for_llguidance(schema: dict[str, Any] | bool) -> dict[str, Any]:
    """A schema that llguidance follows, with the options of the compiler in it. Raises UsageError."""
    return {**(followed(rewritten(schema)) if isinstance(schema, dict) else {}), "x-guidance": _FORM}


class _Ends:
    """Finds schemas that every valid text of which contains another one of the same: those have no finite text.

    What is required of an object or an array is followed; anything that is not understood counts as possible to end.
    """

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._finite: set[int] = set()  # ids of schemas that are known to end
        self._steps = 0

    def is_endless(self) -> bool:
        """Whether no text of the whole schema ends."""
        try:
            return not self._ends(self._root, frozenset())
        except RecursionError:
            return False

    def _ends(self, schema: object, within: frozenset[int]) -> bool:
        """Whether a schema has a text that ends; one that is being looked at, `within`, does not help itself."""
        self._steps += 1
        if not isinstance(schema, dict) or id(schema) in self._finite or self._steps > _MOST_STEPS:
            return True
        if id(schema) in within:
            return False
        within |= {id(schema)}
        if all(self._ends(each, within) for each in self._needed(schema)) and all(
            any(self._ends(each, within) for each in schema[key])
            for key in ("anyOf", "oneOf")
            if isinstance(schema.get(key), list) and schema[key]
        ):
            self._finite.add(id(schema))
            return True
        return False

    def _needed(self, schema: Mapping[str, Any]) -> Iterator[object]:
        """The schemas that each text of this one contains, or has to satisfy."""
        if "$ref" in schema:
            yield resolved(self._root, schema["$ref"])
        yield from listed(schema, "allOf")
        kinds = schema.get("type", ())
        properties = schema.get("properties")
        if kinds in ("object", ["object"]) and isinstance(properties, dict):
            yield from (
                properties.get(name, True) for name in listed(schema, "required") if isinstance(name, str)
            )
        least = schema.get("minItems")
        if kinds in ("array", ["array"]) and isinstance(least, int) and least > 0:
            first = listed(schema, "prefixItems")
            yield from first[:least]
            if least > len(first):
                yield schema.get("items", True)
