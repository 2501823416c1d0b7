"""Many JSON Schemas of many kinds, for tests and for scripts/validate_answers.py."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

Schema = Mapping[str, Any]

KEYS = ("name", "a longer key", "naïve", "ключ", "名前", "emoji 🦢", 'quo"te', "back\\slash", "")
WORDS = "red green blue yellow white black grey brown pink orange".split()


def closed(properties: Mapping[str, Any], *optional: str) -> dict[str, Any]:
    """An object of these properties alone, all required but the `optional` ones."""
    required = [name for name in properties if name not in optional]
    return {
        "type": "object",
        "properties": dict(properties),
        "required": required,
        "additionalProperties": False,
    }


def array(items: object, least: int = 0, most: int = 3) -> dict[str, Any]:
    """A list of bounded length."""
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


def short(most: int = 12, **more: Any) -> dict[str, Any]:
    """A string of bounded length."""
    return {"type": "string", "maxLength": most, **more}


def schemas() -> dict[str, Schema]:
    """All of them by name; the same in every run."""
    return {
        **_values(),
        **_objects(),
        **_recursive(),
        **_alternatives(),
        **_patterns(),
        **_tools(),
    }


def _values() -> dict[str, Schema]:
    integers = ((0, 9), (-5, 5), (10, 10), (-1000, -990), (1, 65536), (999, 1001), (-7, 123456))
    numbers = ((0, 1), (-1.5, 2.25), (0.001, 0.002), (-1e6, 1e6), (3.14, 3.15), (100, 1000.5))
    found: dict[str, Schema] = {
        f"integer {low} to {high}": {"type": "integer", "minimum": low, "maximum": high}
        for low, high in integers
    }
    found |= {
        f"number {low} to {high}": {"type": "number", "exclusiveMinimum": low, "maximum": high}
        for low, high in numbers
    }
    found |= {
        f"multiple of {n}": {"type": "integer", "minimum": 0, "maximum": 1000, "multipleOf": n}
        for n in (2, 5, 10, 7)
    }
    found |= {f"string to {n}": {"type": "string", "maxLength": n} for n in (0, 1, 5, 40)}
    found |= {
        f"string of {n} at least": {"type": "string", "minLength": n, "maxLength": n + 9} for n in (1, 8, 30)
    }
    for n in (10, 100, 2000):
        found[f"enum of {n}"] = {"enum": [f"{word} {i}" for i in range(n // 10) for word in WORDS]}
    found |= {
        "mixed enum": {"enum": [1, "1", None, True, 2.5, [1, "a"], {"b": None}, "é✿"]},
        "const": {"const": {"kind": "fixed", "values": [1, 2.5, None, False]}},
        "boolean": {"type": "boolean"},
        "null": {"type": "null"},
        "types": {"type": ["integer", "null", "boolean"]},
        "any object": {"type": "object"},
        "anything": {},
        "any array": {"type": "array"},
    }
    return found


def _objects() -> dict[str, Schema]:
    person = closed({"name": short(), "age": {"type": "integer", "minimum": 0, "maximum": 150}})
    found: dict[str, Schema] = {f"key {key!r}": closed({key: {"type": "boolean"}}) for key in KEYS}
    found |= {f"{n} properties": closed({f"p{i}": short(4) for i in range(n)}) for n in (1, 3, 8, 15)}
    found |= {
        f"{n} optional": closed({f"p{i}": {"type": "null"} for i in range(n)}, *(f"p{i}" for i in range(n)))
        for n in (1, 3, 8)
    }
    nested: dict[str, Any] = {"type": "boolean"}
    for depth in range(1, 7):
        nested = closed({f"level {depth}": nested, "n": {"type": "integer", "minimum": 0, "maximum": depth}})
        found[f"nested {depth}"] = nested
    found |= {f"array of {low} to {high}": array(person, low, high) for low, high in ((0, 1), (2, 2), (1, 4))}
    found |= {
        "person": person,
        "two people": closed({"one": person, "other": person}),
        "matrix": array(array({"type": "integer", "minimum": 0, "maximum": 9}, 2, 2), 2, 2),
        "tuple": {"type": "array", "prefixItems": [short(), {"type": "null"}], "items": False, "minItems": 2},
        "tuple and more": {"type": "array", "prefixItems": [short()], "items": {"type": "null"}, "maxItems": 4},
        "map of integers": {"type": "object", "additionalProperties": {"type": "integer", "minimum": 0, "maximum": 99}},
        "map and a key": {"type": "object", "properties": {"id": {"enum": [1, 2]}}, "required": ["id"],
                          "additionalProperties": {"type": "boolean"}},
        "named by pattern": {"type": "object", "patternProperties": {"^x_[a-z]{1,3}$": {"type": "boolean"}},
                             "additionalProperties": False},
        "required, undescribed": {"type": "object", "required": ["id", "kind"], "properties": {"id": {"type": "null"}}},
        "described": closed({"a": {"type": "boolean", "title": "A", "description": "text", "default": True}}),
    }  # fmt: skip
    return found


def _recursive() -> dict[str, Schema]:
    digit = {"type": "integer", "minimum": 0, "maximum": 9}
    tree = closed({"value": {"type": "boolean"}, "children": array({"$ref": "#/$defs/tree"}, 0, 2)})
    linked = closed({"v": digit, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}})
    operand = {"$ref": "#/$defs/e"}
    either = {"anyOf": [{"type": "boolean"}, closed({"not": operand}), closed({"and": array(operand, 1, 2)})]}
    even = closed({"odd": {"$ref": "#/$defs/odd"}}, "odd")
    odd = closed({"even": {"$ref": "#/$defs/even"}}, "even")
    same = closed({"a": {"$ref": "#/definitions/digit"}, "b": {"$ref": "#/definitions/digit"}})
    return {
        "tree": {"$defs": {"tree": tree}, "$ref": "#/$defs/tree"},
        "linked list": {"$defs": {"node": linked}, "$ref": "#/$defs/node"},
        "expression": {"$defs": {"e": either}, "$ref": "#/$defs/e"},
        "root": closed({"inner": {"$ref": "#"}, "n": {"type": "null"}}, "inner"),
        "two by turns": {"$defs": {"even": even, "odd": odd}, "$ref": "#/$defs/even"},
        "list in list": {"type": "array", "items": {"$ref": "#"}, "maxItems": 3},
        "definitions": {"definitions": {"digit": digit}, **same},
        "reference with more": {
            "$defs": {"s": {"type": "string"}},
            **closed({"a": {"$ref": "#/$defs/s", "maxLength": 5}}),
        },
    }


def _alternatives() -> dict[str, Schema]:
    length = {"type": "integer", "minimum": 0, "maximum": 99}
    sizes = {"circle": ("r",), "box": ("w", "h"), "point": ()}
    shapes = {
        name: closed({"kind": {"const": name}, **dict.fromkeys(keys, length)}) for name, keys in sizes.items()
    }
    return {
        "oneOf of types": {"oneOf": [short(5), {"type": "integer", "minimum": 0, "maximum": 9}, {"type": "null"}]},
        "oneOf of shapes": {"oneOf": [*shapes.values()]},
        "anyOf of shapes": {"anyOf": [*shapes.values()]},
        "array of shapes": array({"oneOf": [*shapes.values()]}, 1, 3),
        "allOf of bounds": {"allOf": [{"type": "integer"}, {"minimum": 3}, {"maximum": 8}]},
        "allOf of objects": {"allOf": [{"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"]},
                                       {"type": "object", "properties": {"b": {"type": "null"}}, "required": ["b"]}]},
        "optional value": closed({"a": {"anyOf": [short(4), {"type": "null"}]}}),
        "anyOf of required": {"type": "object", "properties": {"a": {"type": "null"}, "b": {"type": "null"}},
                              "additionalProperties": False, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
        "oneOf of keys": {"oneOf": [closed({"a": {"type": "null"}}), closed({"b": {"type": "null"}})]},
        "enum and null": {"enum": [*WORDS, None]},
    }  # fmt: skip


def _patterns() -> dict[str, Schema]:
    patterns = {
        "plate": "^[A-Z]{1,3}-[0-9]{1,4}$",
        "unanchored": "[0-9]",
        "words": "^(red|green|blue)( (red|green|blue)){0,2}$",
        "accents": "^[à-ü]{2,5}$",
        "escapes": '^["\\\\/]{1,4}$',
        "hex": "^0x[0-9a-f]+$",
        "beginning": "^ab",
    }
    found: dict[str, Schema] = {
        f"pattern {name}": {"type": "string", "pattern": source, "maxLength": 30}
        for name, source in patterns.items()
    }
    formats = ("date", "time", "date-time", "uuid", "ipv4", "email", "hostname")
    return found | {f"format {name}": {"type": "string", "format": name} for name in formats}


def _tools() -> dict[str, Schema]:
    weather = closed({"city": short(), "unit": {"enum": ["celsius", "fahrenheit"]}}, "unit")
    event = closed(
        {
            "title": short(30),
            "start": {"type": "string", "format": "date"},
            "people": array(closed({"name": short(), "role": {"enum": ["guest", "host"]}}), 0, 3),
            "place": {"anyOf": [closed({"room": {"type": "integer", "minimum": 1, "maximum": 400}}), {"type": "null"}]},
        }
    )  # fmt: skip
    call = closed({"name": {"const": "weather"}, "arguments": weather})
    return {"weather": weather, "event": event, "call": call, "events": array(event, 1, 2)}


def random_schema(chooser: random.Random, depth: int = 0) -> dict[str, Any]:
    """A schema of any keywords that go together, nested up to three times; not all have valid texts."""
    leaves = (_random_number, _random_string, _random_enum)
    branches = (_random_object, _random_array, _random_alternatives)
    make = chooser.choice(leaves if depth == 3 else leaves + branches)
    return make(chooser, depth + 1)


def _some(chooser: random.Random, **keywords: Any) -> dict[str, Any]:
    """About half of the keywords."""
    return {name: value for name, value in keywords.items() if chooser.random() < 0.5}


def _random_number(chooser: random.Random, _: int) -> dict[str, Any]:
    low = chooser.choice([-41, -1.5, -1, 0, 0.1, 3, 100])
    high = low + chooser.choice([0.5, 1, 10.25, 200])
    lower, upper = (
        chooser.choice(["minimum", "exclusiveMinimum"]),
        chooser.choice(["maximum", "exclusiveMaximum"]),
    )
    kind = chooser.choice(["integer", "number", ["number", "null"]])
    return {
        "type": kind,
        **_some(chooser, **{lower: low, upper: high}, multipleOf=chooser.choice([1, 3, 0.5, 0.25])),
    }


def _random_string(chooser: random.Random, _: int) -> dict[str, Any]:
    pattern = chooser.choice(["^a", "[0-9]", "^[a-c]+$", "b$", "^(x|yy)*$", r"\d{2}"])
    return {
        "type": "string",
        **_some(chooser, minLength=chooser.randint(0, 3), maxLength=chooser.randint(3, 8), pattern=pattern),
    }


def _random_enum(chooser: random.Random, _: int) -> dict[str, Any]:
    values = [1, "a", None, True, 1.5, "é", [1], {"a": 1}, "b c", 0, -1]
    return {"enum": chooser.sample(values, chooser.randint(1, 4))}


def _random_object(chooser: random.Random, depth: int) -> dict[str, Any]:
    names = chooser.sample(["a", "b", "c d", "é", "x1"], chooser.randint(0, 3))
    return {
        "type": "object",
        "properties": {name: random_schema(chooser, depth) for name in names},
        "required": chooser.sample([*names, "z"], chooser.randint(0, len(names))),
        **_some(
            chooser,
            additionalProperties=chooser.choice([False, random_schema(chooser, depth)]),
            patternProperties={chooser.choice(["^x", "[0-9]$", "^a"]): random_schema(chooser, depth)},
            minProperties=chooser.randint(0, 3),
        ),
    }


def _random_array(chooser: random.Random, depth: int) -> dict[str, Any]:
    return {
        "type": "array",
        **_some(
            chooser,
            items=chooser.choice([False, random_schema(chooser, depth), random_schema(chooser, depth)]),
            prefixItems=[random_schema(chooser, depth)],
            minItems=chooser.randint(0, 2),
            maxItems=chooser.randint(2, 3),
        ),
    }


def _random_alternatives(chooser: random.Random, depth: int) -> dict[str, Any]:
    keyword = chooser.choice(["anyOf", "allOf", "oneOf"])
    return {keyword: [random_schema(chooser, depth) for _ in range(chooser.randint(1, 3))]}
