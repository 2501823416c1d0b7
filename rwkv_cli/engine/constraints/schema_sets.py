"""What is known of the values that JSON Schemas allow: of which types they are, whether two schemas have one in common,
and which schemas allow only values that another one does not.

Every answer is on the safe side: "disjoint" and a negation are certain, whatever else a schema says.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Schema = dict[str, Any]
Types = frozenset[str]

ALL: Types = frozenset({"array", "boolean", "fraction", "integer", "null", "object", "string"})
"""Types of values that have nothing in common: "number" is made of "integer" and "fraction"."""

OBJECT: Types = frozenset({"object"})
_NUMBER: Types = frozenset({"integer", "fraction"})

_DEEPEST = 12
_MOST_STEPS = 100_000  # after which nothing more is known
_MOST_BOUND = 10**9
_LIMITS = {
    "minLength": ("string", "maxLength", -1),
    "maxLength": ("string", "minLength", 1),
    "minItems": ("array", "maxItems", -1),
    "maxItems": ("array", "minItems", 1),
}
"""Limits of lengths: of which type, and the limit of those that are too short or too long, with how it differs."""

_BOUNDS = {
    "minimum": "exclusiveMaximum",
    "maximum": "exclusiveMinimum",
    "exclusiveMinimum": "maximum",
    "exclusiveMaximum": "minimum",
}


class SchemaSets:
    """Answers about schemas within a root, in which references are looked up."""

    def __init__(self, root: object) -> None:
        self._root = root
        self._steps = 0
        # By the identities of schemas, which have to stay as long as they are known.
        self._conjuncts: dict[int, tuple[object, list[Schema]]] = {}
        self._types: dict[int, tuple[object, Types]] = {}
        self._values: dict[int, tuple[object, list[Any] | None]] = {}

    # --- what a schema says -----------------------------------------------------------------------------------------

    def conjuncts(self, schema: object, depth: int = 0) -> list[Schema]:
        """Schemas without references and `allOf`, all of which a value has to satisfy."""
        if schema is False:
            return [{"enum": []}]
        if not isinstance(schema, dict):
            return []
        if known := self._conjuncts.get(id(schema)):
            return known[1]
        self._steps += 1
        if depth > _DEEPEST or self._steps > _MOST_STEPS:
            return []
        if "$ref" in schema:  # in older drafts, what is beside it does not count
            found = self.conjuncts(resolved(self._root, schema["$ref"]), depth + 1)
        else:
            found = [{key: value for key, value in schema.items() if key != "allOf"}]
            for each in listed(schema, "allOf"):
                found += self.conjuncts(each, depth + 1)
        self._conjuncts[id(schema)] = schema, found
        return found

    def types(self, schema: object, depth: int = 0) -> Types:
        """The types that values may be of, at most."""
        if known := self._types.get(id(schema)):
            return known[1]
        found = ALL
        self._types[id(schema)] = schema, found  # while it is looked at: it may contain itself
        for each in self.conjuncts(schema, depth):
            if "type" in each:
                found &= _atoms(each["type"])
            if (values := own_values(each)) is not None:
                found &= frozenset(map(type_of, values))
            for key in ("anyOf", "oneOf"):
                if depth < _DEEPEST and (parts := listed(each, key)):
                    found &= frozenset().union(*(self.types(part, depth + 1) for part in parts))
        self._types[id(schema)] = schema, found
        return found

    def required(self, schema: object) -> frozenset[str]:
        """Names that an object has to have."""
        return frozenset(
            name
            for each in self.conjuncts(schema)
            for name in listed(each, "required")
            if isinstance(name, str)
        )

    def values(self, schema: object, depth: int = 0) -> list[Any] | None:
        """All values that a schema may allow, where they are few; None where they are not known to be."""
        if known := self._values.get(id(schema)):
            return known[1]
        self._values[id(schema)] = schema, None  # while it is looked at, as above
        found = self._found_values(schema, depth)
        self._values[id(schema)] = schema, found
        return found

    def _found_values(self, schema: object, depth: int) -> list[Any] | None:
        for each in self.conjuncts(schema, depth):
            if (values := own_values(each)) is not None:
                return values
            parts = listed(each, "anyOf") or listed(each, "oneOf")
            if parts and depth < _DEEPEST:
                found = [self.values(part, depth + 1) for part in parts]
                if all(some is not None for some in found):
                    return distinct([value for some in found for value in some or ()])
        kinds = self.types(schema, depth)
        if kinds <= {"boolean", "null"}:
            return [*([True, False] if "boolean" in kinds else []), *([None] if "null" in kinds else [])]
        return None

    # --- two schemas ------------------------------------------------------------------------------------------------

    def are_disjoint(self, one: object, other: object, within: Types = ALL, depth: int = 0) -> bool:
        """Whether no value of the types `within` satisfies both, for certain."""
        self._steps += 1
        if depth > _DEEPEST or self._steps > _MOST_STEPS:
            return False
        common = self.types(one, depth) & self.types(other, depth) & within
        if not common or self._are_values_apart(one, other, depth):
            return True
        if common <= _NUMBER and self._are_ranges_apart(one, other):
            return True
        if common == OBJECT and self._are_properties_apart(one, other, depth):
            return True
        return any(
            all(self.are_disjoint(part, against, within, depth + 1) for part in parts)
            for schema, against in ((one, other), (other, one))
            for each in self.conjuncts(schema, depth)
            for key in ("anyOf", "oneOf")
            if (parts := listed(each, key))
        )

    def _are_values_apart(self, one: object, other: object, depth: int) -> bool:
        mine, theirs = self.values(one, depth), self.values(other, depth)
        if mine is None or theirs is None:
            return False
        return not {key_of(value) for value in mine} & {key_of(value) for value in theirs}

    def _are_ranges_apart(self, one: object, other: object) -> bool:
        (low, high), (other_low, other_high) = self._range(one), self._range(other)
        return low > other_high or other_low > high

    def _range(self, schema: object) -> tuple[float, float]:
        low, high = -float("inf"), float("inf")
        for each in self.conjuncts(schema):
            for key in ("minimum", "exclusiveMinimum"):
                low = max(low, each[key]) if is_number(each.get(key)) else low
            for key in ("maximum", "exclusiveMaximum"):
                high = min(high, each[key]) if is_number(each.get(key)) else high
        return low, high

    def _are_properties_apart(self, one: object, other: object, depth: int) -> bool:
        """Whether a property that each object has to have cannot satisfy both."""
        return any(
            self.are_disjoint(mine, theirs, ALL, depth + 1)
            for name in sorted(self.required(one) | self.required(other))
            for mine in self._of_property(one, name)
            for theirs in self._of_property(other, name)
        )

    def _of_property(self, schema: object, name: str) -> list[object]:
        """What a property has to satisfy, as far as that is known."""
        found = list[object]()
        for each in self.conjuncts(schema):
            properties = each.get("properties")
            if isinstance(properties, dict) and name in properties:
                found.append(properties[name])
            elif each.get("additionalProperties") is False and not each.get("patternProperties"):
                found.append(False)
        return found or [True]

    # --- negation ---------------------------------------------------------------------------------------------------

    def negated(self, schema: object, within: Types = ALL, depth: int = 0) -> list[Schema]:
        """Schemas that allow, of the types `within`, only values that this one does not; empty if none is known.

        Together they may allow fewer than all of those values, where a keyword has no counterpart.
        """
        self._steps += 1
        if depth > _DEEPEST or self._steps > _MOST_STEPS:
            return []
        found = list[Schema]()
        for each in self.conjuncts(schema, depth):
            found += self._negated_values(each, within)
            found += [part for part in _negated_numbers(each, within) if part not in found]
            if "object" in within:
                found += self._negated_objects(each, depth)
            if parts := listed(each, "anyOf"):
                opposite = [self.negated(part, within, depth + 1) for part in parts]
                if all(opposite):
                    found.append({"allOf": [{"anyOf": some} for some in opposite]})
            if isinstance(each.get("not"), dict | bool) and each["not"] is not False:
                found.append({} if each["not"] is True else each["not"])
        return found

    def _negated_values(self, schema: Schema, within: Types) -> list[Schema]:
        values = own_values(schema)
        if values is not None:
            return [part for kind in sorted(within) for part in _others(kind, values)]
        if "type" not in schema:
            return []
        return [{"type": names}] if (names := type_names(within - _atoms(schema["type"]))) else []

    def _negated_objects(self, schema: Schema, depth: int) -> Iterator[Schema]:
        for name in listed(schema, "required"):
            if isinstance(name, str):
                yield {"type": "object", "properties": {name: False}}
        properties = schema.get("properties")
        for name, inner in properties.items() if isinstance(properties, dict) else ():
            for part in self.negated(inner, ALL, depth + 1):
                yield {"type": "object", "properties": {name: part}, "required": [name]}


def _negated_numbers(schema: Schema, within: Types) -> Iterator[Schema]:
    """Of bounds of numbers and of lengths."""
    for key, opposite in _BOUNDS.items():
        bound = schema.get(key)
        if within & _NUMBER and bound is not None and is_number(bound) and abs(bound) < _MOST_BOUND:
            yield {"type": "number", opposite: bound}
    for key, (kind, opposite, by) in _LIMITS.items():
        limit = schema.get(key)
        if kind in within and isinstance(limit, int) and limit + by >= 0:
            yield {"type": kind, opposite: limit + by}


def _others(kind: str, values: Sequence[Any]) -> list[Schema]:
    """Schemas of values of one type but these; empty for types of which that cannot be said."""
    of_kind = [value for value in values if type_of(value) == kind]
    if kind == "fraction":
        return []  # with the integers, or not at all
    if kind == "integer":
        return _other_numbers(values)
    if not of_kind:
        return [{"type": kind}]
    if kind == "string":
        return [{"type": "string", "pattern": but_these(of_kind)}]
    left = [value for value in (True, False) if value not in of_kind] if kind == "boolean" else []
    return [{"enum": left}] if left else []


def _other_numbers(values: Sequence[Any]) -> list[Schema]:
    """The numbers between some numbers."""
    numbers = sorted({value for value in values if is_number(value)})
    if not numbers:
        return [{"type": "number"}]
    if max(map(abs, numbers)) >= _MOST_BOUND:
        return []
    between = [
        {"type": "number", "exclusiveMinimum": low, "exclusiveMaximum": high}
        for low, high in itertools.pairwise(numbers)
    ]
    first, last = {"exclusiveMaximum": numbers[0]}, {"exclusiveMinimum": numbers[-1]}
    return [{"type": "number", **first}, *between, {"type": "number", **last}]


def but_these(texts: Sequence[str]) -> str:
    """A regular expression of all texts but these, of which there is at least one."""
    return f"^({_but(sorted(set(texts)))})$"


def _but(rests: Sequence[str]) -> str:
    """All texts but some, as alternatives; those to avoid are sorted, each once."""
    groups = dict[str, list[str]]()
    for rest in rests:
        groups.setdefault(rest[:1], []).append(rest[1:])
    is_empty_avoided = groups.pop("", None) is not None
    first = "".join(f"\\U{ord(character):08X}" for character in groups)
    parts = [f"[^{first}][\\s\\S]*" if groups else "[\\s\\S]+"]
    parts += [f"\\U{ord(character):08X}({_but(group)})" for character, group in groups.items()]
    return "|".join(parts if is_empty_avoided else ["", *parts])


# --- parts of schemas ------------------------------------------------------------------------------------------------


def resolved(root: object, reference: object) -> object:
    """What a reference within `root` refers to; True, which every value satisfies, for any other one."""
    if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
        return True
    found: Any = root
    for part in reference[1:].split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and part.isdigit() and int(part) < len(found):
            found = found[int(part)]
        elif isinstance(found, dict) and part in found:
            found = found[part]
        else:
            return True
    return found


def listed(schema: Mapping[str, Any], key: str) -> list[Any]:
    """A list in a schema; empty where there is none."""
    value = schema.get(key)
    return value if isinstance(value, list) else []


def own_values(schema: Mapping[str, Any]) -> list[Any] | None:
    """What `const` or `enum` list."""
    if "const" in schema:
        return [schema["const"]]
    return schema["enum"] if isinstance(schema.get("enum"), list) else None


def is_number(value: object) -> bool:
    """Whether it is a number of JSON."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def type_of(value: object) -> str:
    """The type of a value, one of ALL; 1.0 is an integer."""
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "integer" if isinstance(value, int) or value.is_integer() else "fraction"
    names: dict[type, str] = {str: "string", list: "array", dict: "object"}
    return names.get(type(value), "null")


def key_of(value: object) -> str:
    """The same for values that are equal in JSON."""
    if is_number(value) and type_of(value) == "integer":
        return str(int(value))  # type: ignore[call-overload]
    return json.dumps(value, sort_keys=True)


def distinct(values: Sequence[Any]) -> list[Any]:
    """Each value once."""
    return [*{key_of(value): value for value in values}.values()]


def _atoms(kinds: object) -> Types:
    """The types that the keyword `type` names."""
    found = set[str]()
    for kind in kinds if isinstance(kinds, list) else [kinds]:
        found |= _NUMBER if kind == "number" else {str(kind)}
    return frozenset(found) & ALL


def type_names(types: Types) -> list[str]:
    """Types as the keyword `type` names them, without fractions where integers are not among them."""
    names = types - _NUMBER
    if "integer" in types:
        names |= {"number"} if "fraction" in types else {"integer"}
    return sorted(names)
