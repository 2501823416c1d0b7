"""What JSON Schemas say in a way that llguidance refuses or takes too lightly, said so that it follows it exactly."""

from __future__ import annotations

import re
from typing import Any

from rwkv_cli.errors import UsageError

Schema = dict[str, Any]

_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_LISTS = ("prefixItems", "anyOf", "allOf", "oneOf")
_SINGLE = ("items", "additionalProperties", "additionalItems")

_YEAR = r"(000[1-9]|00[1-9]\d|0[1-9]\d{2}|[1-9]\d{3})"  # Python has no year 0
_LEAP_YEAR = r"(\d{2}(0[48]|[2468][048]|[13579][26])|(0[48]|[2468][048]|[13579][26])00)"
_DAY = r"((0[13578]|1[02])-(0[1-9]|[12]\d|3[01])|(0[469]|11)-(0[1-9]|[12]\d|30)|02-(0[1-9]|1\d|2[0-8]))"
_DATE = f"({_YEAR}-{_DAY}|{_LEAP_YEAR}-02-29)"
_HOUR = r"([01]\d|2[0-3]):[0-5]\d"

_FORMATS = {
    "date": f"^{_DATE}$",
    "date-time": rf"^{_DATE}T{_HOUR}:[0-5]\d(\.\d{{1,6}})?(Z|[+-]{_HOUR})$",
}
"""As patterns: llguidance allows February 29 in every year."""

_KNOWN_FORMATS = {*_FORMATS, "time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"}
"""Others are remarks, as in the specification."""

_SCHEMAS = ("json-schema.org/draft-0", "json-schema.org/draft/20")


def followed(schema: Any) -> Any:
    """A schema that means the same, without what means nothing. It stays as it is."""
    if not isinstance(schema, dict):
        return schema
    made: Schema = {key: value for key, value in schema.items() if not _means_nothing(key, schema)}
    for keys, inner in ((_MAPS, _values), (_LISTS, _items), (_SINGLE, _single)):
        for key in keys:
            if key in made:
                made[key] = inner(made[key])
    pattern = _FORMATS.get(str(made.get("format")))
    if pattern and made.get("type") == "string" and "pattern" not in made:
        del made["format"]
        made["pattern"] = pattern
    if isinstance(made.get("pattern"), str):
        made["pattern"] = exact_classes(made["pattern"])
    if isinstance(made.get("patternProperties"), dict):
        made["patternProperties"] = {
            exact_classes(key): each for key, each in made["patternProperties"].items()
        }
    _check_texts(made)
    _bound(made)
    _check_steps(made)
    _count(made)
    return made


_CONTROL = re.compile(r"[\x00-\x07\x0b\x0e-\x1f\x7f]")  # without those that have an escape of a letter


def _check_texts(schema: Schema) -> None:
    """Raise UsageError for control characters in texts that are demanded: llguidance would leave them out."""
    names = [*schema["properties"]] if isinstance(schema.get("properties"), dict) else []
    texts = [schema.get("enum"), schema.get("const"), schema.get("required"), names]
    if any(_has_control(each) for each in texts):
        raise UsageError(
            "{json_schema} cannot be used: it demands control characters, which is not supported"
        )


def _has_control(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_has_control(name) or _has_control(each) for name, each in value.items())
    if isinstance(value, list):
        return any(map(_has_control, value))
    return isinstance(value, str) and _CONTROL.search(value) is not None


_CONTROLS = r"\x00-\x07\x0B\x0E-\x1F\x7F"
_TOKENS = re.compile(r"\\.|\[\^?\]?|.", re.DOTALL)


def exact_classes(pattern: str) -> str:
    """A regular expression whose classes of all characters but some do not allow control characters either.

    No text has them, since there are no escapes of them; but where such a class allows them, llguidance also allows
    quotation marks and backslashes, whether the class does or not.
    """
    made, is_class = list[str](), False
    for token in _TOKENS.findall(pattern):
        if not is_class and token == "[^":
            token += _CONTROLS
        elif is_class and token == "-" and made[-1].endswith(_CONTROLS):
            token = r"\-"
        ends = token.endswith("]") and not token.startswith("\\")
        is_class = not ends if is_class else token.startswith("[")
        made.append(token)
    return "".join(made)


_EXCLUSIVE = (("exclusiveMinimum", "minimum", 1), ("exclusiveMaximum", "maximum", -1))
_LEAST = 1e-6  # between a bound that is excluded and the next number
_MOST_BOUND = 1e9  # below it, floating point tells numbers apart that differ by _LEAST


def _bound(schema: Schema) -> None:
    """Make exclusive bounds inclusive ones, a little further in: of some, llguidance allows the bound itself."""
    if schema.get("type") == "integer":
        return
    for exclusive, inclusive, sign in _EXCLUSIVE:
        bound = schema.get(exclusive)
        if bound is True:  # draft 4: it says something of the other keyword
            bound = schema.get(inclusive)
        if isinstance(bound, bool) or not isinstance(bound, int | float) or abs(bound) > _MOST_BOUND:
            continue
        del schema[exclusive]
        bound += sign * _LEAST
        other = schema.get(inclusive, bound)
        if isinstance(other, int | float):
            schema[inclusive] = max(bound, other) if sign > 0 else min(bound, other)


def _check_steps(schema: Schema) -> None:
    """Raise UsageError for steps that are not exact in binary: programs differ on what is a multiple of 0.1."""
    step = schema.get("multipleOf")
    if isinstance(step, float) and not (step * 1024).is_integer():
        raise UsageError(
            f"{{json_schema}} cannot be used: programs differ on what is a multiple of {step:g}; use a step such as "
            "0.5, or a string with a pattern"
        )


def _count(schema: Schema) -> None:
    """Drop a least number of properties that others demand anyway. Raises UsageError for one that needs distinct names.

    A name may come twice in an object, and counts once.
    """
    least, required = schema.get("minProperties"), schema.get("required")
    named = len(set(map(str, required))) if isinstance(required, list) else 0
    if not isinstance(least, int) or least > named + 1:
        if "minProperties" in schema:
            raise UsageError(
                "{json_schema} cannot be used: minProperties is only supported up to one more than are required"
            )
    elif least <= named:
        del schema["minProperties"]


def _means_nothing(key: str, schema: Schema) -> bool:
    value = schema[key]
    if key == "uniqueItems":
        most, kinds = schema.get("maxItems"), schema.get("type")
        is_short = isinstance(most, int) and most <= 1
        has_no_items = isinstance(kinds, str) and kinds != "array"
        return value is False or is_short or has_no_items
    if key == "$schema":
        return not any(known in str(value) for known in _SCHEMAS)
    if key == "format":
        return not isinstance(value, str) or value not in _KNOWN_FORMATS
    return key in ("dependencies", "dependentRequired", "dependentSchemas") and value == {}


def _values(value: Any) -> Any:
    return {key: followed(each) for key, each in value.items()} if isinstance(value, dict) else value


def _items(value: Any) -> Any:
    return [followed(each) for each in value] if isinstance(value, list) else value


def _single(value: Any) -> Any:
    return _items(value) if isinstance(value, list) else followed(value)
