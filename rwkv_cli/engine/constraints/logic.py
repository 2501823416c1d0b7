"""The logic of JSON Schemas in terms of `anyOf` and `allOf`, which llguidance follows: `not`, `if`, what depends on a
property, alternatives of `oneOf` that overlap, and arrays of distinct items, where there are few.

What is made allows no more than the schema did, and perhaps less, where a keyword has no opposite that can be said.
What cannot be rewritten stays as it is, for the compiler to refuse.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rwkv_cli.engine.constraints.schema_sets import (
    ALL,
    OBJECT,
    Schema,
    SchemaSets,
    Types,
    distinct,
    key_of,
    listed,
    own_values,
    type_names,
)
from rwkv_cli.errors import UsageError

_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_LISTS = ("prefixItems",)
_SINGLE = ("items", "additionalProperties", "additionalItems")
_MOVED = ("oneOf", "not", "if", "then", "else", "dependencies", "dependentSchemas")  # what is rewritten
_CONDITION = {"properties", "required", "type"}
_REMARKS = {"$comment", "default", "description", "examples", "title"}

OVERLAPPING = "alternatives of oneOf overlap, or cannot be told apart; use anyOf"

_MOST_ORDERS = 100  # of distinct items, each order an alternative
_MOST_SETS = 300  # of them in the order of the schema


def rewritten(schema: Schema) -> Schema:
    """A schema that allows nothing that this one does not, without the logic that llguidance lacks.

    Raises UsageError for a `not` or an `if` without an opposite, and for alternatives that cannot be told apart.
    """
    if any(f"/{key}/" in f"{reference}/" for reference in _references(schema) for key in _MOVED):
        return schema
    rewriter = _Rewriter(SchemaSets(schema))
    found: Schema = rewriter.of(schema, ALL)
    if not rewriter.leaves_alternatives:
        return found
    if rewriter.has_logic:
        raise UsageError(f"{{json_schema}} cannot be used: {OVERLAPPING}")
    return schema  # as it was: alternatives that became narrower may overlap less than they do


def _references(schema: object) -> Iterator[str]:
    if isinstance(schema, dict):
        if isinstance(schema.get("$ref"), str):
            yield schema["$ref"]
        yield from itertools.chain.from_iterable(map(_references, schema.values()))
    elif isinstance(schema, list):
        yield from itertools.chain.from_iterable(map(_references, schema))


@dataclass(frozen=True)
class _Condition:
    """An `if` of the values of one property."""

    name: str
    values: Sequence[Any]
    holds_without: bool  # also where an object does not have it
    then: object
    otherwise: object


class _Rewriter:
    def __init__(self, sets: SchemaSets) -> None:
        self._sets = sets
        self.leaves_alternatives = False  # of a `oneOf`, to llguidance
        self.has_logic = False  # of other keywords

    def of(self, schema: Any, within: Types) -> Any:
        """A schema of values that are of the types `within` anyway."""
        if not isinstance(schema, dict):
            return schema
        within &= self._sets.types(schema)
        made = dict(schema)
        conditions = self._taken_conditions(made)
        more = [
            *self._depending(made, within),
            *self._conditional(conditions, schema, within),
            *self._negated(made, within),
            *self._distinct(made, within),
        ]
        self.has_logic |= bool(more)
        more += self._exclusive(made, within)
        for keys, inner in ((_MAPS, self._values), (_LISTS, self._items), (_SINGLE, self._single)):
            for key in keys:
                if key in made:
                    made[key] = inner(made[key])
        if more:
            made["allOf"] = [*listed(made, "allOf"), *more]
        for key in ("anyOf", "allOf"):
            if isinstance(made.get(key), list):
                made[key] = [self.of(each, within) for each in made[key]]
        return made

    def _values(self, value: Any) -> Any:
        return {key: self.of(each, ALL) for key, each in value.items()} if isinstance(value, dict) else value

    def _items(self, value: Any) -> Any:
        return [self.of(each, ALL) for each in value] if isinstance(value, list) else value

    def _single(self, value: Any) -> Any:
        return self._items(value) if isinstance(value, list) else self.of(value, ALL)

    # --- what depends on a property, and conditions -----------------------------------------------------------------

    def _depending(self, made: Schema, within: Types) -> Iterator[Schema]:
        """Of `dependentRequired`, `dependentSchemas`, and `dependencies` of older drafts, which is both."""
        for key in ("dependentRequired", "dependentSchemas", "dependencies"):
            if not isinstance(made.get(key), dict):
                continue
            for name, then in made.pop(key).items():
                needed = (
                    {"required": [name, *then]}
                    if isinstance(then, list)
                    else {"required": [name], "allOf": [then]}
                )
                parts: list[Schema] = [
                    {"type": "object", **needed},
                    {"type": "object", "properties": {name: False}},
                ]
                if others := type_names(within - OBJECT):
                    parts.append({"type": others})
                yield {"anyOf": parts}

    def _taken_conditions(self, made: Schema) -> list[Schema]:
        """The conditions of a schema and of the parts of its `allOf`, which are taken out of it."""
        own: Schema = {str(key): made.pop(key) for key in ("if", "then", "else") if key in made}
        found = [own] if "if" in own else []
        if parts := listed(made, "allOf"):
            is_condition = [
                isinstance(each, dict) and "if" in each and each.keys() <= {"if", "then", "else"} | _REMARKS
                for each in parts
            ]
            found += itertools.compress(parts, is_condition)
            # The others stay where references look for them.
            made["allOf"] = [{} if taken else each for each, taken in zip(parts, is_condition, strict=True)]
        return found

    def _conditional(self, found: Sequence[Schema], schema: Schema, within: Types) -> Iterator[Schema]:
        """What conditions demand, together those that ask for the same property."""
        by_name = dict[str, list[_Condition]]()
        for each in found:
            if "then" not in each and "else" not in each:
                continue
            if within == OBJECT and (condition := self._condition(each)):
                by_name.setdefault(condition.name, []).append(condition)
                continue
            opposite = self._sets.negated(each["if"], within)
            if each["if"] is not True and not opposite:
                raise _unsupported("if")
            holds = {"allOf": [each["if"], each.get("then", True)]}
            yield {"anyOf": [holds, *({"allOf": [part, each.get("else", True)]} for part in opposite)]}
        for name, conditions in by_name.items():
            yield {"anyOf": [*self._branches(name, conditions, schema)]}

    def _condition(self, each: Schema) -> _Condition | None:
        """A condition of the values of one property of an object."""
        asked = each["if"]
        if (
            not isinstance(asked, dict)
            or not asked.keys() - _REMARKS <= _CONDITION
            or "properties" not in asked
        ):
            return None
        properties, required = asked["properties"], listed(asked, "required")
        if (
            not isinstance(properties, dict)
            or len(properties) != 1
            or asked.get("type", "object") != "object"
        ):
            return None
        ((name, inner),) = properties.items()
        if not isinstance(inner, dict) or not inner.keys() - _REMARKS <= {"const", "enum", "type"}:
            return None
        values = own_values(inner)
        if values is None or not set(required) <= {name}:
            return None
        values = [value for value in values if self._sets.types({"const": value}) <= self._sets.types(inner)]
        return _Condition(name, values, name not in required, each.get("then", True), each.get("else", True))

    def _branches(self, name: str, conditions: Sequence[_Condition], schema: Schema) -> Iterator[Schema]:
        """A branch for the values that fulfil the same conditions, for other values, and for none."""
        values = distinct([value for condition in conditions for value in condition.values])
        groups = dict[tuple[bool, ...], list[Any]]()
        for value in values:
            holds = tuple(key_of(value) in map(key_of, condition.values) for condition in conditions)
            groups.setdefault(holds, []).append(value)
        for holds, group in groups.items():
            yield _branch({name: {"enum": group}}, [name], conditions, holds)
        never = [False] * len(conditions)
        if self._sets.values(self._property(schema, name)) is None or self._has_others(schema, name, values):
            for part in self._sets.negated({"enum": values}, self._sets.types(self._property(schema, name))):
                yield _branch({name: part}, [name], conditions, never)
        if name not in self._sets.required(schema):
            yield _branch({name: False}, [], conditions, [each.holds_without for each in conditions])

    def _property(self, schema: Schema, name: str) -> object:
        properties = schema.get("properties")
        return properties.get(name, True) if isinstance(properties, dict) else True

    def _has_others(self, schema: Schema, name: str, values: Sequence[Any]) -> bool:
        found = self._sets.values(self._property(schema, name)) or []
        return bool({key_of(value) for value in found} - {key_of(value) for value in values})

    # --- not, oneOf, uniqueItems ------------------------------------------------------------------------------------

    def _negated(self, made: Schema, within: Types) -> Iterator[Schema]:
        if (inner := made.pop("not", False)) is False:
            return
        parts = self._sets.negated(inner, within)
        if not parts:
            raise _unsupported("not")
        yield {"anyOf": parts}

    def _exclusive(self, made: Schema, within: Types) -> Iterator[Schema]:
        """Alternatives of `oneOf`, each without what the others allow."""
        parts = listed(made, "oneOf")
        overlapping = [[False] * len(parts) for _ in parts]
        for i, j in itertools.combinations(range(len(parts)), 2):
            overlapping[i][j] = overlapping[j][i] = not self._sets.are_disjoint(parts[i], parts[j], within)
        without = [
            self._without(part, [*itertools.compress(parts, others)], within)
            for part, others in zip(parts, overlapping, strict=True)
        ]
        if parts and all(each is not None for each in without):
            del made["oneOf"]
            yield {"anyOf": without}
        elif parts:
            self.leaves_alternatives = True

    def _without(self, part: object, others: Sequence[object], within: Types) -> object | None:
        """An alternative without what others allow that overlap with it; None if that cannot be said."""
        more = list[Schema]()
        kinds = within & self._sets.types(part)
        for other in others:
            opposite = [
                each
                for each in self._sets.negated(other, kinds)
                if not self._sets.are_disjoint(part, each, kinds)
            ]
            if not opposite:
                return None
            more.append({"anyOf": [each for each in opposite if _is_absence(each)] or opposite})
        return {"allOf": [part, *more]} if more else part

    def _distinct(self, made: Schema, within: Types) -> Iterator[Schema]:
        """Arrays of distinct items where these are few: each order, or each choice in the order of the schema."""
        if made.get("uniqueItems") is not True or within != {"array"} or "prefixItems" in made:
            return
        values = self._sets.values(made.get("items"))
        if values is None:
            return
        values = distinct(values)
        least, most = made.get("minItems", 0), made.get("maxItems", len(values))
        if not isinstance(least, int) or not isinstance(most, int):
            return
        sizes = range(least, min(most, len(values)) + 1)
        chosen: Iterator[tuple[Any, ...]]
        if sum(math.perm(len(values), size) for size in sizes) <= _MOST_ORDERS:
            chosen = itertools.chain.from_iterable(itertools.permutations(values, size) for size in sizes)
        elif sum(math.comb(len(values), size) for size in sizes) <= _MOST_SETS:
            chosen = itertools.chain.from_iterable(itertools.combinations(values, size) for size in sizes)
        else:
            return
        del made["uniqueItems"]
        yield {"anyOf": [_array(each) for each in chosen]}


def _branch(
    properties: Schema, required: Sequence[str], conditions: Sequence[_Condition], holds: Sequence[bool]
) -> Schema:
    """An object with a property of some values, and what the conditions demand of it that hold, or do not."""
    demanded = [each.then if held else each.otherwise for each, held in zip(conditions, holds, strict=True)]
    made: Schema = {"type": "object", "properties": properties, "required": [*required]}
    more = [each for each in demanded if each is not True]
    return {**made, "allOf": more} if more else made


def _is_absence(schema: Schema) -> bool:
    """Whether it says no more than that an object does not have a property."""
    return schema.keys() == {"type", "properties"} and [*schema["properties"].values()] == [False]


def _array(values: Sequence[Any]) -> Schema:
    """The array of these values."""
    if not values:
        return {"type": "array", "maxItems": 0}
    n = len(values)
    return {
        "type": "array",
        "prefixItems": [{"const": value} for value in values],
        "items": False,
        "minItems": n,
    }


def _unsupported(keyword: str) -> UsageError:
    return UsageError(f'{{json_schema}} cannot be used: it uses "{keyword}" in a way that is not supported')
